"""LoRA adapters in a checkpoint, merged into the weights that they were trained on.

The base is read as it was published, so an adapter trained on a quantized base (QLoRA) is merged
into the unquantized weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch

from llava_tools.errors import UserError
from llava_tools.model.lazy import LazyTensor
from llava_tools.model.tables import VISION

if TYPE_CHECKING:
    from llava_tools.config import Settings

_ADAPTED = re.compile(r"(llm|visual_encoder)(?:\.vision_model)?\.base_model\.model\.(.+)")
_FACTOR = re.compile(r"(.+)\.lora_([AB])\.default\.weight")
# What is trained beside the factors: a copy of a module of modules_to_save, and biases.
_COPY = re.compile(r"(.+)\.modules_to_save\.default(|\..+)\.(weight|bias)")
_BIAS = re.compile(r"(.+?)(?:\.base_layer)?\.bias")
_DEFAULT_ALPHA = 8  # peft's
_HINT = "Give the config of the run that wrote the checkpoint."

Factors = Mapping[str, LazyTensor]  # A [r, in] and B [out, r] of one weight


def merge_lora(
    base: Mapping[str, LazyTensor],
    trained: Mapping[str, LazyTensor],
    settings: Settings,
    where: str,
) -> dict[str, LazyTensor]:
    """Return `trained` with merged weights W + alpha / r * B A (in fp32) in place of adapters.

    Biases and modules that were trained as a whole stand under the names of the base's.

    Raises UserError when adapter and settings do not belong together, or for another kind of it.
    """
    merged = {name: tensor for name, tensor in trained.items() if not _ADAPTED.fullmatch(name)}
    merged |= whole_of(trained)
    factors = factors_of(trained, where)
    _check_settings(factors, settings, where)
    for target, pair in factors.items():
        lora = settings.llm_lora if target.startswith("llm.") else settings.visual_encoder_lora
        alpha = float((lora or {}).get("lora_alpha", _DEFAULT_ALPHA))
        rank = rank_of(pair)
        merged[target] = merge_factors(base, target, pair, alpha / rank, where, _HINT)
    return merged


def factors_of(trained: Mapping[str, LazyTensor], where: str) -> dict[str, Factors]:
    """Return the factors in a checkpoint by the canonical name of the weight that they change.

    Raises UserError for an adapter of another kind than LoRA on linear layers.
    """
    factors: dict[str, dict[str, LazyTensor]] = {}
    for name, tensor in trained.items():
        adapted = _ADAPTED.fullmatch(name)
        if adapted is None:
            continue
        factor = _FACTOR.fullmatch(adapted[2])
        if factor is None and _whole(adapted[2]):
            continue
        if factor is None:
            raise UserError(
                f"{where} has a kind of adapter that cannot be merged: {name}.",
                "Merge it with the tool that trained it, and give the merged model.",
            )
        factors.setdefault(_target(adapted[1], factor[1]), {})[factor[2]] = tensor
    return dict(factors)


def whole_of(trained: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return what a LoRA run trained as a whole (modules_to_save, biases), by canonical name."""
    whole = {}
    for name, tensor in trained.items():
        adapted = _ADAPTED.fullmatch(name)
        if adapted and (found := _whole(adapted[2])):
            whole[_target(adapted[1], *found)] = tensor
    return whole


def _whole(name: str) -> tuple[str, str] | None:
    """Return the module and the kind of a weight that was trained as a whole, None for others."""
    if copy := _COPY.fullmatch(name):  # of a module, or of one within it
        return copy[1] + copy[2], copy[3]
    bias = _BIAS.fullmatch(name)
    return (bias[1], "bias") if bias else None


def adapted_weights(names: Iterable[str]) -> set[str]:
    """Return the canonical names of the weights that the factors under these names change."""
    adapted = [match for name in names if (match := _ADAPTED.fullmatch(name))]
    pairs = [(match[1], _FACTOR.fullmatch(match[2])) for match in adapted]
    return {_target(part, factor[1]) for part, factor in pairs if factor}


def _target(part: str, path: str, kind: str = "weight") -> str:
    prefix = "llm." if part == "llm" else VISION
    return f"{prefix}{path.removeprefix('vision_model.')}.{kind}"


def _check_settings(
    factors: Mapping[str, Mapping[str, LazyTensor]], settings: Settings, where: str
) -> None:
    for part, lora in (
        ("llm", settings.llm_lora),
        ("visual_encoder", settings.visual_encoder_lora),
    ):
        held = any(target.startswith(f"{part}.") for target in factors)
        if held != bool(lora):
            what = "holds an adapter, but the config has no" if held else "lacks the adapter of"
            raise UserError(
                f"{where} {what} {part}_lora.",
                _HINT,
            )


def rank_of(pair: Factors) -> int:
    """Return the rank of an adapter, of which one half may be missing; never 0."""
    return math.prod(pair["A"].shape[:1] if "A" in pair else pair["B"].shape[-1:]) or 1


def merge_factors(
    base: Mapping[str, LazyTensor],
    target: str,
    pair: Factors,
    scale: float,
    where: str,
    hint: str,
) -> LazyTensor:
    """Return W + scale * B A of one weight of `base`, computed in fp32 when it is read.

    Raises UserError (with `hint`) when a factor is missing, or does not fit the weight.
    """
    if set(pair) != {"A", "B"} or len(pair["A"].shape) != 2 or len(pair["B"].shape) != 2:
        raise UserError(
            f"{where} holds only half of the adapter of {target}.", "It is damaged; copy it again."
        )
    down, up = pair["A"], pair["B"]
    if target not in base or base[target].shape != (*up.shape[:1], *down.shape[1:]):
        raise UserError(f"{where}: the adapter of {target} does not fit the base model.", hint)
    weight = base[target]

    def read() -> torch.Tensor:
        delta = up.read().float() @ down.read().float()
        return delta.mul_(scale).add_(weight.read())  # in place: the largest layers are large

    return LazyTensor(weight.shape, torch.float32, read)
