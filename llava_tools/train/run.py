"""One training run in this process: data, model, engine, resume, loop."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from llava_tools.config import Settings, dump_config
from llava_tools.data.dataset import (
    TooManySkipped,
    TrainDataset,
    append_skipped,
    build_datasets,
    read_skipped,
    write_skipped,
)
from llava_tools.data.packing import row_positions
from llava_tools.errors import UserError
from llava_tools.model.llava import LlavaModel
from llava_tools.model.load import choose_device
from llava_tools.train import checkpoint
from llava_tools.train.bases import mark_bases
from llava_tools.train.build import (
    build_image_processor,
    build_limits,
    build_model,
    build_tokenizer,
    check_vocabulary,
)
from llava_tools.train.engine import Engine
from llava_tools.train.evaluate import eval_hook
from llava_tools.train.header import show_header
from llava_tools.train.hooks import forget_after, logger, sample_hook, save_hook
from llava_tools.train.kernels import choose_kernels
from llava_tools.train.loop import Run, train
from llava_tools.train.order import Schedule
from llava_tools.train.plain import PlainEngine
from llava_tools.train.plot import plot_run
from llava_tools.train.resume import as_begun, find_start, resume_from
from llava_tools.train.skips import SKIPPED
from llava_tools.train.trackers import trackers
from llava_tools.train.work_dir import CONFIG, alone

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
    world = torch.distributed
    rank, size = (world.get_rank(), world.get_world_size()) if world.is_initialized() else (0, 1)
    start = find_start(work_dir, resume)
    settings, began_with = as_begun(settings, start, size)
    work_dir.mkdir(parents=True, exist_ok=True)
    with alone(work_dir) if rank == 0 else nullcontext():
        return _run(settings, work_dir, deepspeed, start, began_with)


def _run(
    settings: Settings, work_dir: Path, deepspeed: str | None, start: Path | None, began_with: int
) -> int:
    tokenizer = build_tokenizer(settings)
    check_vocabulary(settings, tokenizer)
    image_processor = build_image_processor(settings)
    try:
        dataset, held_out = build_datasets(
            settings, tokenizer, image_processor, build_limits(settings)
        )
    except TooManySkipped as error:
        write_skipped(work_dir / SKIPPED, error.skips)
        raise UserError(error.message, f"All are in {work_dir / SKIPPED}. {error.hint}") from error
    model = build_model(settings)
    engine = _build_engine(model, settings, deepspeed)
    schedule = _schedule(settings, dataset, began_with, engine)
    run = Run(settings, engine, dataset, schedule, work_dir, tokenizer, image_processor)
    run.kernels = choose_kernels(model, settings)
    run.base_mark = mark_bases(model, settings)
    if start is not None:
        resume_from(run, start)
    if engine.rank == 0:
        _prepare(run, resumed=start is not None)
        show_header(run, deepspeed)
    engine.barrier()
    with stop_signals() as received, trackers(run) as report, logger(run, report) as log_hook:
        run.stop_requested = lambda: bool(received)
        if not run.done:
            train(run, [log_hook, eval_hook(settings, held_out, report), save_hook, sample_hook])
    if engine.rank == 0:
        plot_run(work_dir)
    engine.close()
    return STOP_CODES[received[0]] if run.stop and received else 0


def _prepare(run: Run, *, resumed: bool) -> None:
    """Write what a work dir holds from the start; a resumed run keeps what it listed before."""
    checkpoint.remove_unfinished(run.work_dir)
    dump_config(run.settings, run.work_dir / CONFIG)
    for name, key, place in (("log", "step", run.step), ("samples", "iter", run.iteration)):
        forget_after(run.work_dir / f"{name}.jsonl", key, place)
    earlier = read_skipped(run.work_dir / SKIPPED) if resumed else {}
    new = [skip for skip in run.dataset.skipped if (skip.origin, skip.id) not in earlier]
    (append_skipped if resumed else write_skipped)(run.work_dir / SKIPPED, new)


def _schedule(
    settings: Settings, dataset: TrainDataset, began_with: int, engine: Engine
) -> Schedule:
    patches = engine.model.num_patches
    return Schedule(
        settings,
        dataset.lengths,
        row_positions(dataset, patches) if settings.packing else None,
        began_with,
        engine.world_size,
        # max_length counts an image as one token; a pack is as long as the longest image row.
        settings.max_length + max(0, patches - 1),
    )


def _build_engine(model: LlavaModel, settings: Settings, deepspeed: str | None) -> Engine:
    if not deepspeed:
        return PlainEngine(model, settings, torch.device(choose_device("auto")))
    from llava_tools.train.zero import ZeroEngine
    from llava_tools.train.zero_config import read_deepspeed_config

    world_size = torch.distributed.get_world_size()
    return ZeroEngine(model, settings, read_deepspeed_config(deepspeed, settings, world_size))


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
