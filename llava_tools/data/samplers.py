"""The order of rows in an epoch, as a pure function of the seed and the epoch (XTuner's orders).

Being pure, it costs nothing to resume: a run that stopped in the middle computes the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from llava_tools.errors import UserError, did_you_mean

Order = npt.NDArray[np.int64]

MAX_GROUP_BATCHES = 50  # XTuner's mega-batch: so many global batches are sorted by length together


def epoch_order(
    sampler: str,
    lengths: Sequence[int] | npt.NDArray[Any],
    seed: int,
    epoch: int,
    batch_size: int,
    accumulative_counts: int,
    world_size: int,
) -> Order:
    """Return the row indices of an epoch for all ranks together; rank r takes `[r::world_size]`.

    Every row comes once; a few come again so that all ranks get equally many. `lengths` are
    signed: positive for rows with images, negative for those without. `sampler` is

    - `shuffle`: mmengine's DefaultSampler. One permutation.
    - `length_grouped`: XTuner's LengthGroupedSampler. Rows of one modality and of similar length
      share an optimizer step; the longest row of all comes first, so that memory runs out early.

    Raises UserError for another name.
    """
    if sampler not in SAMPLERS:
        raise UserError(f"Unknown sampler '{sampler}'.", did_you_mean(sampler, SAMPLERS))
    signed = np.asarray(lengths, dtype=np.int64)
    if not len(signed) or not signed.all():
        raise ValueError("an epoch needs rows, and each row needs a length")
    generator = torch.Generator().manual_seed(seed + epoch)
    return SAMPLERS[sampler](signed, generator, batch_size * accumulative_counts, world_size)


def _shuffle(lengths: Order, generator: torch.Generator, per_device: int, world: int) -> Order:
    order = _permutation(len(lengths), generator)
    return np.resize(order, math.ceil(len(order) / world) * world)


def _length_grouped(
    lengths: Order, generator: torch.Generator, per_device: int, world: int
) -> Order:
    total_batch = per_device * world
    batches = max(1, min(len(lengths) // (total_batch * 4), MAX_GROUP_BATCHES))
    order = _grouped(lengths, batches * total_batch, generator)
    per_rank = math.ceil(len(lengths) / world / per_device) * per_device
    return np.resize(order, per_rank * world)


def _grouped(lengths: Order, size: int, generator: torch.Generator) -> Order:
    """Return all indices: groups of `size`, each longest first, the longest row at the front."""
    positive, negative = np.flatnonzero(lengths > 0), np.flatnonzero(lengths < 0)
    if not len(positive) or not len(negative):
        groups = _groups(np.arange(len(lengths)), lengths, size, generator)
    else:
        with_image = _groups(positive, lengths[positive], size, generator)
        text_only = _groups(negative, -lengths[negative], size, generator)
        rest = np.concatenate([with_image.pop(), text_only.pop()])
        full = with_image + text_only
        groups = [full[i] for i in _permutation(len(full), generator)]
        groups.append(rest[_longest_first(np.abs(lengths[rest]))])
    longest = int(np.argmax([abs(lengths[group[0]]) for group in groups]))
    groups[0][0], groups[longest][0] = groups[longest][0], groups[0][0]
    return np.concatenate(groups)


def _groups(indices: Order, lengths: Order, size: int, generator: torch.Generator) -> list[Order]:
    """Permute, cut into groups (the last may be short), sort each by length, longest first."""
    order = _permutation(len(indices), generator)
    whole = len(order) // size * size
    blocks = order[:whole].reshape(-1, size)
    blocks = np.take_along_axis(blocks, _longest_first(lengths[blocks]), axis=1)
    tail = order[whole:]
    groups = [indices[block] for block in blocks]
    return [*groups, indices[tail[_longest_first(lengths[tail])]]] if len(tail) else groups


def _longest_first(lengths: Order) -> Order:
    """Indices by falling length along the last axis; equal lengths stay in their order."""
    return np.argsort(-lengths, axis=-1, kind="stable")


def _permutation(count: int, generator: torch.Generator) -> Order:
    return np.asarray(torch.randperm(count, generator=generator).numpy(), dtype=np.int64)


SAMPLERS: dict[str, Callable[[Order, torch.Generator, int, int], Order]] = {
    "shuffle": _shuffle,
    "length_grouped": _length_grouped,
}
