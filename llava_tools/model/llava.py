"""LlavaModel: a causal LM that reads images through a vision tower and a projector."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from llava_tools.constants import IGNORE_ID
from llava_tools.model.merge import Merged, merge
from llava_tools.model.projector import Projector
from llava_tools.model.vision import VisualEncoder


@dataclass(frozen=True)
class Output:
    """`loss_sum` is summed over `num_tokens` supervised tokens; divide by the global count."""

    logits: torch.Tensor | None
    loss_sum: torch.Tensor | None = None
    num_tokens: int = 0


class LlavaModel(nn.Module):
    """The three parts under the names of published checkpoints: llm, visual_encoder, projector.

    Without a visual encoder and projector it is the LLM alone (text-only training and chat).
    """

    def __init__(
        self,
        llm: Any,
        visual_encoder: VisualEncoder | None = None,
        projector: Projector | None = None,
        visual_select_layer: int = -2,
    ) -> None:
        super().__init__()
        if (visual_encoder is None) != (projector is None):
            raise ValueError("a visual encoder and a projector belong together")
        self.llm = llm
        self.visual_encoder = visual_encoder
        self.projector = projector
        self.visual_select_layer = visual_select_layer

    @property
    def device(self) -> torch.device:
        """The device of the LLM's embeddings, where inputs go."""
        device: torch.device = next(self.llm.get_input_embeddings().parameters()).device
        return device

    @property
    def num_patches(self) -> int:
        """Number of positions that an image takes in the LLM."""
        return self.visual_encoder.num_patches if self.visual_encoder is not None else 0

    def encode_images(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
        """Return projected features [N, P, D] of preprocessed images."""
        tower, projector = self.visual_encoder, self.projector
        if tower is None or projector is None:
            raise ValueError("this model has no vision tower")
        trains = torch.is_grad_enabled() and any(p.requires_grad for p in tower.parameters())
        with torch.set_grad_enabled(trains):
            pixels = pixels_NCHW.to(self.device, _dtype(tower))
            features = tower(pixels, self.visual_select_layer)
        projected: torch.Tensor = projector(features.to(_dtype(projector)))
        return projected

    def embed(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
    ) -> Merged:
        """Merge text and images ([N, 3, H, W] pixels, or their features [N, P, D]) for the LLM.

        A training batch without any image still runs one blank image through the tower and the
        projector, with weight zero: every rank then has the same graph, and ZeRO's reductions
        of the projector's gradients cannot wait for ever.
        """
        if features is None and pixel_values is not None and len(pixel_values):
            features = self.encode_images(pixel_values)
        if labels is None:
            labels = torch.full_like(input_ids, IGNORE_ID)
        embedding = self.llm.get_input_embeddings()
        merged = merge(embedding, input_ids, attention_mask, labels, features)
        if features is None and self.projector is not None and torch.is_grad_enabled():
            blank = self.encode_images(self._blank_image())
            tied = merged.embeds_BTD + (0.0 * blank.sum()).to(merged.embeds_BTD.dtype)
            merged = Merged(tied, merged.attention_mask_BT, merged.labels_BT)
        return merged

    def _blank_image(self) -> torch.Tensor:
        side = self.visual_encoder.config.image_size  # type: ignore[union-attr]
        return torch.zeros((1, 3, side, side), device=self.device)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
    ) -> Output:
        """Return the logits [B, T, V], or with `labels` the summed loss and no logits.

        `input_ids` [B, S] holds IMAGE_TOKEN_ID once an image, `attention_mask` [B, S] is bool,
        T counts the image features too. The loss is next-token cross-entropy in fp32, computed
        only in the columns where some row is supervised.
        """
        merged = self.embed(input_ids, attention_mask, pixel_values, labels, features)
        inputs = {"inputs_embeds": merged.embeds_BTD, "attention_mask": merged.attention_mask_BT}
        if labels is None:
            return Output(self.llm(**inputs, use_cache=False).logits)
        targets = F.pad(merged.labels_BT[:, 1:], (0, 1), value=IGNORE_ID)
        columns = (targets != IGNORE_ID).any(dim=0).nonzero().squeeze(1)
        if len(columns) == 0:  # nothing to learn here, yet the graph must exist on every rank
            columns = columns.new_zeros(1)
        logits = self.llm(**inputs, use_cache=False, logits_to_keep=columns).logits
        kept = targets[:, columns]
        loss = F.cross_entropy(
            logits.float().flatten(0, 1), kept.flatten(), ignore_index=IGNORE_ID, reduction="sum"
        )
        return Output(None, loss, int((kept != IGNORE_ID).sum()))

    def trained_state_dict(self) -> dict[str, torch.Tensor]:
        """Return what training changes, under the names of published checkpoints.

        The projector always; of a LoRA part the adapter alone; of a fully trained part every
        weight; of a frozen part nothing (the filter of XTuner's LLaVA checkpoints).
        """
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        whole = {
            part
            for part in ("llm", "visual_encoder")
            if any(n.startswith(f"{part}.") for n in trained)
            and not any(n.startswith(f"{part}.") and "lora_" in n for n in trained)
        }
        return {
            name: tensor
            for name, tensor in self.state_dict().items()
            if name in trained or name.split(".")[0] in whole | {"projector"}
        }


def _dtype(part: nn.Module) -> torch.dtype:
    return next(p.dtype for p in part.parameters() if p.is_floating_point())


def count_parameters(parameters: Iterable[nn.Parameter]) -> tuple[int, int]:
    """Return (all, trainable) numbers of parameters."""
    counts = [(p.numel(), p.numel() if p.requires_grad else 0) for p in parameters]
    return sum(c[0] for c in counts), sum(c[1] for c in counts)
