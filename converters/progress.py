"""Progress by bytes on stderr: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

log = logging.getLogger(__name__)

EVERY = 10.0  # seconds between lines where there is no terminal


@contextmanager
def track(task: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with every number of bytes done, of `total`."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(task, total)
        return
    columns = (TextColumn(task), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        bar = progress.add_task(task, total=total)
        yield lambda count: progress.advance(bar, count)


def _lines(task: str, total: int) -> Callable[[int], None]:
    start = last = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= EVERY:
            last = now
            rate = done / (now - start)
            left = (total - done) / rate
            log.info(
                "%s: %.1f of %.1f GB, %.2f GB/s, %.0f s left",
                *(task, done / 1e9, total / 1e9, rate / 1e9, left),
            )

    return advance
