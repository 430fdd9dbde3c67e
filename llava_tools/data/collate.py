"""From examples to one padded batch. Shapes: B rows, T positions, N images of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from llava_tools.constants import IGNORE_ID
from llava_tools.data.sample import Skip

PAD_ID = 0  # never read: the mask says where the padding is


class Example(NamedTuple):
    """One row, ready for the model: pixels [k, 3, H, W] for its k image tokens, in their order.

    With `skip` an image could not be read: all labels are masked, so that the row trains nothing.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    pixels: torch.Tensor
    row: int
    skip: Skip | None = None


class Batch(NamedTuple):
    """Rows padded on the right; `pixel_values` of all rows in row order (N may be 0)."""

    input_ids: torch.Tensor  # [B, T]
    labels: torch.Tensor  # [B, T], IGNORE_ID where not trained
    attention_mask: torch.Tensor  # [B, T], True on real positions
    pixel_values: torch.Tensor  # [N, 3, H, W]
    rows: tuple[int, ...] = ()  # the rows' indices in the dataset
    skips: tuple[Skip, ...] = ()  # rows whose images turned out to be unreadable

    def tensors(self, device: torch.device | str) -> dict[str, torch.Tensor]:
        """Return what the model's forward takes, on a device."""
        names = ("input_ids", "labels", "attention_mask", "pixel_values")
        return {name: getattr(self, name).to(device, non_blocking=True) for name in names}


def collate(examples: Sequence[Example]) -> Batch:
    """Pad ids, labels and mask to the longest row; lay all images end to end."""
    longest = max(len(example.input_ids) for example in examples)
    shape = len(examples), longest
    input_ids = torch.full(shape, PAD_ID, dtype=torch.long)
    labels = torch.full(shape, IGNORE_ID, dtype=torch.long)
    mask = torch.zeros(shape, dtype=torch.bool)
    for i, example in enumerate(examples):
        length = len(example.input_ids)
        input_ids[i, :length] = example.input_ids
        labels[i, :length] = example.labels
        mask[i, :length] = True
    return Batch(
        input_ids,
        labels,
        mask,
        torch.cat([example.pixels for example in examples]),
        tuple(example.row for example in examples),
        tuple(example.skip for example in examples if example.skip is not None),
    )
