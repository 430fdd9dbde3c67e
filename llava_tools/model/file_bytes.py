"""A file read at positions, into memory of its own.

Mapping it would be shorter, but every page that is touched counts as this process's memory until
somebody else needs it: a conversion of 30 GB would look like one that holds 30 GB.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from llava_tools.errors import UserError
from llava_tools.model.lazy import BLOCK_BYTES, LazyTensor
from llava_tools.model.past_cache import Uncached, is_wanted


class FileBytes:
    """An open file; `places_read` are the offsets it was read at. Raises OSError as `open` does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb", buffering=0)
        self.size = os.fstat(self._file.fileno()).st_size
        self.places_read: set[int] = set()
        self._uncached: Uncached | None = None

    def read(self, offset: int, count: int) -> torch.Tensor:
        """Return `count` bytes from `offset` as uint8 [count].

        Raises UserError when the disk fails, and when the file ends before, as it does when it is
        changed meanwhile.
        """
        self.places_read.add(offset)
        if is_wanted() and count:
            if self._uncached is None:  # by number: its name may be another file's by now
                self._uncached = Uncached(Path(f"/proc/self/fd/{self._file.fileno()}"))
            if (found := self._uncached.read(offset, count)) is not None:
                return found
        buffer = torch.empty(count, dtype=torch.uint8)
        view = buffer.numpy().data
        done = 0
        while done < count:
            try:
                got = os.preadv(self._file.fileno(), [view[done:]], offset + done)
            except OSError as error:
                raise UserError(
                    f"'{self.path}' cannot be read at byte {offset + done}: {error.strerror}.",
                    "Its disk or network may be faulty; copy it from elsewhere.",
                ) from error
            if not got:
                raise UserError(
                    f"'{self.path}' became shorter while it was read.",
                    "Copy it again, and let nobody write to it meanwhile.",
                )
            done += got
        return buffer

    def blocks(self, offset: int, count: int) -> Iterator[memoryview]:
        """Yield `count` bytes from `offset`, block by block. Raises as `read`."""
        for start in range(offset, offset + count, BLOCK_BYTES):
            yield self.read(start, min(BLOCK_BYTES, offset + count - start)).numpy().data

    def tensor(self, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> LazyTensor:
        """Return the tensor whose values lie at `offset`, in row-major order."""

        def elements(start: int, stop: int) -> torch.Tensor:
            first, size = offset + start * dtype.itemsize, (stop - start) * dtype.itemsize
            return self.read(first, size).view(dtype)

        return LazyTensor.stored(shape, dtype, elements)
