"""What becomes of memory that is freed, on a CPU.

glibc gives large blocks back to the system, which clears each page of the next one anew: where
memory is virtual, seconds a GB. Work that frees and takes blocks of the same sizes keeps them.
"""

from __future__ import annotations

import ctypes
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


@cache
def libc() -> ctypes.CDLL:
    """Return the C library of this process."""
    return ctypes.CDLL(None)


@cache
def keep_freed_blocks(largest: int, kept: int) -> None:
    """Keep up to `kept` bytes that were freed, in blocks of at most `largest`; glibc alone does."""
    if (option := getattr(libc(), "mallopt", None)) is not None:
        option(_MMAP_THRESHOLD, largest)
        option(_TRIM_THRESHOLD, kept)
