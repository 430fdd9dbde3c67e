"""The training loop, and where a run stands."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from llava_tools.config import Settings
from llava_tools.constants import IGNORE_ID
from llava_tools.data.collate import Batch, Example, collate
from llava_tools.data.dataset import TrainDataset
from llava_tools.errors import UserError, first_line
from llava_tools.model.base_mark import Mark
from llava_tools.train.engine import Engine
from llava_tools.train.optim import learning_rate
from llava_tools.train.order import Schedule
from llava_tools.train.skips import check_skips, note_skips, nothing_to_learn


@dataclass
class Run:
    """A training run and where it stands: `step` counts the optimizer's updates."""

    settings: Settings
    engine: Engine
    dataset: TrainDataset
    schedule: Schedule
    work_dir: Path
    tokenizer: Any
    image_processor: Any
    step: int = 0
    lr: float = 0.0
    grad_norm: float = 0.0
    loss_sum: torch.Tensor = field(default_factory=lambda: torch.zeros(()))  # this rank's share
    stop: bool = False
    stop_requested: Callable[[], bool] = lambda: False
    kernels: list[str] = field(default_factory=list)  # what makes it fast, for the header
    base_mark: Mark = field(default_factory=dict)  # of what LoRA adapts
    seen: Seen = field(default_factory=lambda: Seen())

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.settings.max_epochs * self.schedule.steps_per_epoch

    @property
    def iteration(self) -> int:
        """The N of iter_N.pth here: micro-batches so far."""
        return self.schedule.iteration(self.step)

    @property
    def total_iterations(self) -> int:
        """The N of the last iter_N.pth."""
        return self.schedule.iteration(self.total_steps)

    @property
    def window(self) -> int:
        """Micro-batches of the step just done."""
        return self.iteration - self.schedule.iteration(max(0, self.step - 1))

    @property
    def done(self) -> bool:
        """Whether every row of every epoch has been trained on."""
        return self.step >= self.total_steps


@dataclass
class Seen:
    """This rank's counts since `since`, for the rates."""

    steps: int = 0
    samples: int = 0
    images: int = 0
    tokens: int = 0  # positions of the LLM that hold a row's text or image
    squares: int = 0  # the sum of their squares over the rows: what attention costs
    positions: int = 0  # what the LLM computes: with padding, where batches are padded
    supervised: int = 0
    waited: float = 0.0  # seconds for the loader
    since: float = field(default_factory=lambda: time.perf_counter())


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
        own = [float(batch.supervised) for batch in window]
        unread = float(sum(len(batch.skips) for batch in window))
        news = [sum(own), float(run.stop_requested()), float(note_skips(run, window)), unread]
        tokens, stop, skipped, unread = engine.sum(news)
        if skipped:
            check_skips(run)
        if not tokens and not unread:
            raise nothing_to_learn(run)
        run.loss_sum = torch.zeros((), device=engine.device)
        for i, batch in enumerate(window):
            loss_sum = engine.forward(batch).loss_sum
            share = weight(settings, own[i], tokens, len(window), engine.world_size)
            engine.backward(loss_sum * share, last=i == len(window) - 1)
            run.loss_sum += loss_sum.detach() * (share / engine.world_size)
        run.lr = learning_rate(run.step, run.total_steps, settings)
        run.grad_norm = engine.step(run.lr)
        if not math.isfinite(run.grad_norm):
            raise diverged(run)
        run.step += 1
        run.stop = stop > 0
        count_seen(run.seen, window, engine.model.padding_free)
        for hook in hooks:
            hook(run)
        if run.stop:
            return


def diverged(run: Run) -> UserError:
    """Return the error for a gradient that is not finite: nothing may be saved after it.

    The plain engine's weights are lost then; DeepSpeed skips the update in some of its stages.
    """
    return UserError(
        f"The gradient of step {run.step + 1} is {run.grad_norm}: the run has diverged. It ends "
        "here, and its weights are not saved.",
        "Go on from the last checkpoint with a smaller lr (--resume --cfg-options lr=...); where "
        "it happens in the first step, the weights or the data are broken.",
    )


def weight(settings: Settings, own: float, tokens: float, window: int, world_size: int) -> float:
    """Return the weight of a micro-batch's summed loss in the update.

    `token`: divide by the supervised tokens of the global batch. `micro_batch`: XTuner's mean
    of the micro-batches' means. Engines average gradients over ranks, hence the world size.
    """
    if settings.loss_reduction == "micro_batch":
        return 1 / max(1.0, own) / window
    return world_size / max(1.0, tokens)


