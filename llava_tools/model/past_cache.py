"""Reading past the page cache what passes through once: a conversion's gigabytes.

Kept there, they push out what others keep in it, and where memory is virtual each new page of it
costs more than the disk does (2 seconds a GB, seen in a virtual machine, against 0.1). What others
have read already is taken from memory.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

import numpy as np
import torch

from llava_tools.model.allocator import keep_freed_blocks, libc

ALIGNED = 4096  # of places, sizes and addresses: more than any disk asks for
DIRECT = getattr(os, "O_DIRECT", 0)

_wanted: ContextVar[bool] = ContextVar("past_cache", default=False)


@contextmanager
def past_cache() -> Iterator[None]:
    """Read files past the page cache within this block (or function, as its decorator)."""
    keep_freed_blocks(4 * 2**20, 32 * 2**20)
    token = _wanted.set(True)
    try:
        yield
    finally:
        _wanted.reset(token)


def is_wanted() -> bool:
    """Tell whether the caller reads past the page cache, and the system knows how."""
    return _wanted.get() and bool(DIRECT)


def aligned(size: int) -> torch.Tensor:
    """Return memory that a disk can write to or read from by itself: uint8 [size]."""
    raw = torch.empty(size + ALIGNED, dtype=torch.uint8)
    start = -raw.data_ptr() % ALIGNED
    return raw[start : start + size]


class Uncached:
    """Reads of one file from the disk, which leave the page cache as it is."""

    def __init__(self, path: Path) -> None:
        self._direct = None
        # ValueError: an empty file. OSError: file systems in memory know no other way.
        with suppress(OSError, ValueError):
            file = open(path, "rb", buffering=0, opener=_open_direct)  # noqa: SIM115
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            self._mapped, self._direct = np.frombuffer(mapped, np.uint8), file
            self._start = self._mapped.ctypes.data

    def read(self, offset: int, count: int) -> torch.Tensor | None:
        """Return `count` bytes from `offset` as uint8 [count].

        None when they are in memory, when there are fewer, and where the file system
        cannot do it: to be read in the usual way.
        """
        first = offset - offset % ALIGNED
        need = offset + count - first
        if self._direct is None or self._in_memory(first, need):
            return None
        buffer, done = aligned(-(-need // ALIGNED) * ALIGNED), 0
        view = buffer.numpy().data
        while done < need:
            try:
                got = os.preadv(self._direct.fileno(), [view[done:]], first + done)
            except OSError:
                got = 0
            if not got:
                return None
            done += got
        found = buffer[offset - first : need]
        return found if (offset - first) % 8 == 0 else found.clone()  # views need their alignment

    def _in_memory(self, first: int, count: int) -> bool:
        """Tell whether both ends of these bytes are in the page cache, which nobody touches."""
        found = ctypes.c_ubyte()
        for place in (first, first + count - 1):
            page = self._start + place - place % mmap.PAGESIZE
            if libc().mincore(ctypes.c_size_t(page), ctypes.c_size_t(1), ctypes.byref(found)):
                return True
            if not found.value & 1:
                return False
        return True


def _open_direct(path: str, flags: int) -> int:
    return os.open(path, flags | DIRECT)
