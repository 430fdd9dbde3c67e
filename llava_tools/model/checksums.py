"""The checksums that torch writes beside a checkpoint's values, and does not look at itself.

A bit that flips in the values changes nothing else in the file. Comparing means to read them once
more, so it is done apart, when all that is wanted has been read, and for that alone: of ZeRO's
files the optimizer's moments are two thirds.
"""

from __future__ import annotations

import zlib
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_tools.errors import UserError
from llava_tools.model.archive import Entries
from llava_tools.model.lazy import LazyTensor


@dataclass(frozen=True)
class _Opened:
    """An opened checkpoint: what it holds, and its tensors, each with the record it lies in."""

    entries: Entries
    tensors: Sequence[tuple[LazyTensor, str]]
    found: Any


_noted: ContextVar[list[_Opened] | None] = ContextVar("noted", default=None)


@contextmanager
def noting_checksums() -> Iterator[None]:
    """Note the checkpoints that are opened within this block (or function, as its decorator).

    A block within another one is a part of it.
    """
    if _noted.get() is not None:
        yield
        return
    token = _noted.set([])
    try:
        yield
    finally:
        _noted.reset(token)


def note_checksums(entries: Entries, tensors: Sequence[tuple[LazyTensor, str]], found: Any) -> None:
    """Note a checkpoint that was opened, where that is wanted; `found` names its tensors."""
    if (noted := _noted.get()) is not None:
        noted.append(_Opened(entries, tensors, found))


def compare_checksums() -> None:
    """Compare every record that values were read from, of the checkpoints that are noted.

    Raises UserError naming the file and a tensor of the first record that differs.
    """
    noted = _noted.get() or []
    read: dict[Path, set[int]] = {}
    for file in noted:  # perhaps twice the same, for the checkpoint itself and for its adapter
        read.setdefault(file.entries.path, set()).update(file.entries.bytes.places_read)
    for path, file in {file.entries.path: file for file in noted}.items():
        _compare(file, sorted(read[path]))


def _compare(file: _Opened, places: Sequence[int]) -> None:
    """Compare the records of a file in which values were read at these places, in order."""
    entries = file.entries
    for key in dict.fromkeys(key for _, key in file.tensors):
        start, size = entries.span(key)
        wanted = entries.crc(key)
        was_read = bisect_left(places, start) < bisect_left(places, start + size)
        if not wanted or not was_read:  # torch writes 0 where it is told to write none
            continue
        value = 0
        for block in entries.bytes.blocks(start, size):
            value = zlib.crc32(block, value)
        if value != wanted:
            held = [tensor for tensor, record in file.tensors if record == key]
            raise UserError(
                f"'{entries.path}' is damaged: the values of "
                f"{_name(file.found, held) or f'data/{key}'} have changed since they were saved.",
                "Copy it again; if it is the only copy, take an earlier checkpoint.",
            )


def _name(found: Any, tensors: Sequence[LazyTensor]) -> str:
    """Return the name under which a checkpoint holds one of these tensors, "" for none."""
    waiting, seen = deque([("", found)]), set()
    while waiting:
        name, value = waiting.popleft()
        if any(value is tensor for tensor in tensors):
            return name
        if id(value) in seen:  # containers may hold one another
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            waiting.extend((str(key), item) for key, item in value.items())
        elif isinstance(value, (list, tuple)):
            waiting.extend((f"{name}[{place}]", item) for place, item in enumerate(value))
    return ""
