"""A new folder that is in place whole or not at all: grown under a hidden name, synced, renamed."""

from __future__ import annotations

import ctypes
import errno
import glob
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llava_tools.errors import UserError

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux's renameat2
_FULL = (errno.ENOSPC, errno.EDQUOT)
# What to do where no file can be made or grow, by the number of the error.
_HINTS = {
    errno.EROFS: "That file system is read-only: write elsewhere.",
    errno.EACCES: "You may not write there: check the permissions of the folders above it.",
    errno.EPERM: "No folder may be made there: write elsewhere.",
    errno.ENOENT: "No folder can be made there (as below /proc): write elsewhere.",
    errno.EFBIG: "A limit (ulimit -f) or the file system (FAT: 4 GB) forbids files of that size: "
    "lift it, or write elsewhere; --max-shard-size makes files of weights smaller.",
}
# One of them is in every folder that is written here.
_OURS = (
    *("config.json", "llava_tools.json", "projector", "open_clip_config.json"),
    *("llm_adapter", "visual_encoder_adapter"),
)


@contextmanager
def new_folder(
    target: Path, *, overwrite: bool = False, sources: Iterable[Path] = (), need: int = 0
) -> Iterator[Path]:
    """Yield an empty folder beside `target` that takes its name when the block ends well.

    On any error or Ctrl-C it is removed; a kill leaves it under a hidden name, which the next run
    cleans up. `sources` are folders that are being read, `need` the bytes to come.

    Raises UserError: the target is there, is or holds a source, or its disk is full.
    """
    _clean_up(target)
    _check_target(target, overwrite, sources)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    replaced = partial.with_suffix(".replaced")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()  # tells a disk that is full from a place that takes no files
        if shutil.disk_usage(partial).free < need:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield partial
        _sync(partial)
        if not (target.exists() and _exchange(partial, target)):
            if target.exists():
                target.rename(replaced)
            partial.rename(target)
        _sync_folder(target.parent)
    except OSError as error:
        raise _failed(target, error, need) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        _settle(replaced, target)


def _failed(target: Path, error: OSError, need: int) -> UserError:
    if error.errno in _FULL:
        return UserError(
            f"The disk of '{target}' is full; nothing was written.",
            f"About {_size(need)} are needed: free some space, or write elsewhere.",
        )
    inner = str(error.filename or "")  # our own hidden name says nothing
    place = f" ('{inner}')" if inner and not inner.endswith(".partial") else ""
    return UserError(
        f"Could not write '{target}': {error.strerror or error}{place}. Nothing was written.",
        _HINTS.get(error.errno or 0, "Choose another place, or mend this one."),
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 10**8 else f"{count / 1e6:.1f} MB"


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; return whether this system and file system can."""
    swap = getattr(ctypes.CDLL(None), "renameat2", None)
    names = os.fsencode(one.absolute()), os.fsencode(other.absolute())
    return swap is not None and swap(_HERE, names[0], _HERE, names[1], _EXCHANGE) == 0


def _check_target(target: Path, overwrite: bool, sources: Iterable[Path]) -> None:
    full = target.resolve()
    for source in sources:
        origin = source.resolve()
        if full == origin or full in origin.parents:
            raise UserError(
                f"'{target}' is or holds what is being read: '{source}'.",
                "Write to another folder.",
            )
        if origin in full.parents:
            raise UserError(
                f"'{target}' lies in what is being read: '{source}'.", "Write to another folder."
            )
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite:
        raise UserError(
            f"'{target}' is there already.", "Choose another name, or replace it with --overwrite."
        )
    if not any((target / name).exists() for name in _OURS):
        raise UserError(
            f"'{target}' is no model folder, so it will not be replaced.", "Choose another name."
        )


def _clean_up(target: Path) -> None:
    """Remove what killed runs left beside the target, and put back what they had moved away."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.([0-9]+)\.(partial|replaced)")
    for path in target.parent.glob(f".{glob.escape(target.name)}.*"):
        found = pattern.fullmatch(path.name)
        if found is None or _alive(int(found[1])):
            continue
        if found[2] == "replaced":
            _settle(path, target)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _settle(replaced: Path, target: Path) -> None:
    """Remove the folder that was replaced, or put it back when nothing took its place."""
    if replaced.exists() and not target.exists():
        replaced.rename(target)
    shutil.rmtree(replaced, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync(folder: Path) -> None:
    """Force all files below a folder to the disk."""
    for place, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(Path(place) / name, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _sync_folder(Path(place))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot sync a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
