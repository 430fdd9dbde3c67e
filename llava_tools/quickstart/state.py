"""What a quickstart has finished, kept in `quickstart.json`, so that a killed one can go on."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_tools.errors import UserError
from llava_tools.quickstart.lock import LOCKS
from llava_tools.whole_files import write_whole

FILE = "quickstart.json"


@dataclass
class State:
    """Which stages are done (name -> seconds and answer), and which one has begun."""

    path: Path
    recipe: dict[str, Any]  # what decides the result
    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    begun: str | None = None

    def save(self) -> None:
        """Write the file; a kill leaves the old one or the new one."""
        values = {"recipe": self.recipe, "done": self.done, "begun": self.begun}
        write_whole(self.path, f"{json.dumps(values, indent=2)}\n".encode())

    def begin(self, name: str) -> None:
        """Note that a stage has begun."""
        self.begun = name
        self.save()

    def finish(self, name: str, record: dict[str, Any]) -> None:
        """Note that a stage is done."""
        self.done[name], self.begun = record, None
        self.save()


def load_state(work_dir: Path, recipe: dict[str, Any]) -> State:
    """Return the state of an earlier quickstart with the same recipe, else a new one.

    Raises UserError for a folder with files that no quickstart has made.
    """
    path = work_dir / FILE
    new = State(path, recipe)
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        foreign = sorted(entry.name for entry in work_dir.iterdir() if entry.name not in LOCKS)
        if foreign:
            raise UserError(
                f"'{work_dir}' holds other files ({', '.join(foreign[:3])}), but no quickstart.",
                "Choose another --work-dir.",
            ) from None
        return new
    except ValueError:
        return new
    if not isinstance(values, dict) or values.get("recipe") != recipe:
        return new
    return State(path, recipe, values["done"], values["begun"])


def remove(path: Path) -> None:
    """Delete a file or a folder of ours; one that is not there is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
