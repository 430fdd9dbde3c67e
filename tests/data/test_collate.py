"""Batches: right padding that no token can be mistaken for, images in row order."""

from __future__ import annotations

import torch

from llava_tools.constants import IGNORE_ID
from llava_tools.data.collate import Batch, Example, collate
from llava_tools.data.sample import Skip


def example(ids: list[int], images: int, row: int, skip: Skip | None = None) -> Example:
    pixels = torch.full((images, 3, 2, 2), float(row))
    return Example(torch.tensor(ids), torch.tensor(ids) + 1, pixels, row, skip)


def test_rows_are_padded_and_images_laid_end_to_end() -> None:
    skip = Skip("x, row 3", "3", "broken_image", "d")
    batch = collate([example([5, 0], 1, 7), example([1, 2, 3], 0, 2, skip), example([0], 2, 3)])
    assert batch.input_ids.tolist() == [[5, 0, 0], [1, 2, 3], [0, 0, 0]]
    assert batch.labels.tolist() == [
        [6, 1, IGNORE_ID],
        [2, 3, 4],
        [1, IGNORE_ID, IGNORE_ID],
    ]
    # An id that equals the padding is no padding.
    assert batch.attention_mask.tolist() == [
        [True, True, False],
        [True, True, True],
        [True, False, False],
    ]
    assert batch.attention_mask.dtype == torch.bool
    assert batch.pixel_values[:, 0, 0, 0].tolist() == [7.0, 3.0, 3.0]
    assert (batch.rows, batch.skips) == ((7, 2, 3), (skip,))


def test_a_batch_without_images_keeps_their_shape() -> None:
    batch = collate([example([1], 0, 0), example([2, 3], 0, 1)])
    assert batch.pixel_values.shape == (0, 3, 2, 2)


def test_a_loader_passes_batches_on_as_they_are() -> None:
    rows = [example([i + 1] * (i + 1), i % 2, i) for i in range(5)]
    loader = torch.utils.data.DataLoader(rows, batch_size=2, collate_fn=collate)  # type: ignore
    batches = list(loader)
    assert all(isinstance(batch, Batch) for batch in batches)
    assert [batch.rows for batch in batches] == [(0, 1), (2, 3), (4,)]


def test_the_tensors_are_what_the_model_takes() -> None:
    tensors = collate([example([1, 2], 1, 0)]).tensors("cpu")
    assert set(tensors) == {"input_ids", "labels", "attention_mask", "pixel_values"}
