"""Rows that say the same again: to the letter, or nearly."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from llava_tools.curate.rows import Example

SHARED, OF = 4, 5  # near: of the runs of three words of two rows, so many are in both
RUN = 3
# A word, or one character of a script that has no spaces between words.
_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff]+")

Runs = np.ndarray[Any, np.dtype[np.int64]]
# run -> (runs of a row, the run's place among them) -> such rows
Index = dict[int, dict[tuple[int, int], list[int]]]


def content(example: Example) -> bytes:
    """Return a digest of all that a row says and shows."""
    text = repr((example.turns, example.images)).encode("utf-8", "surrogatepass")
    return blake2b(text, digest_size=16).digest()


def repeats(contents: Sequence[bytes]) -> set[int]:
    """Return which contents have come before."""
    seen: set[bytes] = set()
    found = set()
    for place, said in enumerate(contents):
        if said in seen:
            found.add(place)
        seen.add(said)
    return found


def runs(example: Example) -> Runs:
    """Return a row's runs of three words as 64-bit hashes of this process, each once.

    Case and punctuation aside. Images are part of every run: rows of other images share none.
    """
    words = _WORDS.findall(f"{example.questions} {' '.join(example.answers)}".casefold())
    words = words or [turn.text for turn in example.turns]
    count = max(1, len(words) - RUN + 1)
    found = {hash("\0".join([*example.images, *words[i : i + RUN]])) for i in range(count)}
    return np.fromiter(found, np.int64, len(found))


def near_repeats(rows: Sequence[Runs]) -> set[int]:
    """Return which rows are like one that has come before and was not itself found so.

    Alike are rows that share at least 4 of 5 of their runs (Jaccard). None is missed, and few
    others are compared: with all runs ordered from rare to common, such rows have one in common
    among the first fifth of each, and not so far behind that the rest could not suffice (prefix
    and position filter of PPJoin, Xiao et al. 2008). What all rows share comes last, so that a
    long phrase in every row makes no pair a candidate.
    """
    if not rows:
        return set()
    ordered, singles = _rare_first(rows)
    index: Index = {}
    marked = np.zeros(1 + max(int(row[-1]) for row in ordered), bool)
    found = set()
    for place, row in enumerate(ordered):
        first = _first(row, singles)
        candidates = {other for i, run in first for other in _reaching(index, run, len(row), i)}
        marked[row] = True
        if _any_alike(len(row), marked, [ordered[other] for other in candidates]):
            found.add(place)
        else:
            for i, run in first:
                index.setdefault(run, {}).setdefault((len(row), i), []).append(place)
        marked[row] = False
    return found


def _rare_first(rows: Sequence[Runs]) -> tuple[list[Runs], int]:
    """Return each row as sorted ranks, rare runs first, and how many runs are in one row alone."""
    _, places, counts = np.unique(np.concatenate(rows), return_inverse=True, return_counts=True)
    ranks = np.empty(len(counts), np.int64)
    ranks[np.argsort(counts, kind="stable")] = np.arange(len(counts))
    ends = np.cumsum([len(row) for row in rows])[:-1]
    return [np.sort(row) for row in np.split(ranks[places], ends)], int((counts == 1).sum())


def _first(row: Runs, singles: int) -> list[tuple[int, int]]:
    """Return (place, run) of those of which rows alike share one; no other row has the rarest."""
    length = len(row) + 1 - -(-SHARED * len(row) // OF)
    return [(i, run) for i, run in enumerate(row[:length].tolist()) if run >= singles]


def _reaching(index: Index, run: int, size: int, i: int) -> Iterator[int]:
    """Yield the rows with a run that can be alike when it is the first that both have."""
    for (other, j), places in index.get(run, {}).items():
        if _enough(min(size - i, other - j), size + other):
            yield from places


def _enough(shared: Any, total: int | Runs) -> Any:
    """Tell whether rows of `total` runs together are alike when they share so many."""
    return (SHARED + OF) * shared >= SHARED * total


def _any_alike(size: int, marked: np.ndarray[Any, Any], others: Sequence[Runs]) -> bool:
    """Return whether one of some rows is like the row of `size` runs that are marked."""
    if not others:
        return False
    sizes = np.array([len(other) for other in others])
    starts = np.cumsum(sizes) - sizes
    shared = np.add.reduceat(marked[np.concatenate(others)].astype(np.int64), starts)
    return bool(_enough(shared, size + sizes).any())


# --dedupe -> what of a row is compared, and which of all of these repeat an earlier one
DEDUPE: dict[str, tuple[Callable[[Example], Any], Callable[[Sequence[Any]], set[int]]]] = {
    "exact": (content, repeats),
    "near": (runs, near_repeats),
}


class Repeats:
    """Takes rows one by one, and tells at the end which repeat an earlier one; `None`: none do."""

    def __init__(self, kind: str | None) -> None:
        self._kind = kind
        self._rows: dict[int, Any] = {}

    def add(self, place: int, example: Example) -> None:
        """Take a row; of it only what is compared is kept."""
        if self._kind:
            self._rows[place] = DEDUPE[self._kind][0](example)

    def places(self) -> set[int]:
        """Return the places of the rows that say the same as one that was added before."""
        if not self._kind:
            return set()
        places, compared = list(self._rows), list(self._rows.values())
        return {places[i] for i in DEDUPE[self._kind][1](compared)}
