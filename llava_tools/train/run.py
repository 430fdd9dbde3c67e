"""One training run in this process: data, model, engine, resume, loop."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from llava_tools.config import Settings, dump_config, iterations
from llava_tools.data.dataset import TrainDataset, build_dataset, write_skipped
from llava_tools.errors import UserError
from llava_tools.model.llava import LlavaModel
from llava_tools.model.load import choose_device
from llava_tools.train import checkpoint
from llava_tools.train.build import (
    build_image_processor,
    build_model,
    build_tokenizer,
    describe_parts,
)
from llava_tools.train.engine import Engine
from llava_tools.train.hooks import build_hooks
from llava_tools.train.loop import Run, train
from llava_tools.train.plain import PlainEngine

log = logging.getLogger(__name__)

STOP_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}  # what a shell expects of a stopped program


def run_training(
    settings: Settings, work_dir: Path, *, deepspeed: str | None = None, resume: str | None = None
) -> int:
    """Train as the settings say; return the exit code (0, or 130 and 143 when stopped).

    `resume` is "auto" (the last checkpoint of the work dir, if there is one) or a path.
    """
    if deepspeed:
        from llava_tools.train.zero import init_distributed

        init_distributed()
    first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    start = find_start(work_dir, resume)
    work_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(settings)
    image_processor = build_image_processor(settings)
    dataset = build_dataset(settings, tokenizer, image_processor)
    model = build_model(settings)
    engine = _build_engine(model, settings, deepspeed)
    run = Run(settings, engine, dataset, work_dir, tokenizer, image_processor)
    if first:
        _prepare(work_dir, settings, dataset)
        _show_header(run)
    engine.barrier()
    if start is not None:
        _resume(run, start)
    with stop_signals() as received:
        run.stop_requested = lambda: bool(received)
        if not run.done:
            train(run, build_hooks(run))
    engine.close()
    return STOP_CODES[received[0]] if run.stop and received else 0


def find_start(work_dir: Path, resume: str | None) -> Path | None:
    """Return the checkpoint to start from, None for a fresh run.

    Raises UserError when a fresh run would write over an earlier one, or when there is no such
    checkpoint.
    """
    if resume == "auto":
        return checkpoint.last_checkpoint(work_dir)
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


def _prepare(work_dir: Path, settings: Settings, dataset: TrainDataset) -> None:
    checkpoint.remove_unfinished(work_dir)
    dump_config(settings, work_dir / "config.py")
    write_skipped(work_dir / "skipped.jsonl", dataset.skipped)


def _build_engine(model: LlavaModel, settings: Settings, deepspeed: str | None) -> Engine:
    if not deepspeed:
        return PlainEngine(model, settings, torch.device(choose_device("auto")))
    from llava_tools.train.zero import ZeroEngine, read_deepspeed_config

    world_size = torch.distributed.get_world_size()
    return ZeroEngine(model, settings, read_deepspeed_config(deepspeed, settings, world_size))


def _resume(run: Run, path: Path) -> None:
    """Take up weights and optimizer; the place in the data follows from the iteration alone."""
    run.engine.load(path)
    iteration = checkpoint.iteration_of(path)
    if iteration is None:
        raise ValueError(path)
    run.iteration, run.step = iteration, step_of(run, iteration)
    log.info("Resumed from %s: step %d of %d", path, run.step, run.total_steps)


def step_of(run: Run, iteration: int) -> int:
    """Return the optimizer steps after `iteration` micro-batches; epochs may end in a short one."""
    epochs = run.settings.max_epochs
    per_epoch, steps = run.total_iterations // epochs, run.total_steps // epochs
    epoch, rest = divmod(iteration, per_epoch)
    return epoch * steps + -(-rest // run.settings.accumulative_counts)


@contextmanager
def stop_signals() -> Iterator[list[signal.Signals]]:
    """Collect Ctrl-C and SIGTERM instead of dying: the loop then saves and stops.

    A second Ctrl-C kills at once.
    """
    received: list[signal.Signals] = []

    def remember(number: int, frame: Any) -> None:
        log.warning("Stopping after this step, with a checkpoint (once more: at once).")
        received.append(signal.Signals(number))
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, remember) for number in STOP_CODES}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show_header(run: Run) -> None:
    """Print what trains, on what, and for how long."""
    settings, world_size = run.settings, run.engine.world_size
    table = Table("part", "parameters", "trained", box=None, header_style="bold")
    for name, total, trained in describe_parts(run.engine.model):
        table.add_row(name, f"{total:,}", f"{trained:,}" if trained else "frozen")
    console = Console(stderr=True)
    console.print(table)
    rows = settings.batch_size * settings.accumulative_counts * world_size
    micro_batches, steps = iterations(settings, len(run.dataset), world_size)
    lines = [
        *run.dataset.summary().lines(),
        f"{settings.max_epochs} epoch(s), {rows} rows a step: {steps:,} steps, "
        f"iter_{micro_batches}.pth at the end",
        f"{world_size} process(es) on {run.engine.device.type}, {settings.dtype}",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
