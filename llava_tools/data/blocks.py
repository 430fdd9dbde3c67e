"""Rows of a file, worked on block by block in several processes, and given back in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from typing import Any, TypeVar

from llava_tools.data.rows import RawRow

BLOCK_ROWS = 512

P = TypeVar("P")
R = TypeVar("R")
Rows = list[RawRow]


def blocks_of(rows: Iterable[RawRow]) -> Iterator[Rows]:
    """Yield rows in blocks, all but the last of `BLOCK_ROWS`."""
    rest = iter(rows)
    return iter(lambda: list(islice(rest, BLOCK_ROWS)), [])


def worked(
    work: Callable[[P, Rows], R], plan: P, rows: Iterable[RawRow], processes: int
) -> Iterator[R]:
    """Yield `work(plan, block)` of each block, in parallel where there are several processes.

    `work` is a function of a module. The plan goes to each process once.
    """
    blocks = blocks_of(rows)
    if processes < 2:
        yield from (work(plan, block) for block in blocks)
        return
    # Spawned, not forked: a forked process may inherit locks held by threads of torch or CUDA.
    context = get_context("spawn")
    with ProcessPoolExecutor(processes, context, _start, (work, plan)) as pool:
        pending: deque[Future[R]] = deque()
        for block in blocks:
            pending.append(pool.submit(_work, block))
            if len(pending) > 3 * processes:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


_started: list[Any] = []  # in each process: the function and the plan


def _start(work: Callable[[P, Rows], R], plan: P) -> None:
    _started[:] = work, plan


def _work(block: Rows) -> Any:
    work, plan = _started
    return work(plan, block)
