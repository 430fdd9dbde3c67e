"""The arithmetic that a training step needs, counted from the model's shapes.

Counted are the matrix products that the mathematics asks for, two operations a multiply-add:

    linear layers     2 x inputs x outputs a position, forward
    attention         4 x heads x head size x pairs, forward; causal pairs of a row of n: n^2 / 2
    output head       at supervised positions alone
    vision tower      up to the layer that is used, its patch convolution included
    backward          as much again where a gradient passes through, as much again for weights that
                      train; attention twice its forward. Nothing where no gradient goes.

Embedding tables are lookups. Not counted: padding, recomputed activations, norms, activations, the
optimizer. So the model FLOPs utilisation is the same question for every way of computing a step:

    MFU = FLOPs counted here / (seconds x ranks x matmul rate measured on this device)

Input gradients of a part's first layers count also where nothing before them trains (LoRA on a
tower or on text alone: one layer's attention inputs too many).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from llava_tools.model.llava import LlavaModel

MEASURE_SECONDS = 0.2
SIDES = {"cpu": 1024, "cuda": 8192}  # of the measured matrices: large enough for the full rate
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True)
class Counts:
    """What a step computes on; `squares` is the sum of the squared row lengths."""

    tokens: float  # positions of the LLM
    squares: float
    images: float
    supervised: float


@dataclass(frozen=True)
class Cost:
    """FLOPs forward and backward."""

    forward: float = 0.0
    backward: float = 0.0

    @property
    def total(self) -> float:
        """Both directions."""
        return self.forward + self.backward

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.forward + other.forward, self.backward + other.backward)


@dataclass(frozen=True)
class Work:
    """What a part costs: by position, and by pair of positions that attend to each other.

    Multiply-adds a position: `applied` forward, `trained` in weights that train, `passed` in layers
    that pass gradients to their inputs. `attention` is layers x heads x head size.
    """

    applied: float = 0.0
    trained: float = 0.0
    passed: float = 0.0
    attention: float = 0.0
    differentiated: bool = False  # whether gradients pass through its attention
    windows: tuple[tuple[int, int], ...] = ()  # (window, layers) of sliding attention
    layers: int = 0

    def linear(self, positions: float) -> Cost:
        """Return the cost of the linear layers at so many positions."""
        return Cost(2 * self.applied * positions, 2 * (self.trained + self.passed) * positions)

    def attend(self, squares: float, tokens: float, causal: bool) -> Cost:
        """Return the cost of attention; a window bounds the pairs of a position."""
        pairs = squares / 2 if causal else squares
        short = sum(n * min(pairs, window * tokens) for window, n in self.windows)
        full = pairs * (self.layers - sum(n for _, n in self.windows))
        forward = 4 * self.attention / max(1, self.layers) * (short + full)
        return Cost(forward, 2 * forward if self.differentiated else 0.0)


@dataclass(frozen=True)
class Workload:
    """The costs of a model's parts."""

    llm: Work
    head: Work
    tower: Work
    projector: Work
    patches: int = 0  # features an image
    tower_positions: int = 0  # with the class token

    def parts(self, counts: Counts) -> dict[str, Cost]:
        """Return what each part needs for the given rows and images."""
        tower, seen = self.tower, counts.images * self.tower_positions
        squares = seen * self.tower_positions
        return {
            "llm": self.llm.linear(counts.tokens)
            + self.llm.attend(counts.squares, counts.tokens, causal=True),
            "head": self.head.linear(counts.supervised),
            "visual_encoder": tower.linear(seen) + tower.attend(squares, seen, causal=False),
            "projector": self.projector.linear(counts.images * self.patches),
        }

    def total(self, counts: Counts) -> float:
        """Return the FLOPs of forward and backward of all parts."""
        return sum(cost.total for cost in self.parts(counts).values())


def workload(model: LlavaModel) -> Workload:
    """Read off a model, which may be on the meta device, what its parts cost.

    Linear layers are counted as they are: no formula of a model family is needed, and adapters of
    LoRA and layers in 4 bits count by their shapes.
    """
    llm, head = _llm(model)
    if model.visual_encoder is None or model.projector is None:
        return Workload(llm, head, Work(), Work())
    tower: Any = model.visual_encoder
    trains = any(p.requires_grad for p in tower.parameters())
    # The first layer's inputs are the tower's features.
    projector = _linears(model.projector.modules(), passes=True)
    first = _linears(model.projector.model[:1], passes=not trains)
    work = Work(projector.applied, projector.trained, projector.passed - first.passed)
    patches = model.num_patches
    inner = getattr(tower, "vision_model", None) or tower.get_base_model().vision_model
    positions = patches + int(hasattr(inner.embeddings, "class_embedding"))
    return Workload(
        llm, head, _tower(model, inner, trains, patches / positions), work, patches, positions
    )


