"""LoRA adapters in folders, as peft and XTuner keep them: read, and merged into their base."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_tools.errors import UserError
from llava_tools.model.assembly import read_notes
from llava_tools.model.base_mark import Mark, check_base
from llava_tools.model.lazy import LazyTensor
from llava_tools.model.lora import Factors, merge_factors, rank_of
from llava_tools.model.parts import TWINS, resolve_folder
from llava_tools.model.tables import VISION
from llava_tools.model.weights import read_json, read_tensors

FOLDERS = {"llm": "llm_adapter", "visual_encoder": "visual_encoder_adapter"}  # XTuner's names
CONFIG, WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = {"llm": "llm.", "visual_encoder": VISION}
_FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight")
_WHOLE = re.compile(
    r"base_model\.model\.(.+?)(?:\.modules_to_save(?:\.default)?|\.base_layer(?=\.bias))?"
    r"\.(weight|bias)"
)
# Options of peft that make an adapter something else than W + scale * B A.
_FOREIGN = {
    "use_dora": "it scales directions (DoRA)",
    "fan_in_fan_out": "its layers are transposed (fan_in_fan_out)",
    "use_qalora": "its inputs are pooled (QALoRA)",
    "use_bdlora": "its factors are block-diagonal (BD-LoRA)",
    "lora_bias": "its factors have biases (lora_bias)",
    "alora_invocation_tokens": "it acts on some tokens only (aLoRA)",
    "layer_replication": "it repeats layers (layer_replication)",
    "target_parameters": "it adapts parameters that are no linear layers (target_parameters)",
    "trainable_token_indices": "it holds embeddings of tokens (trainable_token_indices)",
}


@dataclass(frozen=True)
class Adapter:
    """An adapter: two factors for each canonical weight, and what they are scaled by.

    `whole` are weights that were trained or enlarged as a whole (modules_to_save, embeddings),
    `notes` what we wrote beside it: the prompt template, and how to know its base.
    """

    folder: Path
    config: dict[str, Any]
    factors: Mapping[str, Factors]
    whole: Mapping[str, LazyTensor] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def mark(self) -> Mark:
        """Some values of the base, {} where the folder does not tell."""
        found = (self.notes.get("base") or {}).get("mark") or {}
        return dict(found)

    @property
    def base_hint(self) -> str:
        """What to do when it does not fit a model."""
        return f"Give the model it was trained on ({self.base or 'not told'})."

    @property
    def base(self) -> str | None:
        """The name or path of the model that it was trained on, where the folder tells."""
        name = self.config.get("base_model_name_or_path")
        return str(name) if name else None

    def scale(self, target: str) -> float:
        """Return what B A of one weight is multiplied by."""
        module = target.removeprefix("llm.").removeprefix(VISION).removesuffix(".weight")
        rank = rank_of(self.factors[target])
        alpha = self.config.get("lora_alpha") or 8  # peft's default
        try:
            for pattern, value in (self.config.get("alpha_pattern") or {}).items():
                if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", module):
                    alpha = value
                    break
            return float(alpha) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)
        except (re.error, AttributeError, TypeError, ValueError) as error:
            raise UserError(
                f"'{self.folder / CONFIG}' has a lora_alpha or alpha_pattern of a wrong kind.",
                "Copy the adapter's folder again.",
            ) from error


def read_adapter(folder: str | Path, part: str) -> Adapter:
    """Read an adapter of `part` (llm or visual_encoder), under old or new names of its modules.

    Raises UserError: no adapter, one that is more than LoRA on linear layers, half of one.
    """
    path = resolve_folder(folder)
    where = f"'{path}'"
    if not (path / CONFIG).is_file():
        raise UserError(
            f"{where} is no adapter: it has no {CONFIG}.",
            "Give the folder that peft or `llava-tools convert` saved the adapter in.",
        )
    config = read_json(path / CONFIG)
    if not isinstance(config.get("modules_to_save") or [], list):
        raise UserError(
            f"'{path / CONFIG}' has no list of names as its modules_to_save.",
            "Copy the adapter's folder again.",
        )
    reasons = [reason for option, reason in _FOREIGN.items() if config.get(option)]
    if config.get("peft_type", "LORA") != "LORA":
        reasons = [f"its kind is {config['peft_type']}"]
    if reasons:
        raise UserError(
            f"{where} holds an adapter that cannot be merged: {'; '.join(reasons)}.",
            "Merge it with peft (merge_and_unload), and give the merged model.",
        )
    file = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
    if file is None:
        raise UserError(f"{where} holds no {WEIGHTS[0]}.", "Copy the whole adapter folder.")
    factors, whole = _weights(read_tensors(file), part, where, config)
    notes = read_notes(path) or read_notes(path.parent if path.name == FOLDERS[part] else path)
    return Adapter(path, config, factors, whole, notes)


def _weights(
    tensors: Mapping[str, LazyTensor], part: str, where: str, config: Mapping[str, Any]
) -> tuple[dict[str, Factors], dict[str, LazyTensor]]:
    """Sort a file's tensors into factors and whole weights, under canonical names."""
    found: dict[str, dict[str, LazyTensor]] = {}
    whole: dict[str, LazyTensor] = {}
    listed = [str(name) for name in config.get("modules_to_save") or ()]
    level = "" if part == "llm" else "vision_model."
    biases = config.get("bias", "none") != "none"
    for name, tensor in tensors.items():
        if match := _FACTOR.fullmatch(name):
            module = match[1].removeprefix(level)
            # An adapter written for all releases holds a tower's factors under both names.
            found.setdefault(f"{PREFIX[part]}{module}.weight", {}).setdefault(match[2], tensor)
            continue
        saved = _WHOLE.fullmatch(name)
        module, kind = (saved[1].removeprefix(level), saved[2]) if saved else ("", "")
        target = f"{PREFIX[part]}{module}.{kind}"
        known = (target in TWINS and len(tensor.shape) == 2) or (biases and kind == "bias")
        if saved is None or not (known or any(_is_in(saved[1], m) for m in listed)):
            raise UserError(
                f"{where} has a kind of adapter that cannot be merged: {name}.",
                "Merge it with peft (merge_and_unload), and give the merged model.",
            )
        whole[target] = tensor
    if not found:
        raise UserError(f"{where} holds no weights.", "Copy the whole adapter folder.")
    for module in listed:
        if not any(
            _is_in(target.removeprefix(PREFIX[part]).rsplit(".", 1)[0], module) for target in whole
        ):
            raise UserError(
                f"{where} lacks '{module}', which its {CONFIG} lists in modules_to_save.",
                "Copy the whole adapter folder.",
            )
    return dict(found), whole


