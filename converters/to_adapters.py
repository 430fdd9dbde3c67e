"""A checkpoint as XTuner's `pth_to_hf` keeps it: LoRA apart, frozen parts left out.

llm_adapter/, visual_encoder_adapter/    of parts with LoRA, in peft's layout
the LLM, visual_encoder/                 of parts that were trained as a whole
projector/                               always
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava_tools import __version__
from llava_tools.config import Settings
from llava_tools.converters.to_xtuner import write_llm, write_projector, write_vision
from llava_tools.converters.tokenizer_files import copy_tokenizer, write_chat_template
from llava_tools.converters.writer import Writer
from llava_tools.errors import UserError
from llava_tools.model.adapters import CONFIG, FOLDERS, PREFIX
from llava_tools.model.base_mark import base_mark
from llava_tools.model.lazy import LazyTensor
from llava_tools.model.lora import Factors, factors_of, whole_of
from llava_tools.model.openers import checkpoint_path, settings_of
from llava_tools.model.parts import read_llm, read_vision
from llava_tools.model.source import NOTES, Source, read_checkpoint

_TASKS = {"llm": "CAUSAL_LM", "visual_encoder": None}


def adapter_writer(source: Source, config: str | None, overrides: Any = ()) -> AdapterWriter:
    """Return what writes a checkpoint that way. Raises UserError where no part has an adapter."""
    if source.format != "pth":
        raise UserError(
            f"'{source.path}' is no checkpoint; what was trained of it is not known.",
            "--adapter-only takes an iter_N.pth of a LoRA run.",
        )
    path = checkpoint_path(source.path)
    settings = settings_of(path, config, overrides)
    trained = read_checkpoint(path)
    factors = factors_of(trained, f"'{path}'")
    if not factors:
        raise UserError(
            f"'{path}' holds no adapter: it was trained without LoRA.",
            "Convert it without --adapter-only.",
        )
    return AdapterWriter(settings, factors, whole_of(trained))


class AdapterWriter:
    """Writes the adapters of one checkpoint, and what was trained as a whole beside them.

    `whole` are biases and modules that an adapter holds beside its factors.
    """

    def __init__(
        self,
        settings: Settings,
        factors: Mapping[str, Factors],
        whole: Mapping[str, LazyTensor],
    ) -> None:
        self.settings, self.whole = settings, whole
        self.parts: dict[str, dict[str, Factors]] = {}
        for target, pair in factors.items():
            self.parts.setdefault(target.split(".")[0], {})[target] = pair

    @property
    def base(self) -> dict[str, Any]:
        """What the folder needs to be whole again, for llava_tools.json."""
        return {
            "llm": self.settings.llm_name_or_path,
            "visual_encoder": self.settings.visual_encoder_name_or_path,
            "max_position_embeddings": self.settings.max_position_embeddings,
        }

    def __call__(self, source: Source, writer: Writer) -> None:
        """Write the folder."""
        for part, factors in self.parts.items():
            self._write_adapter(part, factors, source, writer)
        if not self.settings.freeze_llm:
            write_llm(source, writer)
        if source.projector_config is not None:
            if not self.settings.freeze_visual_encoder:
                write_vision(source, writer)
            write_projector(source.tensors, source.projector_config, writer)

    def _write_adapter(
        self, part: str, factors: Mapping[str, Factors], source: Source, writer: Writer
    ) -> None:
        held = {
            f"{_module(target)}.lora_{side}.weight": tensor
            for target, pair in factors.items()
            for side, tensor in pair.items()
        }
        adapted = {_module(target) for target in factors}
        for target, tensor in self.whole.items():
            if target.startswith(PREFIX[part]):
                module, kind = target.removeprefix(PREFIX[part]).rsplit(".", 1)
                held[f"{module}{'.base_layer' if module in adapted else ''}.{kind}"] = tensor
        # peft goes by the names in memory, which for towers differ between releases.
        levels = ("", "vision_model.") if part != "llm" else ("",)
        names = {f"base_model.model.{up}{name}": t for name, t in held.items() for up in levels}
        writer.weights(names, FOLDERS[part], stem="adapter_model")
        base = self.base[part]
        config = adapter_config(part, factors, source.tensors, self._options(part), base)
        writer.json(f"{FOLDERS[part]}/{CONFIG}", config)
        read = read_llm if part == "llm" else read_vision
        notes = {
            "format": "adapter",
            "base": {part: base, "mark": base_mark(read(str(base)).tensors, factors)},
            "llava_tools_version": __version__,
        }
        if part == "llm":
            notes |= self._write_what_answers_need(source, writer)
        writer.json(f"{FOLDERS[part]}/{NOTES}", notes)

    def _write_what_answers_need(self, source: Source, writer: Writer) -> dict[str, Any]:
        """Put tokenizer and template beside the LLM's adapter; return what else answers need."""
        folder = writer.folder / FOLDERS["llm"]
        copy_tokenizer(source, folder)
        write_chat_template(source, folder)
        return {
            "prompt_template": source.prompt_template,
            "quantization": self.settings.llm_quantization,
        }

    def _options(self, part: str) -> Mapping[str, Any]:
        lora = self.settings.llm_lora if part == "llm" else self.settings.visual_encoder_lora
        return lora or {}


def adapter_config(
    part: str,
    factors: Mapping[str, Factors],
    weights: Mapping[str, LazyTensor],
    lora: Mapping[str, Any],
    base: str | None,
) -> dict[str, Any]:
    """Return adapter_config.json with the keys that every release of peft reads."""
    ranks = {pair["A"].shape[0] for pair in factors.values()}
    return {
        "peft_type": "LORA",
        "task_type": _TASKS[part],
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": ranks.pop(),
        "lora_alpha": lora.get("lora_alpha", 8),
        "lora_dropout": lora.get("lora_dropout", 0.0),
        "bias": lora.get("bias", "none"),
        "fan_in_fan_out": False,
        "modules_to_save": list(lora.get("modules_to_save") or ()) or None,
        "target_modules": target_modules(factors, weights, PREFIX[part]),
    }


def target_modules(
    factors: Mapping[str, Any], weights: Mapping[str, LazyTensor], prefix: str
) -> list[str]:
    """Return the last words of the adapted modules, or whole paths where those say too much."""
    matrices = {
        name for name, t in weights.items() if name.startswith(prefix) and len(t.shape) == 2
    }
    words = {_module(target).rsplit(".", 1)[-1] for target in factors}
    meant = {n for n in matrices if n.removesuffix(".weight").rsplit(".", 1)[-1] in words}
    return sorted(words if meant == set(factors) else map(_module, factors))


def _module(target: str) -> str:
    for prefix in PREFIX.values():
        target = target.removeprefix(prefix)
    return target.removesuffix(".weight")