def _llm(model: LlavaModel) -> tuple[Work, Work]:
    llm, config = model.llm, model.llm.config
    passes = model.projector is not None or any(p.requires_grad for p in llm.parameters())
    output = llm.get_output_embeddings()
    of_head = {id(module) for module in output.modules()}
    body = _linears((m for m in llm.modules() if id(m) not in of_head), passes)
    body = _with_experts(body, llm, config, passes)
    layers = int(config.num_hidden_layers)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    work = Work(
        body.applied,
        body.trained,
        body.passed,
        attention=layers * config.num_attention_heads * size,
        differentiated=passes,
        windows=_windows(config, layers),
        layers=layers,
    )
    return work, _linears(_without_twins(output), passes)


def _without_twins(output: nn.Module) -> Sequence[nn.Module]:
    """The linear layers of an output head; of a copy that trains and its original the copy."""
    found = [m for m in output.modules() if isinstance(m, nn.Linear)]
    return [m for m in found if m.weight.requires_grad][:1] or found[:1]


def _tower(model: LlavaModel, inner: Any, trains: bool, share: float) -> Work:
    config, layer = inner.config, model.visual_select_layer
    blocks = list(inner.encoder.layers)
    used = blocks[: layer if layer >= 0 else len(blocks) + 1 + layer]
    linear = _linears((m for block in used for m in block.modules()), trains)
    stem = inner.embeddings.patch_embedding  # a convolution whose strides are its size
    patch = stem.in_channels * stem.out_channels * math.prod(stem.kernel_size)
    patch *= share  # at patches alone, not at the class token
    return Work(
        linear.applied + patch,
        linear.trained + (patch if stem.weight.requires_grad else 0.0),
        linear.passed,
        attention=len(used) * config.hidden_size,
        differentiated=trains,
        layers=len(used),
    )


def _linears(modules: Iterable[nn.Module], passes: bool) -> Work:
    applied = trained = 0
    for module in modules:
        if isinstance(module, (nn.Linear, Conv1D)):
            if isinstance(module, Conv1D):  # GPT-2's name of a linear layer
                size = module.nx * module.nf
            else:
                size = (
                    module.in_features * module.out_features
                )  # 4-bit weights are shaped otherwise
            applied += size
            trained += size if module.weight.requires_grad else 0
    return Work(applied, trained, applied if passes else 0)


def _with_experts(work: Work, llm: nn.Module, config: Any, passes: bool) -> Work:
    """Add experts kept as one tensor [experts, in, out], of which a token visits a few."""
    experts = next((int(n) for name in EXPERTS if (n := getattr(config, name, None))), 0)
    if not experts:
        return work
    share = config.num_experts_per_tok / experts
    shapes = [(getattr(p, "ds_shape", p.shape), p.requires_grad) for p in llm.parameters()]
    stacked = [(math.prod(s), trains) for s, trains in shapes if len(s) == 3 and s[0] == experts]
    size = sum(n for n, _ in stacked) * share
    trained = sum(n for n, trains in stacked if trains) * share
    return Work(
        work.applied + size, work.trained + trained, work.passed + (size if passes else 0.0)
    )


def _windows(config: Any, layers: int) -> tuple[tuple[int, int], ...]:
    """Return (window, number of layers) of sliding attention."""
    window = getattr(config, "sliding_window", None)
    if not window or not getattr(config, "use_sliding_window", True):
        return ()
    kinds = getattr(config, "layer_types", None)
    sliding = sum("sliding" in kind for kind in kinds) if kinds else layers
    return ((int(window), sliding),) if sliding else ()


@lru_cache
def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the FLOPs a second of a large matrix product; it takes about 0.2 seconds.

    The fastest of several counts: whatever else a machine does can only slow it down.
    """
    side = SIDES.get(device.type, 2048)
    generator = torch.Generator(device).manual_seed(0)  # leaves the global stream alone
    left, right = (
        torch.randn(side, side, generator=generator, device=device).to(dtype) for _ in range(2)
    )
    best, end = math.inf, time.perf_counter() + MEASURE_SECONDS
    while time.perf_counter() < end or best == math.inf:
        best = min(best, _time_product(left, right, device))
    return float(2 * side**3 / best)


def _time_product(left: torch.Tensor, right: torch.Tensor, device: torch.device) -> float:
    began = time.perf_counter()
    left @ right
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
