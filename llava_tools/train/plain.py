"""The plain engine: one process with torch alone, on a CPU or one GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from llava_tools.config import Settings
from llava_tools.data.collate import Batch
from llava_tools.model.llava import LlavaModel, Output
from llava_tools.train.optim import build_optimizer


class PlainEngine:
    """Parameters that train are fp32; with dtype bf16 the arithmetic runs under autocast."""

    rank = 0
    world_size = 1

    def __init__(self, model: LlavaModel, settings: Settings, device: torch.device) -> None:
        self.device = device
        self.model = place(model, settings, device)
        self.optimizer = build_optimizer(model, settings)
        self.max_norm = settings.max_norm
        self.autocast = settings.dtype == "bf16"

    def forward(self, batch: Batch) -> Output:
        """Return the summed loss of one micro-batch."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            output: Output = self.model(**batch.tensors(self.device))
        return output

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Add the gradients of `loss`."""
        loss.backward()

    def step(self, lr: float) -> float:
        """Clip, update at learning rate `lr`, clear; return the gradient norm before clipping."""
        (group,) = self.optimizer.param_groups
        limit = self.max_norm or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(group["params"], limit)
        group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def sum(self, values: list[float]) -> list[float]:
        """Return the values: there is one rank."""
        return values

    def save(self, path: Path, meta: dict[str, Any]) -> None:
        """Write one file that `torch.load(weights_only=True)` reads."""
        state = {
            "meta": meta,
            "state_dict": self.model.trained_state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        torch.save(state, path)

    def load(self, path: Path) -> None:
        """Take up weights and optimizer state from `path`."""
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        target = self.model.state_dict()
        with torch.no_grad():
            for name, tensor in state["state_dict"].items():
                target[name].copy_(tensor)
        self.optimizer.load_state_dict(state["optimizer"])

    def barrier(self) -> None:
        """Nothing to wait for."""

    def close(self) -> None:
        """Nothing to leave."""


def place(model: LlavaModel, settings: Settings, device: torch.device) -> LlavaModel:
    """Move the model to `device`: what trains in fp32, what is frozen in the settings' dtype."""
    frozen = torch.bfloat16 if settings.dtype == "bf16" else torch.float32
    for parameter in model.parameters():
        kind = torch.float32 if parameter.requires_grad else frozen
        parameter.data = parameter.data.to(device, kind)
    return model.to(device)
