"""Checkpoints on disk: written beside their final name, renamed, and found again."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_tools.errors import UserError, first_line

if TYPE_CHECKING:
    from llava_tools.train.engine import Engine

LAST = "last_checkpoint"
UNFINISHED = ".tmp"
REPLACED = ".old"
FULL = 2**20  # bytes: with less left, a failed write needs no other explanation


def checkpoint_path(work_dir: Path, iteration: int) -> Path:
    """Return the name of the checkpoint after `iteration` micro-batches."""
    return work_dir / f"iter_{iteration}.pth"


def iteration_of(path: Path) -> int | None:
    """Return N of an `iter_N.pth`, None for any other name."""
    match = re.fullmatch(r"iter_(\d+)\.pth", path.name)
    return int(match[1]) if match else None


def list_checkpoints(work_dir: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    found = [(iteration_of(path), path) for path in work_dir.glob("iter_*.pth")]
    return [path for _, path in sorted((n, path) for n, path in found if n is not None)]


def last_checkpoint(work_dir: Path) -> Path | None:
    """Return the checkpoint that `last_checkpoint` names, None before the first save.

    Checkpoints are complete by their name; without a pointer to one the newest is taken.
    """
    pointer = work_dir / LAST
    path = work_dir / pointer.read_text().strip() if pointer.is_file() else None
    if path is not None and iteration_of(path) is not None and path.exists():
        return path
    found = list_checkpoints(work_dir)
    return found[-1] if found else None


def unfinished(path: Path) -> Path:
    """Return the name under which a checkpoint is written before it is complete."""
    return path.with_name(path.name + UNFINISHED)


def remove(path: Path) -> None:
    """Delete a checkpoint, a file or a directory; one that is not there is no error."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_unfinished(work_dir: Path) -> None:
    """Delete what a killed save left behind; what it was about to replace gets its name back."""
    for old in work_dir.glob(f"iter_*.pth{REPLACED}"):
        path = old.with_name(old.name.removesuffix(REPLACED))
        if path.exists():
            remove(old)
        else:
            old.rename(path)
    for partial in work_dir.glob(f"iter_*.pth{UNFINISHED}"):
        remove(partial)


def save(engine: Engine, path: Path, meta: dict[str, Any]) -> None:
    """Write a checkpoint of all ranks beside `path`; the first rank then puts it in place.

    The order makes a kill at any moment harmless: data on disk, rename, pointer. Raises UserError
    where a rank cannot write; earlier checkpoints are untouched then. The other ranks wait inside
    deepspeed's own barriers, so a failing one must leave at once: the launcher ends the rest.
    """
    partial = unfinished(path)
    try:
        engine.save(partial, meta)
        _sync(partial)
    except (OSError, RuntimeError) as error:  # torch.save reports a failed write as RuntimeError
        reason = _reason(error, path.parent)
        if engine.world_size == 1:
            remove(partial)
        raise UserError(
            f"Could not save '{path}': {reason}",
            "Mend that, then go on with --resume; earlier checkpoints are intact.",
        ) from error
    engine.barrier()
    if engine.rank == 0:
        replace(partial, path)
        point_to(path)
    engine.barrier()


def _reason(error: Exception, folder: Path) -> str:
    """Say why a file could not be written; torch's own words for a full disk name a C++ file."""
    free = shutil.disk_usage(folder).free
    return f"the disk is full ({free:,} bytes free)" if free < FULL else first_line(error)


def replace(new: Path, path: Path) -> None:
    """Put `new` in the place of `path`, which may be a file, a directory, or not there."""
    old = path.with_name(path.name + REPLACED)
    remove(old)
    if path.is_dir() or new.is_dir() and path.exists():
        path.rename(old)  # a directory cannot be renamed over anything, nor a file over one
    os.replace(new, path)
    remove(old)


def point_to(path: Path) -> None:
    """Make `path` the last checkpoint of its folder."""
    pointer = path.parent / LAST
    partial = pointer.with_name(LAST + UNFINISHED)
    partial.write_text(path.name + "\n")
    _sync(partial)
    partial.rename(pointer)
    _sync(path.parent)


def prune(work_dir: Path, limit: int) -> None:
    """Delete the oldest checkpoints beyond `limit`, never the one that `last_checkpoint` names."""
    keep = last_checkpoint(work_dir)
    for path in list_checkpoints(work_dir)[: -max(1, limit)]:
        if path != keep:
            remove(path)


def _sync(path: Path) -> None:
    """Force a file, or a folder and the files in it, to disk."""
    inside = list(path.iterdir()) if path.is_dir() and path.suffix == UNFINISHED else []
    for entry in [*inside, path]:
        descriptor = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
