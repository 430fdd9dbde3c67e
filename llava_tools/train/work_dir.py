"""The work dir of a run: its own, one run at a time, and nobody else's files written over."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llava_tools.config import is_run_config
from llava_tools.errors import UserError

log = logging.getLogger(__name__)

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

    By a record lock: the loader's processes do not inherit it and may outlive a killed run. Where
    a file system has no locks, that is told and the run goes on.
    Raises UserError when another run is at work there.
    """
    with (work_dir / LOCK).open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise UserError(
                f"Another run is at work in '{work_dir}'.",
                "Wait for it, stop it, or choose another --work-dir.",
            ) from error
        except OSError as error:
            log.warning("%s cannot be locked (%s): start no second run in it.", work_dir, error)
        yield
