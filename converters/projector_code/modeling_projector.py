"""A LLaVA projector, for `AutoModel` with trusted remote code."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from .configuration_projector import ProjectorConfig  # noqa: TID251


class ProjectorModel(PreTrainedModel):
    """Projects [..., visual_hidden_size] to [..., llm_hidden_size]."""

    config_class = ProjectorConfig
    base_model_prefix = "model"

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__(config)
        width = config.llm_hidden_size
        layers: list[nn.Module] = [nn.Linear(config.visual_hidden_size, width, bias=config.bias)]
        for _ in range(config.depth - 1):
            layers += [ACT2FN[config.hidden_act], nn.Linear(width, width, bias=config.bias)]
        self.model = nn.Sequential(*layers)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the projected features."""
        projected: torch.Tensor = self.model(x)
        return projected
