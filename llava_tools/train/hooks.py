"""What happens between steps: the log, the progress display, sample answers, saving."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from llava_tools.errors import UserError
from llava_tools.train import checkpoint
from llava_tools.train.loop import Hook, Run, Seen
from llava_tools.train.rates import Meter, measure, not_counted
from llava_tools.train.resume import meta
from llava_tools.train.samples import sample_answers
from llava_tools.whole_files import write_whole

log = logging.getLogger(__name__)

PLAIN_SECONDS = 10.0  # between two lines where stderr is no terminal


Report = Callable[[dict[str, Any]], None]


@contextmanager
def logger(run: Run, report: Report | None = None) -> Iterator[Hook]:
    """Yield the hook that writes `log.jsonl` and shows progress: a bar, or a line a while.

    `report` gets every line that is logged, too (see `trackers`).
    """
    if run.engine.rank != 0 or not sys.stderr.isatty():
        yield Logger(run, None, report)
        return
    with _bar() as bar:
        bar.add_task("starting", total=run.total_steps, completed=run.step)
        with _log_above_the_bar():
            yield Logger(run, bar, report)


class Logger:
    """The hook of `logger`."""

    def __init__(self, run: Run, bar: Progress | None, report: Report | None) -> None:
        self.path = run.work_dir / "log.jsonl"
        self.bar = bar
        self.report = report
        self.meter = Meter(run)
        self.shown_at = 0.0
        run.seen = Seen()

    def __call__(self, run: Run) -> None:
        ended = run.done or run.stop
        if run.step % run.settings.log_interval == 0 or ended:
            record = measure(run, self.meter)
            if run.engine.rank == 0:
                with self.path.open("ab") as file:
                    file.write(orjson.dumps(record) + b"\n")
                self._show(run, record, ended)
                if self.report:
                    self.report(record)
        if self.bar:
            self.bar.update(self.bar.task_ids[0], completed=run.step)

    def _show(self, run: Run, record: dict[str, Any], ended: bool) -> None:
        text = (
            f"loss {record['loss']:.4f}  lr {record['lr']:.2e}  "
            f"{record['tokens_per_second']:,.0f} tokens/s  MFU {record['mfu']:.0%}"
        )
        if self.bar:
            self.bar.update(self.bar.task_ids[0], description=text)
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


@contextmanager
def _log_above_the_bar() -> Iterator[None]:
    """Send log lines through the stderr that rich has put in place, which knows of its bar."""
    handlers = [h for h in logging.getLogger("llava_tools").handlers if hasattr(h, "setStream")]
    before = [handler.setStream(sys.stderr) for handler in handlers]
    try:
        yield
    finally:
        for handler, stream in zip(handlers, before, strict=True):
            handler.setStream(stream)


def forget_after(path: Path, key: str, place: int) -> None:
    """Drop the lines after `place`: a resumed run writes them again. Also a half-written line.

    Raises UserError for a file of that name which no run wrote.
    """
    if not path.exists():
        return
    kept, lines = [], path.read_bytes().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            if orjson.loads(line)[key] <= place:
                kept.append(line + b"\n")
        except (KeyError, TypeError, orjson.JSONDecodeError) as error:
            broken = isinstance(error, orjson.JSONDecodeError) and number == len(lines)
            if broken and line.strip(b"\0")[:1] in (b"", b"{"):  # zeros: after a power failure
                break
            raise UserError(
                f"A run would write to '{path}', which is another file of that name.",
                "Choose another --work-dir, or rename the file.",
            ) from error
    write_whole(path, b"".join(kept))


def clock(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def due(run: Run, every: int) -> bool:
    """Tell whether this step crossed a multiple of `every` micro-batches (0: never)."""
    return every > 0 and run.iteration // every > (run.iteration - run.window) // every


def save_hook(run: Run) -> None:
    """Save every `save_steps` micro-batches, at the end, and when stopped."""
    if not (due(run, run.settings.save_steps) or run.done or run.stop):
        return
    with not_counted(run):
        path = checkpoint.checkpoint_path(run.work_dir, run.iteration)
        checkpoint.save(run.engine, path, meta(run))
        if run.engine.rank == 0:
            checkpoint.prune(run.work_dir, run.settings.save_total_limit)
            log.info("Saved %s", path)
        run.engine.barrier()


def sample_hook(run: Run) -> None:
    """Let the model answer from time to time, so that one sees it learn.

    Whatever goes wrong there (a question too long, memory) is told; the training goes on.
    """
    every = run.settings.evaluation_freq
    takes_part = run.engine.rank == 0 or run.engine.gathers_on_forward
    if every and takes_part and (due(run, every) or run.done):
        try:
            with not_counted(run):
                sample_answers(run)
        except (UserError, RuntimeError, ValueError) as error:
            log.warning("No sample answer at iter %d: %s", run.iteration, error)
