"""One quickstart at a time in a folder, and no command that a killed one has left behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from llava_tools.errors import UserError
from llava_tools.locks import hold, try_hold

LOCKS = (".quickstart.lock", ".command.lock")
ORPHAN_SECONDS = 120  # for a command that is left behind to save and end


@contextmanager
def alone(work_dir: Path) -> Iterator[CommandLock]:
    """Let one quickstart at a time work in a folder; yield the lock that its commands inherit.

    Raises UserError when another quickstart works there, and for a path that is a file.
    """
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"'{work_dir}' is no folder.", "Choose another --work-dir.") from error
    with (work_dir / LOCKS[0]).open("a") as own, (work_dir / LOCKS[1]).open("a+") as commands:
        taken = UserError(
            f"Another quickstart is at work in '{work_dir}'.",
            "Wait for it, stop it, or choose another --work-dir.",
        )
        hold(own, work_dir, taken)
        lock = CommandLock(commands)
        lock.take()
        yield lock


@dataclass
class CommandLock:
    """Held as long as a command lives, also one that a killed quickstart has left behind."""

    file: IO[str]

    def take(self) -> None:
        """Take the lock; a command that is left behind is told to stop (training saves then).

        Raises UserError when it does not stop.
        """
        if try_hold(self.file, Path(self.file.name)):
            return
        self.file.seek(0)
        pid = self.file.read()
        if pid:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGTERM)
        end = time.monotonic() + ORPHAN_SECONDS
        while not try_hold(self.file, Path(self.file.name)):
            if time.monotonic() > end:
                raise UserError(
                    f"A command of a killed quickstart does not stop (process {pid}).",
                    "Stop it, or choose another --work-dir.",
                )
            time.sleep(0.1)

    def note(self, pid: str) -> None:
        """Write down which process is the command; empty before it is known."""
        self.file.truncate(0)
        self.file.write(pid)
        self.file.flush()
