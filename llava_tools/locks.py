"""One process at a time on a file or folder; the system frees the lock of a process that dies."""

from __future__ import annotations

import fcntl
import logging
from pathlib import Path
from typing import IO, Any

from llava_tools.errors import UserError

log = logging.getLogger(__name__)


def hold(
    file: int | IO[Any], path: Path, otherwise: UserError, *, by_children: bool = True
) -> None:
    """Keep other processes off an open file or folder; raise `otherwise` where one holds it."""
    if not try_hold(file, path, by_children=by_children):
        raise otherwise


def try_hold(file: int | IO[Any], path: Path, *, by_children: bool = True) -> bool:
    """Lock an open file or folder; return whether no other process holds it.

    It is held until it is closed, by the last process that has it open: children inherit it and
    may outlive who took it (`flock`). Not so without `by_children`: a record lock (`lockf`) is this
    process's own. That one needs a file open for writing, and is lost when this process closes the
    same file anywhere else.

    Where a file system has no locks, that is told and nothing is held.
    """
    lock = fcntl.flock if by_children else fcntl.lockf
    try:
        lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # some systems say of records that it is not allowed
        return False
    except OSError as error:
        log.warning("'%s' cannot be locked (%s): start no second process in it.", path, error)
    return True
