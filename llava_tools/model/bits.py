"""A finished LLM in 4 or 8 bits, packed as it is read, and LoRA factors over it."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from typing import Any

import torch
from torch import nn

from llava_tools.config.settings import QuantizationSpec
from llava_tools.model.adapters import Adapter
from llava_tools.model.quantization import quantized_loading

log = logging.getLogger(__name__)


class Packer:
    """Packs the linear layers of an LLM, all but the output head, as their weights arrive.

    So the whole model never lies in memory unpacked. `options` are those of `QuantizationSpec`;
    matrix products run in `dtype`. Raises UserError where bitsandbytes is not installed.
    """

    def __init__(
        self, llm: Any, options: dict[str, Any], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.config = quantized_loading(options, dtype)["quantization_config"]
        self.llm, self.device = llm, device
        head = llm.get_output_embeddings()
        self.linear = {
            f"llm.{name}.weight": name
            for name, module in llm.named_modules()
            if isinstance(module, nn.Linear) and module is not head
        }

    def __call__(self, name: str) -> None:
        """Pack the layer whose weight has just been filled in, if it is one to pack."""
        if name in self.linear:
            path = self.linear[name]
            self.llm.set_submodule(path, self._packed(self.llm.get_submodule(path)))

    def _packed(self, layer: nn.Linear) -> nn.Module:
        bnb: Any = import_module("bitsandbytes.nn")
        sizes = layer.in_features, layer.out_features, layer.bias is not None
        weight, options = layer.weight.data, self.config
        if options.load_in_8bit:
            packed = bnb.Linear8bitLt(*sizes, has_fp16_weights=False, threshold=6.0, device="meta")
            packed.weight = bnb.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        else:
            kind, double = options.bnb_4bit_quant_type, options.bnb_4bit_use_double_quant
            compute = options.bnb_4bit_compute_dtype
            packed = bnb.Linear4bit(*sizes, compute, double, kind, device="meta")
            packed.weight = bnb.Params4bit(
                weight,
                requires_grad=False,
                quant_type=kind,
                compress_statistics=double,
                module=packed,
            )
        packed.bias = layer.bias
        moved: nn.Module = packed.to(self.device)
        return moved.requires_grad_(False)


def warn_of_other_bits(adapter: Adapter, options: Mapping[str, Any]) -> None:
    """Say so where an LLM is packed otherwise than the one that its adapter was trained beside."""
    trained = adapter.notes.get("quantization")
    if isinstance(trained, Mapping) and _kind(trained) != _kind(options):
        log.warning(
            "'%s' was trained beside weights in %s; they are packed in %s now.",
            *(adapter.folder, _kind(trained), _kind(options)),
        )


def _kind(options: Mapping[str, Any]) -> str:
    spec = asdict(QuantizationSpec()) | dict(options)
    if spec["bits"] != 4:
        return f"{spec['bits']} bits"
    return f"4 bits ({spec['quant_type']}, {'' if spec['double_quant'] else 'no '}double quant)"


@torch.no_grad()
def attach(llm: Any, adapter: Adapter) -> None:
    """Put an adapter's factors beside the weights of an LLM, as they were trained (peft's LoRA)."""
    from peft import LoraConfig, inject_adapter_in_model

    modules = {target: target[len("llm.") : -len(".weight")] for target in adapter.factors}
    ranks = {target: pair["A"].shape[0] for target, pair in adapter.factors.items()}
    config = LoraConfig(
        target_modules=sorted(modules.values()),
        rank_pattern={re.escape(modules[target]): rank for target, rank in ranks.items()},
        alpha_pattern={
            re.escape(modules[target]): adapter.scale(target) * rank
            for target, rank in ranks.items()
        },
    )
    inject_adapter_in_model(config, llm)
    for target, pair in adapter.factors.items():
        layer: Any = llm.get_submodule(modules[target])
        layer.lora_A["default"].weight.copy_(pair["A"].read())
        layer.lora_B["default"].weight.copy_(pair["B"].read())
    llm.requires_grad_(False)
