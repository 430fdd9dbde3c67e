"""Indices of data files, kept as memory-mapped arrays: ranks and later runs share them.

They lie in the user's cache, as data folders are often read-only. One process makes an index while
the others wait at a lock file; the system releases the lock of a process that dies, and what it had
written under another name is thrown away.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from llava_tools.data.index import COLUMNS, RowIndex, Stamp, fingerprint, make_columns, stamp_of
from llava_tools.data.scan import Irregular
from llava_tools.errors import UserError

log = logging.getLogger(__name__)

VERSION = 2  # of what is kept


def open_index(path: str, processes: int) -> RowIndex | None:
    """Return the index of a data file; it is made first unless it is in the cache.

    None for a JSON list that holds anything but objects, which cannot have one. Raises UserError
    for an unreadable file or a broken row.
    """
    try:
        stamp = stamp_of(path)
        return RowIndex(path, stamp, *_kept(path, stamp, processes))
    except Irregular:
        return None
    except OSError as error:
        message = f"'{path}' cannot be read: {error.strerror or error}."
        raise UserError(message, "Check `data_path` in the config.") from error


def cache_root() -> Path:
    """Return the folder of the cache: $LLAVA_TOOLS_CACHE, or llava-tools in the user's cache."""
    own = os.environ.get("LLAVA_TOOLS_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "llava-tools"


def _folder(path: str, stamp: Stamp) -> Path:
    """Return where the index of a file lies: named by the file, its place and its content."""
    place = short_hash(os.path.realpath(path))
    return cache_root() / "rows" / f"{place}-{short_hash(VERSION, stamp, fingerprint(path))}"


def short_hash(*values: object) -> str:
    """Return 16 hexadecimal digits that name some values."""
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


def _kept(path: str, stamp: Stamp, processes: int) -> list[Any]:
    """Return the columns from the cache, where they are put if they are not in it."""
    try:
        folder = _folder(path, stamp)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_suffix(".lock")):
            return _load(folder) or _save(folder, make_columns(path, processes))
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home folder
        log.warning("The index of %s is not kept for later runs: %s", path, error)
        return make_columns(path, processes)


def _load(folder: Path) -> list[Any] | None:
    """Return the columns of a folder, None when it is not there or damaged."""
    try:
        return [np.asarray(np.load(folder / f"{n}.npy", mmap_mode="r")) for n in COLUMNS]
    except (OSError, ValueError, EOFError):
        shutil.rmtree(folder, ignore_errors=True)
        return None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file, waiting for the process that has it.

    Raises OSError where there are no locks, unlike `locks.hold`: without one, nothing is shared.
    """
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _save(folder: Path, columns: list[Any]) -> list[Any]:
    """Write the columns beside their final name, rename; forget older indices of the file."""
    unfinished = folder.with_suffix(".partial")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    unfinished.mkdir()
    for name, column in zip(COLUMNS, columns, strict=True):
        with (unfinished / f"{name}.npy").open("wb") as file:
            np.save(file, column)
            file.flush()
            os.fsync(file.fileno())
    unfinished.rename(folder)
    place = folder.name.partition("-")[0]
    for older in folder.parent.glob(f"{glob.escape(place)}-*"):
        if older.is_dir() and older != folder:
            shutil.rmtree(older, ignore_errors=True)
    return _load(folder) or columns
