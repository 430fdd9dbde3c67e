"""One evaluation by several processes (torchrun): who answers what, and one file in the end.

Every process writes `predictions.<rank>.jsonl`; the first one merges them into `predictions.jsonl`
in the order of the data. A killed run goes on at any number of processes.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import orjson

from llava_tools.errors import UserError
from llava_tools.eval.benchmark import Question
from llava_tools.eval.pictures import Index
from llava_tools.eval.predictions import whole_lines
from llava_tools.whole_files import write_whole

log = logging.getLogger(__name__)

FILE_NAME = "predictions.jsonl"
LONGEST_WAIT = timedelta(hours=24)  # for the slowest process
PARENT = os.getppid()  # torchrun's number: asked for later, it may be that of whoever took over


@dataclass(frozen=True)
class Place:
    """Which of how many processes this one is."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    parent: int = PARENT

    @property
    def file_name(self) -> str:
        """The file that this process writes its answers to."""
        return FILE_NAME if self.world == 1 else f"predictions.{self.rank}.jsonl"


def place_here() -> Place:
    """Return the place that torchrun's environment says. Raises UserError for a senseless one."""
    try:
        rank, world = (int(os.environ.get(n, v)) for n, v in (("RANK", "0"), ("WORLD_SIZE", "1")))
        local = int(os.environ.get("LOCAL_RANK", "0"))
    except ValueError as error:
        raise UserError(
            f"RANK or WORLD_SIZE is no number: {error}.", "Start by torchrun."
        ) from error
    if not 0 <= rank < world:
        raise UserError(f"RANK is {rank} of WORLD_SIZE {world}.", "Start by torchrun.")
    return Place(rank, world, local)


def connect(place: Place) -> None:
    """Connect the processes of torchrun, where there are several, for `agreed`.

    Once for all benchmarks of a suite: gloo finds nobody at a second time.
    """
    import torch.distributed as dist

    if place.world > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=LONGEST_WAIT)
        atexit.register(dist.destroy_process_group)


@contextmanager
def agreed(place: Place) -> Iterator[None]:
    """Leave the block when every process has, and by the same way: the first one's UserError.

    Whoever fails alone says so at once, and waits for the others' answers to be on disk.
    """
    problem: tuple[str, str] | None = None
    try:
        yield
    except UserError as error:
        problem = (error.message, error.hint)
        if place.world > 1:
            log.warning(
                "Process %d stops, the others finish their rows: %s", place.rank, error.message
            )
    if place.world > 1:
        import torch.distributed as dist

        found: list[tuple[str, str] | None] = [None] * place.world
        dist.all_gather_object(found, problem)
        problem = next(filter(None, found), None)
    if problem is not None:
        raise UserError(*problem)


def check_parent(place: Place) -> None:
    """Stop where torchrun was killed: it starts again without knowing of what it left behind.

    Raises UserError.
    """
    if place.world > 1 and os.getppid() != place.parent:
        raise UserError(
            "torchrun, which started this process, is gone.",
            "Run the same command again: it goes on where it stopped.",
        )


def share(questions: Sequence[Question], place: Place) -> list[Question]:
    """Return what this process answers: questions of the same pictures stay together.

    The largest groups are dealt first, each to whoever has the least.
    """
    groups: dict[tuple[str, ...], list[Question]] = defaultdict(list)
    for question in questions:
        groups[tuple(picture.key for picture in question.pictures)].append(question)
    shares: list[list[Question]] = [[] for _ in range(place.world)]
    alone = groups.pop((), [])  # without pictures nothing is shared
    for group in sorted(groups.values(), key=len, reverse=True):
        min(shares, key=len).extend(group)
    for question in alone:
        min(shares, key=len).append(question)
    return shares[place.rank]


def answer_files(folder: Path) -> list[Path]:
    """Return the files of answers in a work dir: the merged one and those of processes."""
    return [*folder.glob(FILE_NAME), *sorted(folder.glob("predictions.[0-9]*.jsonl"))]


def merge(folder: Path, questions: Sequence[Question]) -> Path:
    """Make one file of all, in the order of the questions; then remove the processes' files."""
    files = answer_files(folder)
    header = b""
    lines: dict[Index, bytes] = {}
    for file in files:
        found = whole_lines(file)[0]
        header = header or (found[0] if found else b"")
        lines |= {orjson.loads(line)["index"]: line for line in found[1:]}
    ordered = [lines[question.index] for question in questions if question.index in lines]
    data = b"".join(line + b"\n" for line in [header, *ordered])
    path = write_whole(folder / FILE_NAME, data)
    for file in files:
        if file.name != FILE_NAME:
            file.unlink()
    return path