def _is_in(path: str, module: str) -> bool:
    """Tell whether the module at a path is, or lies in, one whose name ends so (peft's rule)."""
    return f"{module}." in f"{path}."


def merge_adapter(tensors: Mapping[str, LazyTensor], adapter: Adapter) -> dict[str, LazyTensor]:
    """Return canonical tensors with W + scale * B A (in fp32) in place of every adapted W.

    Weights that the adapter holds as a whole stand in the place of the base's.

    Raises UserError when the adapter belongs to another model.
    """
    check_fits(tensors, adapter)
    merged = {**tensors, **adapter.whole}
    where, hint = f"'{adapter.folder}'", adapter.base_hint
    for target, pair in adapter.factors.items():
        merged[target] = merge_factors(tensors, target, pair, adapter.scale(target), where, hint)
    return merged


def check_fits(tensors: Mapping[str, LazyTensor], adapter: Adapter) -> None:
    """Check that an adapter belongs to a model: shapes, and values where its folder tells them.

    Raises UserError naming the first weight that does not fit.
    """
    where, hint = f"'{adapter.folder}'", adapter.base_hint
    for target, pair in adapter.factors.items():
        merge_factors(tensors, target, pair, adapter.scale(target), where, hint)
    for target, tensor in adapter.whole.items():
        of_base = tensors.get(target) or (tensors.get(TWINS[0]) if target in TWINS else None)
        rows = int(target in TWINS)  # a vocabulary may have grown
        if of_base is None or of_base.shape[rows:] != tensor.shape[rows:]:
            raise UserError(f"{where}: its {target} does not fit the base model.", hint)
    trains_biases = adapter.config.get("bias", "none") != "none"
    biases = [f"{target.removesuffix('.weight')}.bias" for target in adapter.factors]
    for lost in [b for b in biases if trains_biases and b in tensors and b not in adapter.whole]:
        raise UserError(
            f"{where} says that it trained biases, but lacks {lost}.",
            "Older peft does not save them with bias='lora_only': save the adapter again.",
        )
    check_base(tensors, adapter.mark, where, hint)


def read_adapters(folder: Path) -> dict[str, Adapter]:
    """Return the adapters that an xtuner folder keeps apart, by part."""
    return {
        part: read_adapter(folder / name, part)
        for part, name in FOLDERS.items()
        if (folder / name).is_dir()
    }
