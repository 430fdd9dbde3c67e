"""LlavaModel: a causal LM that reads images through a vision tower and a projector."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from llava_tools.data.layout import lay_out
from llava_tools.model.attention import segment_arguments
from llava_tools.model.loss import (
    CrossEntropy,
    loss_in_pieces,
    pieces_needed,
    summed_cross_entropy,
)
from llava_tools.model.projector import Projector
from llava_tools.model.vision import VisualEncoder


@dataclass(frozen=True)
class Output:
    """`loss_sum` is summed over the supervised `targets` [K]; divide by the global count."""

    loss_sum: torch.Tensor
    targets: torch.Tensor


def pad_right(
    embeds_TD: torch.Tensor, bounds: torch.Tensor, longest: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows laid end to end as [B, longest, D], zeros behind each, with their bool mask."""
    rows = embeds_TD.split(bounds.diff().tolist())
    places = torch.arange(longest, device=embeds_TD.device)
    return pad_sequence(list(rows), batch_first=True), places < bounds.diff()[:, None]


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
        self.padding_free = False  # `kernels.choose_kernels` says where these two may be on
        self.plain_head = False  # logits are the output embedding of the hidden states, no more
        self.ranks_gather = False  # weights come from all ranks: all call each module equally often
        self.pieces = 0  # of the logits; 0: as many as they need
        self.cross_entropy: CrossEntropy = summed_cross_entropy
        forward = inspect.signature(llm.forward).parameters
        self.keeps_logits = "logits_to_keep" in forward

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
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._tower_trains()):
            pixels = pixels_NCHW.to(self.device, _dtype(tower))
            features = tower(pixels, self.visual_select_layer)
        projected: torch.Tensor = projector(features.to(_dtype(projector)))
        return projected

    def _tower_trains(self) -> bool:
        tower = self.visual_encoder
        return tower is not None and any(p.requires_grad for p in tower.parameters())

    def embed(
        self,
        text_ids: torch.Tensor,
        source: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the LLM's input [T, D] for rows laid end to end (see `layout.Layout`).

        Images come as [N, 3, H, W] pixels or as their features [N, P, D].
        """
        if features is None and pixel_values is not None and len(pixel_values):
            features = self.encode_images(pixel_values)
        tie = None  # made before the text, as features are: ranks gather weights in one order
        if features is None and self.projector is not None and torch.is_grad_enabled():
            tie = 0.0 * self._without_image()
        text: torch.Tensor = self.llm.get_input_embeddings()(text_ids)
        if features is not None:
            rows = features.reshape(-1, features.shape[-1]).to(text.dtype)
            return torch.cat([text, rows])[source]
        return (text if tie is None else text + tie.to(text.dtype))[source]

    def _without_image(self) -> torch.Tensor:
        """Return a number that ties a batch without images to the projector, with weight zero.

        Every rank then has the same graph, and ZeRO's reductions of the projector's gradients
        cannot wait for ever. A tower that trains, or whose weights are gathered from all ranks,
        runs on a blank image for the same reason.
        """
        config, projector = self.visual_encoder.config, self.projector  # type: ignore[union-attr]
        if self.ranks_gather or self._tower_trains():
            side = config.image_size
            return self.encode_images(torch.zeros((1, 3, side, side), device=self.device)).sum()
        blank = torch.zeros(
            (1, config.hidden_size),
            device=self.device,
            dtype=_dtype(projector),  # type: ignore[arg-type]
        )
        result: torch.Tensor = projector(blank).sum()  # type: ignore[misc]
        return result

    def forward(
        self,
        text_ids: torch.Tensor,
        source: torch.Tensor,
        position_ids: torch.Tensor,
        bounds: torch.Tensor,
        predictors: torch.Tensor,
        targets: torch.Tensor,
        longest: int,
        pixel_values: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
    ) -> Output:
        """Return the summed loss of rows laid end to end (see `layout.Layout`).

        The loss is next-token cross-entropy in fp32; logits are computed where it is taken alone.
        """
        embeds_TD = self.embed(text_ids, source, pixel_values, features)
        pieces = self.pieces or pieces_needed(len(targets), self.llm.config.vocab_size)
        if self.padding_free and self.plain_head and pieces > 1:
            rows = self._in_rows(embeds_TD, position_ids, bounds, longest)
            hidden_TD = self.llm.get_decoder()(**rows).last_hidden_state[0]
            head, hidden_KD = self.llm.get_output_embeddings(), hidden_TD[predictors]
            loss = loss_in_pieces(head, hidden_KD, targets, self.cross_entropy, pieces)
            return Output(loss, targets)
        run = self.end_to_end if self.padding_free else self.padded
        logits_KV = run(embeds_TD, position_ids, bounds, predictors, longest)
        return Output(self.cross_entropy(logits_KV, targets), targets)

    def end_to_end(
        self,
        embeds_TD: torch.Tensor,
        position_ids: torch.Tensor,
        bounds: torch.Tensor,
        predictors: torch.Tensor,
        longest: int,
    ) -> torch.Tensor:
        """Return logits [K, V]; attention stays within the rows (see `attention`)."""
        rows = self._in_rows(embeds_TD, position_ids, bounds, longest)
        logits: torch.Tensor = self.llm(**rows, logits_to_keep=predictors).logits
        return logits[0]

    def hidden(
        self,
        embeds_TD: torch.Tensor,
        position_ids: torch.Tensor,
        bounds: torch.Tensor,
        longest: int,
    ) -> torch.Tensor:
        """Return the last hidden states [T, D], after the final norm, of rows laid end to end."""
        decoder = self.llm.get_decoder()
        if self.padding_free:
            rows = self._in_rows(embeds_TD, position_ids, bounds, longest)
            states: torch.Tensor = decoder(**rows).last_hidden_state[0]
            return states
        padded_BTD, mask_BT = pad_right(embeds_TD, bounds, longest)
        batch = {"inputs_embeds": padded_BTD, "attention_mask": mask_BT, "use_cache": False}
        padded: torch.Tensor = decoder(**batch).last_hidden_state
        return padded[mask_BT]

    def _in_rows(
        self,
        embeds_TD: torch.Tensor,
        position_ids: torch.Tensor,
        bounds: torch.Tensor,
        longest: int,
    ) -> dict[str, Any]:
        """Return the LLM's arguments for rows laid end to end."""
        return {
            "inputs_embeds": embeds_TD[None],
            # A mask of four dimensions is passed through; of none, the model builds one of T x T.
            "attention_mask": bounds.new_zeros((1, 1, 1, 1)),
            "position_ids": position_ids[None],
            "use_cache": False,
            **segment_arguments(bounds, longest),
        }

    def padded(
        self,
        embeds_TD: torch.Tensor,
        position_ids: torch.Tensor,
        bounds: torch.Tensor,
        predictors: torch.Tensor,
        longest: int,
    ) -> torch.Tensor:
        """Return logits [K, V] of a batch padded on the right, for models that know no other."""
        padded_BTD, mask_BT = pad_right(embeds_TD, bounds, longest)
        rows = torch.bucketize(predictors, bounds[1:], right=True)
        columns = position_ids[predictors]
        inputs = {"inputs_embeds": padded_BTD, "attention_mask": mask_BT, "use_cache": False}
        if not self.keeps_logits:
            whole: torch.Tensor = self.llm(**inputs).logits
            return whole[rows, columns]
        kept = columns.unique()
        logits: torch.Tensor = self.llm(**inputs, logits_to_keep=kept).logits
        return logits[rows, torch.searchsorted(kept, columns)]

    def logits(
        self,
        input_ids: Sequence[int],
        pixel_values: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the logits [T, V] of one row; the LLM runs as transformers runs it."""
        layout = lay_out([np.array(input_ids)], self.num_patches)
        places = layout.text_ids.to(self.device), layout.source.to(self.device)
        embeds_TD = self.embed(*places, pixel_values, features)
        logits: torch.Tensor = self.llm(inputs_embeds=embeds_TD[None], use_cache=False).logits
        return logits[0]

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
