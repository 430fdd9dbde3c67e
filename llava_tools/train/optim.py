"""The optimizer and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from llava_tools.config import Settings
from llava_tools.config.check import OPTIMIZERS
from llava_tools.errors import UserError

WARMUP_START = 1e-5  # factor of the first warm-up step, as in XTuner's LinearLR

# What is left of the peak after a share of the steps behind the warm-up.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda share: 0.5 * (1 + math.cos(math.pi * share)),
    "linear": lambda share: 1 - share,
    "constant": lambda share: 1.0,
}


def learning_rate(step: int, total_steps: int, settings: Settings) -> float:
    """Return the learning rate of optimizer step `step` (from 0) of `total_steps`.

    Linear warm-up from 1e-5 of the peak, then the `lr_schedule`, cosine and linear to zero:
    XTuner's LinearLR and CosineAnnealingLR, but counted in optimizer steps, so that 1 x 4 and 4 x 1
    accumulated micro-batches train alike.
    """
    warmup = warmup_steps(total_steps, settings)
    if step < warmup:
        share = step / max(1, warmup - 1)
        return settings.lr * (WARMUP_START + (1 - WARMUP_START) * share)
    share = (step - warmup) / max(1, total_steps - warmup)
    return settings.lr * SCHEDULES[settings.lr_schedule](min(1.0, share))


def warmup_steps(total_steps: int, settings: Settings) -> int:
    """Return the optimizer steps of the warm-up: `warmup_steps`, else a share of all steps."""
    if settings.warmup_steps is not None:
        return settings.warmup_steps
    return int(settings.warmup_ratio * total_steps)


def build_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Return the settings' optimizer over the parameters that train.

    torch's AdamW runs in one kernel for all of them. Raises UserError where bitsandbytes, which
    has the others, is not installed.
    """
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    shapes = {name: tuple(parameter.shape) for name, parameter in trained.items()}
    groups = [
        {"params": [trained[name] for name in names], "weight_decay": decay}
        for names, decay in decay_groups(shapes, settings)
    ]
    options: dict[str, Any] = {"lr": settings.lr, "betas": settings.betas}
    theirs = OPTIMIZERS[settings.optimizer]
    if theirs is None:
        return torch.optim.AdamW(groups, fused=True, **options)
    if find_spec("bitsandbytes") is None:
        raise UserError(
            f"optimizer = '{settings.optimizer}' needs bitsandbytes, which is not installed.",
            "Install it with: pip install 'llava-tools[quantization]'; or set optimizer = 'adamw', "
            "which trains the same with more memory.",
        )
    import bitsandbytes

    kind: Any = getattr(bitsandbytes.optim, theirs)
    optimizer: torch.optim.Optimizer = kind(groups, **options)
    return optimizer


def decay_groups(
    shapes: Mapping[str, Sequence[int]], settings: Settings
) -> list[tuple[list[str], float]]:
    """Return (names, weight decay) of each group of parameters, in the optimizer's order.

    Without `decay_bias_and_norm` no vector decays: biases, and the weights of norms, are vectors.
    """
    if settings.decay_bias_and_norm or not settings.weight_decay:
        return [(list(shapes), settings.weight_decay)]
    matrices = [name for name, shape in shapes.items() if len(shape) > 1]
    vectors = [name for name, shape in shapes.items() if len(shape) <= 1]
    return [pair for pair in ((matrices, settings.weight_decay), (vectors, 0.0)) if pair[0]]