def windows(run: Run) -> Iterator[list[Batch]]:
    """Yield accumulation windows from where the run stands; the last of an epoch may be short.

    The order is a pure function of (seed, epoch), so that starting in the middle costs nothing.
    """
    engine, sizes = run.engine, list[int]()
    left = run.total_iterations - run.iteration
    loader = DataLoader(
        Units(run.dataset),
        batch_sampler=Chunks(run.schedule, run.step, run.total_steps, engine.rank, sizes),
        collate_fn=partial(collate_units, num_patches=engine.model.num_patches),
        num_workers=min(run.settings.num_workers, left, os.cpu_count() or 1),
        pin_memory=engine.device.type == "cuda",
        generator=torch.Generator(),  # an own one: else it draws from the global stream
        worker_init_fn=ignore_interrupts,
    )
    batches = told(loader)
    while not run.done:
        began = time.perf_counter()
        window = [next(batches)]
        window += [next(batches) for _ in range(sizes.pop(0) - 1)]
        run.seen.waited += time.perf_counter() - began
        yield window


def told(batches: Iterable[Batch | UserError]) -> Iterator[Batch]:
    """Pass batches on; raise the UserError that a loader process sent, or that tells of its end."""
    try:
        for batch in batches:
            if isinstance(batch, UserError):
                raise batch
            yield batch
    except RuntimeError as error:
        if not any(sign in str(error) for sign in ("killed by signal", "exited unexpectedly")):
            raise
        raise UserError(
            f"A process that loads the data has died: {first_line(error)}",
            "Was memory short (`dmesg`, `df /dev/shm`; fewer num_workers need less), or was a file "
            "of the data or of tokenized_folder cut while it was read? Then resume the run.",
        ) from error


class Chunks:
    """The micro-batches of a rank as the loader asks for them, from `step` on, over all epochs.

    `sizes` gets the number of micro-batches of each window as its first one is asked for.
    """

    def __init__(
        self, schedule: Schedule, step: int, total_steps: int, rank: int, sizes: list[int]
    ) -> None:
        self.schedule = schedule
        self.place = step, total_steps, rank
        self.sizes = sizes

    def __iter__(self) -> Iterator[list[list[int]]]:
        step, total_steps, rank = self.place
        while step < total_steps:
            epoch, first = divmod(step, self.schedule.steps_per_epoch)
            for window in self.schedule.windows(epoch, first, rank):
                step += 1
                self.sizes.append(len(window))
                for chunk in window:
                    yield [self.schedule.rows(epoch, unit) for unit in chunk]


class Units(Dataset["list[Example] | UserError"]):
    """The dataset by units: the rows of one. A row given as ~row has its labels masked.

    A UserError is returned, not raised: torch would make one message of it and its traceback.
    """

    def __init__(self, rows: Dataset[Example]) -> None:
        self.rows = rows

    def __getitem__(self, unit: list[int]) -> list[Example] | UserError:
        try:
            return [self.rows[i] if i >= 0 else without_labels(self.rows[~i]) for i in unit]
        except UserError as error:
            return error


def without_labels(example: Example) -> Example:
    """Return an example that trains nothing."""
    return example._replace(labels=torch.full_like(example.labels, IGNORE_ID))


def collate_units(units: list[list[Example] | UserError], num_patches: int) -> Batch | UserError:
    """Lay the rows of all units end to end, or pass on why one cannot be read."""
    examples: list[Example] = []
    for unit in units:
        if isinstance(unit, UserError):
            return unit
        examples += unit
    return collate(examples, num_patches)


def ignore_interrupts(worker: int) -> None:
    """Leave Ctrl-C and SIGTERM to the main process, which needs its workers until it has saved.

    Launchers and shells send them to every process of the run. A worker ends when it is told to
    by the loader, or when the main process is gone.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def seed_step(seed: int, step: int, engine: Engine) -> None:
    """Make randomness (dropout) a pure function of the step: nothing to save for resuming.

    Only the generator in use is seeded: torch.manual_seed asks every kind of device, 0.6 ms a step.
    """
    number = ((seed * 1_000_003 + step) * 65_537 + engine.rank) % 2**63
    torch.default_generator.manual_seed(number)
    if engine.device.type == "cuda":
        torch.cuda.manual_seed(number)


def count_seen(seen: Seen, window: list[Batch], padding_free: bool) -> None:
    """Add a window to the counts that the rates are made of."""
    seen.steps += 1
    for batch in window:
        lengths = batch.layout.lengths()
        seen.samples += len(lengths)
        seen.images += batch.layout.images
        seen.tokens += sum(lengths)
        seen.squares += sum(length**2 for length in lengths)
        seen.positions += sum(lengths) if padding_free else len(lengths) * batch.layout.longest
        seen.supervised += batch.supervised
