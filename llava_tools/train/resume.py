"""Where a run starts: fresh, or from a checkpoint whose facts must fit the settings."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llava_tools import __version__
from llava_tools.config import Settings
from llava_tools.errors import UserError, first_line
from llava_tools.train import checkpoint
from llava_tools.train.loop import Run
from llava_tools.train.plain import read_plain

log = logging.getLogger(__name__)

# With any of these changed, the iteration of a checkpoint would mean another place in the data.
PLACES = ("rows", "batch_size", "accumulative_counts", "sampler", "world_size")


def find_start(work_dir: Path, resume: str | None) -> Path | None:
    """Return the checkpoint to start from, None for a fresh run.

    Raises UserError when a fresh run would write over an earlier one, or when there is no such
    checkpoint.
    """
    if resume == "auto":
        last = checkpoint.last_checkpoint(work_dir)
        if last is None:
            log.info("Nothing to resume in %s yet: starting at the beginning.", work_dir)
        return last
    if resume:
        path = Path(resume)
        if not path.exists() or checkpoint.iteration_of(path) is None:
            raise UserError(
                f"'{resume}' is not a checkpoint to resume from.",
                "Name an iter_N.pth, or leave the path out to take the work dir's last one.",
            )
        return path
    existing = checkpoint.list_checkpoints(work_dir)
    if existing:
        raise UserError(
            f"'{work_dir}' already holds a run ({existing[-1].name}).",
            "Continue it with --resume, or choose another --work-dir.",
        )
    return None


def meta(run: Run) -> dict[str, Any]:
    """Return what a checkpoint says of itself; numbers and strings only."""
    return {
        "iter": run.iteration,
        "step": run.step,
        "seed": run.settings.seed,
        "rows": len(run.dataset),
        "batch_size": run.settings.batch_size,
        "accumulative_counts": run.settings.accumulative_counts,
        "sampler": run.settings.sampler,
        "world_size": run.engine.world_size,
        "llava_tools_version": __version__,
    }


def read_meta(path: Path) -> dict[str, Any]:
    """Return the facts that a checkpoint of ours holds. Raises UserError for a foreign one."""
    if path.is_file():
        found: Any = read_plain(path)["meta"]
    else:
        files = sorted(path.glob("*mp_rank_00_model_states.pt"))
        try:
            state = torch.load(files[0], map_location="cpu", weights_only=True, mmap=True)
            found = state["meta"]
        except Exception as error:  # no file, a damaged one, foreign classes, no such key
            raise UserError(
                f"'{path}' cannot be resumed from: {first_line(error)}",
                "It is incomplete, or was written by another tool.",
            ) from error
    return dict(found)


def with_seed(settings: Settings, start: Path | None) -> Settings:
    """Return the settings with the checkpoint's seed, which decides the order of the data."""
    if start is None:
        return settings
    seed = read_meta(start).get("seed", settings.seed)
    if seed != settings.seed:
        log.warning("Resuming with the checkpoint's seed %s, not %s.", seed, settings.seed)
    return replace(settings, seed=seed)


def resume_from(run: Run, path: Path) -> None:
    """Take up weights and optimizer; the place in the data follows from the iteration alone.

    Raises UserError naming what has changed since the checkpoint was written.
    """
    then, now = read_meta(path), meta(run)
    for name in PLACES:
        if name in then and then[name] != now[name]:
            raise UserError(
                f"'{path}' was written with {name} = {then[name]}, this run has {now[name]}.",
                "Resume with the same data, batch sizes and number of processes; or start a new "
                "run from its weights with pretrained_pth.",
            )
    run.engine.load(path)
    run.iteration = then["iter"]
    run.step = step_of(run, run.iteration)
    log.info("Resumed from %s: step %d of %d", path, run.step, run.total_steps)


def step_of(run: Run, iteration: int) -> int:
    """Return the optimizer steps after `iteration` micro-batches; epochs may end in a short one."""
    epochs = run.settings.max_epochs
    per_epoch, steps = run.total_iterations // epochs, run.total_steps // epochs
    epoch, rest = divmod(iteration, per_epoch)
    return epoch * steps + -(-rest // run.settings.accumulative_counts)
