"""Progress of an evaluation on stderr: a bar in a terminal, otherwise one line a while."""

from __future__ import annotations

import time
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 30.0


class Rows:
    """Counts answered rows and shows rate and remaining time."""

    def __init__(self, title: str, total: int, done: int = 0) -> None:
        self.title, self.total, self.done, self.fresh = title, total, done, 0
        self.started = self.shown = time.monotonic()
        self.console = Console(stderr=True)
        self.bar: Progress | None = None
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.task = self.bar.add_task(title, total=total, completed=done, rate="")

    def __enter__(self) -> Rows:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.stop()
        elif kind is None and self.fresh:
            self._line()

    def advance(self, rows: int) -> None:
        """Count more rows as done."""
        self.done += rows
        self.fresh += rows
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, rate=f"{self.rate:.1f} rows/s")
        elif time.monotonic() - self.shown > SECONDS_BETWEEN_LINES:
            self._line()

    @property
    def rate(self) -> float:
        """Rows a second since the start of this run."""
        return self.fresh / max(time.monotonic() - self.started, 1e-9)

    def _line(self) -> None:
        self.shown = time.monotonic()
        left = (self.total - self.done) / max(self.rate, 1e-9)
        text = f"{self.title}: {self.done}/{self.total} rows, {self.rate:.1f} rows/s"
        eta = timedelta(seconds=round(left))
        self.console.print(f"{text}, ETA {eta}", highlight=False, soft_wrap=True)
