"""LazyTensor: a tensor on disk, known by shape and dtype, that is read when asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LazyTensor:
    """`read()` returns the tensor (often a view of the mapped file: copy before changing it)."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, start: int, stop: int) -> LazyTensor:
        """Return rows `start` to `stop` of the first dimension."""
        shape = (stop - start, *self.shape[1:])
        return LazyTensor(shape, self.dtype, lambda: self.read()[start:stop])

    def to(self, dtype: torch.dtype) -> LazyTensor:
        """Return the tensor cast to `dtype`."""
        if dtype == self.dtype:
            return self
        return LazyTensor(self.shape, dtype, lambda: self.read().to(dtype))

    @staticmethod
    def of(tensor: torch.Tensor) -> LazyTensor:
        """Wrap a tensor that is in memory already."""
        return LazyTensor(tuple(tensor.shape), tensor.dtype, lambda: tensor)

    @staticmethod
    def concat(parts: Sequence[LazyTensor]) -> LazyTensor:
        """Return `parts` laid one below the other along the first dimension."""
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        return LazyTensor(shape, parts[0].dtype, lambda: torch.cat([p.read() for p in parts]))
