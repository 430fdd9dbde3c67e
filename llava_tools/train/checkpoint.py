"""Checkpoints on disk: written beside their final name, renamed, and found again."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_tools.errors import UserError

if TYPE_CHECKING:
    from llava_tools.train.engine import Engine

LAST = "last_checkpoint"
UNFINISHED = ".tmp"


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

    Raises UserError when it names one that is gone.
    """
    pointer = work_dir / LAST
    if not pointer.is_file():
        return None
    path = work_dir / pointer.read_text().strip()
    if not path.exists():
        raise UserError(
            f"'{pointer}' names '{path.name}', which is not there.",
            "Name a checkpoint: --resume PATH, or start again in another --work-dir.",
        )
    return path


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
    """Delete what a killed save left behind."""
    for path in work_dir.glob(f"iter_*.pth{UNFINISHED}"):
        remove(path)


def save(engine: Engine, path: Path, meta: dict[str, Any]) -> None:
    """Write a checkpoint of all ranks beside `path`; the first rank then puts it in place.

    The order makes a kill at any moment harmless: data on disk, rename, pointer. Raises UserError
    on every rank when one cannot write; the previous checkpoint is untouched then.
    """
    partial = unfinished(path)
    failure: Exception | None = None
    try:
        engine.save(partial, meta)
        _sync(partial)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        failure = error
    (failures,) = engine.sum([float(failure is not None)])
    if failures:
        if engine.rank == 0:
            remove(partial)
        reason = failure or "another process could not write its part"
        raise UserError(
            f"Could not save '{path}': {reason}",
            "Free some space and continue with --resume; earlier checkpoints are intact.",
        ) from failure
    if engine.rank == 0:
        remove(path)
        partial.rename(path)
        point_to(path)
    engine.barrier()


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
