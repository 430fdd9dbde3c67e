"""The training loop, and where a run stands."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from llava_tools.config import Settings, iterations
from llava_tools.constants import IGNORE_ID
from llava_tools.data.collate import Batch, collate
from llava_tools.data.dataset import TrainDataset
from llava_tools.data.samplers import epoch_order
from llava_tools.model.llava import Output
from llava_tools.train.engine import Engine
from llava_tools.train.optim import learning_rate
from llava_tools.train.skips import check_skips, note_skips


@dataclass
class Run:
    """A training run and where it stands. `iteration` counts micro-batches, `step` updates."""

    settings: Settings
    engine: Engine
    dataset: TrainDataset
    work_dir: Path
    tokenizer: Any
    image_processor: Any
    iteration: int = 0
    step: int = 0
    window: int = 0  # micro-batches of the step just done
    lr: float = 0.0
    grad_norm: float = 0.0
    loss_sum: torch.Tensor = field(default_factory=lambda: torch.zeros(()))  # this rank's share
    stop: bool = False
    stop_requested: Callable[[], bool] = lambda: False
    seen: Seen = field(default_factory=lambda: Seen())

    @property
    def total_iterations(self) -> int:
        """Micro-batches of the whole run, the N of the last iter_N.pth."""
        return iterations(self.settings, len(self.dataset), self.engine.world_size)[0]

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return iterations(self.settings, len(self.dataset), self.engine.world_size)[1]

    @property
    def done(self) -> bool:
        """Whether every row of every epoch has been trained on."""
        return self.step >= self.total_steps


@dataclass
class Seen:
    """This rank's counts since `since`, for the rates."""

    steps: int = 0
    samples: int = 0
    tokens: int = 0  # positions of the LLM that are not padding, images included
    supervised: int = 0
    since: float = field(default_factory=time.perf_counter)


Hook = Callable[[Run], None]


def train(run: Run, hooks: list[Hook]) -> None:
    """Train to the end, or until a stop is requested.

    One round: take an accumulation window, count its supervised tokens over all ranks, forward
    and backward each micro-batch, clip, update, call the hooks. Each token of the global batch
    weighs the same, whatever row, micro-batch or rank it is in.
    """
    engine, settings = run.engine, run.settings
    engine.model.train()
    for window in windows(run):
        seed_step(settings.seed, run.step, engine)
        own = [float(count_supervised(batch)) for batch in window]
        news = [sum(own), float(run.stop_requested()), float(note_skips(run, window))]
        tokens, stop, skipped = engine.sum(news)
        if skipped:
            check_skips(run)
        run.loss_sum = torch.zeros((), device=engine.device)
        for i, batch in enumerate(window):
            loss = weigh(engine.forward(batch), settings, tokens, len(window), engine.world_size)
            engine.backward(loss, last=i == len(window) - 1)
            run.loss_sum += loss.detach() / engine.world_size
        run.lr = learning_rate(run.step, run.total_steps, settings)
        run.grad_norm = engine.step(run.lr)
        run.step += 1
        run.window = len(window)
        run.iteration += run.window
        run.stop = stop > 0
        count_seen(run.seen, window, engine.model.num_patches)
        for hook in hooks:
            hook(run)
        if run.stop:
            return


def weigh(
    output: Output, settings: Settings, tokens: float, window: int, world_size: int
) -> torch.Tensor:
    """Turn a micro-batch's summed loss into its share of the update's loss.

    `token`: divide by the supervised tokens of the global batch. `micro_batch`: XTuner's mean
    of the micro-batches' means. Engines average gradients over ranks, hence the world size.
    """
    if output.loss_sum is None:
        raise ValueError("a training batch needs labels")
    if settings.loss_reduction == "micro_batch":
        return output.loss_sum / max(1, output.num_tokens) / window
    return output.loss_sum * (world_size / max(1.0, tokens))


def windows(run: Run) -> Iterator[list[Batch]]:
    """Yield accumulation windows from where the run stands; the last of an epoch may be short.

    The order is a pure function of (seed, epoch), so that starting in the middle costs nothing.
    """
    settings, world_size = run.settings, run.engine.world_size
    per_epoch = run.total_iterations // settings.max_epochs
    while not run.done:
        epoch, start = divmod(run.iteration, per_epoch)
        order = epoch_order(
            settings.sampler,
            run.dataset.lengths,
            settings.seed,
            epoch,
            settings.batch_size,
            settings.accumulative_counts,
            world_size,
        )[run.engine.rank :: world_size]
        size = settings.batch_size
        chunks = [order[i : i + size].tolist() for i in range(start * size, len(order), size)]
        loader = DataLoader(
            run.dataset,
            batch_sampler=chunks,
            collate_fn=collate,
            num_workers=min(settings.num_workers, len(chunks)),
            pin_memory=run.engine.device.type == "cuda",
            generator=torch.Generator(),  # an own one: else it draws from the global stream
            worker_init_fn=ignore_interrupts,
        )
        window: list[Batch] = []
        for position, batch in enumerate(loader, start=1):
            window.append(batch)
            if len(window) == settings.accumulative_counts or position == len(chunks):
                yield window
                window = []


def ignore_interrupts(worker: int) -> None:
    """Leave Ctrl-C to the main process, which needs its workers until it has saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def seed_step(seed: int, step: int, engine: Engine) -> None:
    """Make randomness (dropout) a pure function of the step: nothing to save for resuming.

    Only the generator in use is seeded: torch.manual_seed asks every kind of device, 0.6 ms a step.
    """
    number = ((seed * 1_000_003 + step) * 65_537 + engine.rank) % 2**63
    torch.default_generator.manual_seed(number)
    if engine.device.type == "cuda":
        torch.cuda.manual_seed(number)


def count_supervised(batch: Batch) -> int:
    """Return the labels of a batch that a shifted loss uses: all but each row's first."""
    return int((batch.labels[:, 1:] != IGNORE_ID).sum())


def count_seen(seen: Seen, window: list[Batch], num_patches: int) -> None:
    """Add a window to the counts that the rates are made of."""
    seen.steps += 1
    for batch in window:
        seen.samples += len(batch.input_ids)
        images = len(batch.pixel_values)
        seen.tokens += int(batch.attention_mask.sum()) + images * (num_patches - 1)
        seen.supervised += count_supervised(batch)
