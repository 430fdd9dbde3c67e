"""The work dir of a run: its own, one run at a time, and nobody else's files written over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llava_tools.config import is_run_config
from llava_tools.errors import UserError
from llava_tools.locks import hold

LOCK = ".train.lock"
CONFIG = "config.py"


def check_work_dir(work_dir: Path) -> None:
    """Raise UserError where a run cannot write, or would write over a config that no run wrote."""
    if any(path.exists() and not path.is_dir() for path in (work_dir, *work_dir.parents)):
        raise UserError(f"'{work_dir}' is no folder.", "Choose another --work-dir.")
    config = work_dir / CONFIG
    if config.exists() and not is_run_config(config):
        raise UserError(
            f"A run writes its settings to '{config}', but there is another file of that name.",
            "Choose another --work-dir, or rename the file.",
        )


@contextmanager
def alone(work_dir: Path) -> Iterator[None]:
    """Keep other runs out of `work_dir` while this process lives.

    Not by its children: the loader's processes may outlive a killed run, and would keep `--resume`
    out. Raises UserError when another run is at work there.
    """
    taken = UserError(
        f"Another run is at work in '{work_dir}'.",
        "Wait for it, stop it, or choose another --work-dir.",
    )
    with (work_dir / LOCK).open("a") as file:
        hold(file, work_dir, taken, by_children=False)
        yield
