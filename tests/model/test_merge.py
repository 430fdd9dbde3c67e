"""The merge rule, checked position by position on hand-made batches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llava_tools.constants import IGNORE_ID, IMAGE_TOKEN_ID
from llava_tools.model.merge import merge

IMG, IGN = IMAGE_TOKEN_ID, IGNORE_ID


@pytest.fixture
def embedding() -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(20, 4)


def test_features_stand_where_the_image_token_stood(embedding: nn.Embedding) -> None:
    ids = torch.tensor([[1, 5, IMG, 6, 7], [1, 8, 9, 0, 0]])
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    labels = torch.tensor([[IGN, IGN, IGN, 6, 7], [IGN, 8, 9, IGN, IGN]])
    features = torch.randn(1, 3, 4)
    merged = merge(embedding, ids, mask, labels, features)
    assert merged.embeds_BTD.shape == (2, 7, 4)
    assert torch.equal(merged.embeds_BTD[0, :2], embedding(torch.tensor([1, 5])))
    assert torch.equal(merged.embeds_BTD[0, 2:5], features[0])
    assert torch.equal(merged.embeds_BTD[0, 5:], embedding(torch.tensor([6, 7])))
    assert torch.equal(merged.embeds_BTD[1, :3], embedding(torch.tensor([1, 8, 9])))
    assert not merged.embeds_BTD[1, 3:].any()
    assert merged.labels_BT.tolist() == [
        [IGN, IGN, IGN, IGN, IGN, 6, 7],
        [IGN, 8, 9, IGN, IGN, IGN, IGN],
    ]
    assert merged.attention_mask_BT.tolist() == [[True] * 7, [True] * 3 + [False] * 4]


def test_images_are_taken_in_row_order(embedding: nn.Embedding) -> None:
    ids = torch.tensor([[IMG, 1, IMG], [2, 3, IMG]])
    features = torch.randn(3, 2, 4)
    merged = merge(embedding, ids, torch.ones_like(ids).bool(), torch.full_like(ids, IGN), features)
    assert torch.equal(merged.embeds_BTD[0, :2], features[0])
    assert torch.equal(merged.embeds_BTD[0, 3:], features[1])
    assert torch.equal(merged.embeds_BTD[1, 2:4], features[2])


def test_left_padding_is_dropped(embedding: nn.Embedding) -> None:
    ids = torch.tensor([[0, 0, 4, 5], [1, 2, 3, 4]])
    mask = torch.tensor([[False, False, True, True], [True] * 4])
    merged = merge(embedding, ids, mask, ids, None)
    assert torch.equal(merged.embeds_BTD[0, :2], embedding(torch.tensor([4, 5])))
    assert merged.labels_BT[0].tolist() == [4, 5, IGN, IGN]


def test_features_get_gradients(embedding: nn.Embedding) -> None:
    ids = torch.tensor([[1, IMG, 2]])
    features = torch.randn(1, 2, 4, requires_grad=True)
    merge(embedding, ids, ids != 99, ids, features).embeds_BTD.sum().backward()
    assert torch.equal(features.grad, torch.ones_like(features))


def test_a_count_mismatch_is_an_error(embedding: nn.Embedding) -> None:
    ids = torch.tensor([[1, IMG]])
    with pytest.raises(ValueError, match="1 image tokens in the batch, but 2 images"):
        merge(embedding, ids, ids != 99, ids, torch.randn(2, 2, 4))
