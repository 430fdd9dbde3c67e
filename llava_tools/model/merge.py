"""Image features take the places of their image tokens in the LLM's input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from llava_tools.constants import IGNORE_ID, IMAGE_TOKEN_ID


@dataclass(frozen=True)
class Merged:
    """What the LLM is called with; right-padded to the longest row."""

    embeds_BTD: torch.Tensor
    attention_mask_BT: torch.Tensor  # bool, True on real positions
    labels_BT: torch.Tensor  # IGNORE_ID on image and padding positions


def merge(
    embedding: nn.Module,
    input_ids_BS: torch.Tensor,
    attention_mask_BS: torch.Tensor,
    labels_BS: torch.Tensor,
    features_NPD: torch.Tensor | None,
) -> Merged:
    """Replace the n-th image token, counted row by row, by the P features of image n.

    Every other token keeps its embedding and its order; padding (mask False) is dropped first and
    put back on the right. Labels of image positions are IGNORE_ID.
    (The rule of LLaVA's prepare_inputs_labels_for_multimodal, without its truncation.)
    """
    patches = 0 if features_NPD is None else features_NPD.shape[1]
    images = int(((input_ids_BS == IMAGE_TOKEN_ID) & attention_mask_BS).sum())
    given = 0 if features_NPD is None else features_NPD.shape[0]
    if images != given:
        raise ValueError(f"{images} image tokens in the batch, but {given} images")
    is_image = input_ids_BS == IMAGE_TOKEN_ID
    widths = torch.where(is_image, patches, 1) * attention_mask_BS
    ends = widths.cumsum(dim=1)
    lengths = ends[:, -1]
    total = int(lengths.max())
    rows, columns = torch.nonzero(attention_mask_BS, as_tuple=True)
    starts = (ends - widths)[rows, columns]
    text = ~is_image[rows, columns]
    batch = input_ids_BS.shape[0]
    ids = input_ids_BS.new_zeros((batch, total))
    labels = labels_BS.new_full((batch, total), IGNORE_ID)
    is_text = torch.zeros((batch, total), dtype=torch.bool, device=ids.device)
    where = rows[text], starts[text]
    ids[where] = input_ids_BS[rows[text], columns[text]]
    labels[where] = labels_BS[rows[text], columns[text]]
    is_text[where] = True
    mask = torch.arange(total, device=ids.device) < lengths[:, None]
    embeds = embedding(ids) * mask[..., None]
    if features_NPD is not None and given:
        flat = features_NPD.reshape(-1, features_NPD.shape[-1]).to(embeds.dtype)
        # Row-major order of the free places is exactly the order of the images in the batch.
        embeds = embeds.masked_scatter((mask & ~is_text)[..., None], flat)
    return Merged(embeds, mask, labels)
