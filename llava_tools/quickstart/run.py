"""The whole path on one small real task, by the same commands that a user types.

llava-tools quickstart --work-dir work_dirs/quickstart
"""

from __future__ import annotations

import hashlib
import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from llava_tools import __version__
from llava_tools.errors import UserError
from llava_tools.quickstart.command import run_command
from llava_tools.quickstart.configs import RUNS, Scale, last_checkpoint
from llava_tools.quickstart.lock import CommandLock, alone
from llava_tools.quickstart.prepare import prepare
from llava_tools.quickstart.stages import Stage, stages
from llava_tools.quickstart.state import State, load_state, remove

# How a command goes on after it was cut short; all others start again.
CONTINUES: Mapping[str, tuple[str, ...]] = {"train": ("--resume",), "eval": ()}

RESULTS = ("summary.json", "loss.png")


def quickstart(work_dir: str | Path, seed: int = 0, scale: Scale | None = None) -> int:
    """Run all stages, write `summary.json` and `loss.png`, print what was made.

    A second call goes on with the first stage that is not finished (training with its last
    checkpoint, evaluation with its next row) and repeats none that is. With another seed or
    another version of llava-tools it starts afresh: it replaces what the stages make, nothing else.

    Returns 0, or 1 when the model is worse than it should be. Raises UserError when a stage fails,
    when the folder holds other files, and when another quickstart works in it.
    """
    root, scale = Path(work_dir), scale or Scale()
    todo = stages(root, {name: last_checkpoint(scale, name) for name in RUNS})
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with alone(root) as lock:
        state = load_state(root, recipe(seed, scale))
        Runner(root, scale, seed, lock, console).run(todo, state)
        from llava_tools.quickstart.finish import finish

        return finish(root, todo, state, expected=scale == Scale())


def recipe(seed: int, scale: Scale) -> dict[str, Any]:
    """Return all that decides the result: seed, scale, version and our own source."""
    code = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        code.update(file.read_bytes())
    return {
        "seed": seed,
        "scale": asdict(scale),
        "llava_tools": __version__,
        "source": code.hexdigest()[:16],
    }


@dataclass(frozen=True)
class Runner:
    """Runs stages in one work dir and shows each before it starts."""

    root: Path
    scale: Scale
    seed: int
    lock: CommandLock
    console: Console

    def run(self, todo: Sequence[Stage], state: State) -> None:
        """Run the stages from the first one that is not done. Raises UserError when one fails."""
        first = next((i for i, stage in enumerate(todo) if not self._is_done(stage, state)), None)
        if first is None:
            self.console.print(f"All stages in '{self.root}' are done; delete it to start afresh.")
            return
        for stage in todo[first:]:
            state.done.pop(stage.name, None)
        for result in RESULTS:
            remove(self.root / result)
        for number, stage in enumerate(todo[first:], start=first + 1):
            title = f"[bold]{number}/{len(todo)} {stage.name}[/]: {stage.title}"
            self.console.rule(title, align="left")
            arguments = self._begin(stage, state)
            start = time.monotonic()
            record = self._answer(stage, arguments)
            record["seconds"] = round(time.monotonic() - start, 1)
            state.finish(stage.name, record)

    def _is_done(self, stage: Stage, state: State) -> bool:
        there = all((self.root / path).exists() for path in stage.makes)
        return stage.name in state.done and there

    def _begin(self, stage: Stage, state: State) -> list[str]:
        """Return the command of a stage: how it goes on, or how it starts in a clean place."""
        more = CONTINUES.get(stage.command[0]) if stage.command else None
        if state.begun == stage.name and more is not None:
            return [*stage.command, *more]
        for path in stage.makes:
            remove(self.root / path)
        state.begin(stage.name)
        return list(stage.command)

    def _answer(self, stage: Stage, arguments: Sequence[str]) -> dict[str, Any]:
        """Run a stage; return what is to be kept of its output."""
        if not arguments:
            prepare(self.root, self.scale, self.seed)
            return {}
        command = shlex.join(["llava-tools", *arguments])
        self.console.print(f"[cyan]$ {escape(command)}")
        code, output = run_command(arguments, self.lock, capture=stage.answers)
        if code:
            raise UserError(
                f"Stage '{stage.name}' failed (exit code {code}): {command}",
                "Its own message is above. `llava-tools quickstart` goes on with this stage.",
            )
        if not stage.answers:
            return {}
        answer: dict[str, Any] = json.loads(output)
        self.console.print(f"{answer['prompt']}  ->  {answer['answer']}")
        return answer
