"""Configuration of a LLaVA projector, for `AutoConfig` with trusted remote code."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class ProjectorConfig(PretrainedConfig):  # type: ignore[misc, unused-ignore]
    """An MLP of `depth` linear layers from the vision tower's width to the LLM's."""

    model_type = "projector"

    def __init__(
        self,
        visual_hidden_size: int = 1024,
        llm_hidden_size: int = 4096,
        depth: int = 2,
        hidden_act: str = "gelu",
        bias: bool = True,
        **kwargs: Any,
    ) -> None:
        self.visual_hidden_size = visual_hidden_size
        self.llm_hidden_size = llm_hidden_size
        self.depth = depth
        self.hidden_act = hidden_act
        self.bias = bias
        super().__init__(**kwargs)
