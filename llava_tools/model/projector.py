"""The projector: an MLP from the vision tower's width to the LLM's."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN


class Projector(nn.Module):
    """`depth` linear layers with an activation between them.

    The layers sit in one Sequential named `model`, so the parameters are `model.0.weight`,
    `model.0.bias`, `model.2.weight`, ... as in XTuner's checkpoints.
    """

    def __init__(
        self,
        visual_hidden_size: int,
        llm_hidden_size: int,
        depth: int = 2,
        hidden_act: str = "gelu",
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.visual_hidden_size = visual_hidden_size
        self.llm_hidden_size = llm_hidden_size
        self.depth = depth
        self.hidden_act = hidden_act
        self.bias = bias
        layers: list[nn.Module] = [nn.Linear(visual_hidden_size, llm_hidden_size, bias=bias)]
        for _ in range(1, depth):
            layers += [ACT2FN[hidden_act], nn.Linear(llm_hidden_size, llm_hidden_size, bias=bias)]
        self.model = nn.Sequential(*layers)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Project [..., visual_hidden_size] to [..., llm_hidden_size]."""
        projected: torch.Tensor = self.model(features)
        return projected

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Projector:
        """Build from the fields of a `projector/config.json`; others are ignored."""
        fields = ("visual_hidden_size", "llm_hidden_size", "depth", "hidden_act", "bias")
        return cls(**{name: config[name] for name in fields if name in config})

    def to_config(self) -> dict[str, Any]:
        """Return the fields that XTuner writes into `projector/config.json`."""
        return {
            "model_type": "projector",
            "visual_hidden_size": self.visual_hidden_size,
            "llm_hidden_size": self.llm_hidden_size,
            "depth": self.depth,
            "hidden_act": self.hidden_act,
            "bias": self.bias,
        }
