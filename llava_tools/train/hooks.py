"""What happens between steps: the log, the progress display, sample answers, saving."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from llava_tools import __version__
from llava_tools.train import checkpoint
from llava_tools.train.loop import Hook, Run, Seen
from llava_tools.train.samples import sample_answers

log = logging.getLogger(__name__)

PLAIN_SECONDS = 10.0  # between two lines where stderr is no terminal


def build_hooks(run: Run, write_meta: Callable[[Run], dict[str, Any]] | None = None) -> list[Hook]:
    """Return the hooks of a run in the order in which they are called after a step."""
    return [Logger(run), sampler(run), saver(write_meta or meta)]


class Logger:
    """Writes `log.jsonl` and shows the progress: a bar on a terminal, else a line a while."""

    def __init__(self, run: Run) -> None:
        self.first = run.engine.rank == 0
        self.path = run.work_dir / "log.jsonl"
        self.shown_at = 0.0
        self.bar: Progress | None = None
        if self.first:
            forget_after(self.path, run.step)
            if sys.stderr.isatty():
                self.bar = _bar()
                self.task = self.bar.add_task("train", total=run.total_steps, completed=run.step)
                self.bar.start()

    def __call__(self, run: Run) -> None:
        ended = run.done or run.stop
        if run.step % run.settings.log_interval == 0 or ended:
            record = measure(run)
            if self.first:
                with self.path.open("ab") as file:
                    file.write(orjson.dumps(record) + b"\n")
                self._show(run, record, ended)
        if self.bar:
            self.bar.update(self.task, completed=run.step)
            if ended:
                self.bar.stop()

    def _show(self, run: Run, record: dict[str, Any], ended: bool) -> None:
        text = (
            f"loss {record['loss']:.4f}  lr {record['lr']:.2e}  "
            f"{record['tokens_per_second']:,.0f} tokens/s"
        )
        if self.bar:
            self.bar.update(self.task, description=text)
        elif ended or time.monotonic() - self.shown_at > PLAIN_SECONDS:
            self.shown_at = time.monotonic()
            left = (run.total_steps - run.step) * record["seconds_per_step"]
            log.info("step %d/%d  %s  ETA %s", run.step, run.total_steps, text, clock(left))


def _bar() -> Progress:
    return Progress(
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        refresh_per_second=2,
    )


def measure(run: Run) -> dict[str, Any]:
    """Return one line of the log; every rank must call this.

    `loss` is this step's, over the global batch; the rates are since the line before.
    """
    seconds = time.perf_counter() - run.seen.since
    seen = run.seen
    counts = [float(seen.samples), float(seen.tokens), float(seen.supervised)]
    loss, samples, tokens, supervised = run.engine.sum([float(run.loss_sum), *counts])
    run.seen = Seen()
    return {
        "step": run.step,
        "iter": run.iteration,
        "epoch": run.settings.max_epochs * run.iteration / run.total_iterations,
        "loss": loss,
        "lr": run.lr,
        "grad_norm": run.grad_norm,
        "samples_per_second": samples / seconds,
        "tokens_per_second": tokens / seconds,
        "supervised_share": supervised / max(1.0, tokens),
        "seconds_per_step": seconds / max(1, seen.steps),
    }


def forget_after(path: Path, step: int) -> None:
    """Drop log lines after `step`: a resumed run writes them again. Also a half-written line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines():
        try:
            if orjson.loads(line)["step"] <= step:
                kept.append(line + b"\n")
        except orjson.JSONDecodeError:
            break
    partial = path.with_name(path.name + ".tmp")
    partial.write_bytes(b"".join(kept))
    os.replace(partial, path)


def clock(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def due(run: Run, every: int) -> bool:
    """Tell whether this step crossed a multiple of `every` micro-batches (0: never)."""
    return every > 0 and run.iteration // every > (run.iteration - run.window) // every


def sampler(run: Run) -> Hook:
    """Return the hook that lets the model answer from time to time, so that one sees it learn."""

    def hook(run: Run) -> None:
        if run.settings.evaluation_freq and (due(run, run.settings.evaluation_freq) or run.done):
            sample_answers(run)

    return hook


def saver(write_meta: Callable[[Run], dict[str, Any]]) -> Hook:
    """Return the hook that saves every `save_steps` micro-batches, at the end, and when stopped."""

    def hook(run: Run) -> None:
        if due(run, run.settings.save_steps) or run.done or run.stop:
            path = checkpoint.checkpoint_path(run.work_dir, run.iteration)
            checkpoint.save(run.engine, path, write_meta(run))
            if run.engine.rank == 0:
                checkpoint.prune(run.work_dir, run.settings.save_total_limit)
                log.info("Saved %s", path)
            run.engine.barrier()

    return hook


def meta(run: Run) -> dict[str, Any]:
    """Return what a checkpoint says of itself; numbers and strings only."""
    return {
        "iter": run.iteration,
        "step": run.step,
        "seed": run.settings.seed,
        "world_size": run.engine.world_size,
        "rows": len(run.dataset),
        "total_steps": run.total_steps,
        "llava_tools_version": __version__,
    }
