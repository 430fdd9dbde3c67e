"""Open the four formats: a training checkpoint with its config, and the three kinds of folders."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_tools.errors import UserError
from llava_tools.model.adapters import Adapter, merge_adapter, read_adapters
from llava_tools.model.assembly import Source, assemble, from_whole, read_notes
from llava_tools.model.base_mark import check_base, saved_mark
from llava_tools.model.keymap import convert
from llava_tools.model.lazy import LazyTensor
from llava_tools.model.lora import factors_of, whole_of
from llava_tools.model.parts import (
    Part,
    projector_config,
    read_image_processor,
    read_llm,
    read_projector,
    read_vision,
    read_vision_config,
    resolve_folder,
    same_twins,
    vision_defaults,
    without_twin,
)
from llava_tools.model.rope import stretch_positions
from llava_tools.model.tables import HF_READ, LLAVA_READ, check_complete
from llava_tools.model.trained import overlay, read_checkpoint
from llava_tools.model.vocabulary import settle_embeddings
from llava_tools.model.weights import has_weights, read_json, read_weights
from llava_tools.model.zero import is_zero_dir

if TYPE_CHECKING:
    from llava_tools.config import Settings


def _load_settings(path: Path, config: str | None, overrides: Sequence[str]) -> Settings:
    from llava_tools.config import load_settings

    if config is None:
        raise UserError(
            f"'{path}' holds only what was trained; which models it started from is unknown.",
            "Give the config of the run with --config.",
        )
    return load_settings(config, overrides)


def checkpoint_path(path: Path) -> Path:
    """Return the directory of a file inside of DeepSpeed's, any other path as it is."""
    return path.parent if path.suffix == ".pt" and is_zero_dir(path.parent) else path


def settings_of(path: Path, config: str | None, overrides: Sequence[str] = ()) -> Settings:
    """Return the settings of a checkpoint's run: `config`, or the config.py beside it."""
    beside = path.parent / "config.py"
    return _load_settings(
        path, str(beside) if config is None and beside.is_file() else config, overrides
    )


def base_hint(settings: Settings) -> str:
    """Return what to do when a checkpoint's adapter belongs to other weights than its config's."""
    tower = settings.visual_encoder_name_or_path
    names = f"'{settings.llm_name_or_path}'" + (f" or '{tower}'" if tower else "")
    return f"{names} is another model than the run had, or has changed since; give that one back."


def open_pth(path: Path, config: str | None, overrides: Sequence[str]) -> Source:
    """Open a training checkpoint: the trained parts over the base models of its config."""
    path = checkpoint_path(path)
    settings = settings_of(path, config, overrides)
    llm = read_llm(settings.llm_name_or_path)
    tower = settings.visual_encoder_name_or_path
    vision = read_vision(tower) if tower else None
    trained = without_twin(read_checkpoint(path), llm.config, f"'{path}'")
    base = {**llm.tensors, **(vision.tensors if vision else {})}
    check_base(base, saved_mark(path), f"'{path}'", base_hint(settings))
    tensors = overlay(base, trained, settings, f"'{path}'")
    whole = whole_of(trained)
    tensors, config_llm = settle_embeddings(llm.config, base, whole, tensors, f"'{path}'")

    def part(name: str) -> dict[str, LazyTensor]:
        return {key: value for key, value in tensors.items() if key.startswith(f"{name}.")}

    stretched = stretch_positions(config_llm, settings.max_position_embeddings)
    llm = Part(part("llm"), stretched, llm.folder)
    projector = None
    if vision is not None:
        vision = Part(part("visual_encoder"), vision.config, vision.folder, vision.image_processor)
    if vision is not None or part("projector"):
        own = projector_config(part("projector"), f"'{path}'")
        check_complete(tensors, f"'{path}'", None, None, own)
        projector = Part(part("projector"), own, path)
    notes = {
        "prompt_template": settings.prompt_template,
        "visual_select_layer": settings.visual_select_layer,
        "pad_image_to_square": any(spec.pad_image_to_square for spec in settings.datasets),
    }
    return assemble(path, "pth", llm, vision, projector, notes, tower)


def factors_apart(source: Source, config: str | None) -> tuple[Source, Adapter | None]:
    """Return a model without its LLM's LoRA factors, and those: as QLoRA trained them.

    Merged into weights that are packed afterwards, a small change would be rounded away.
    """
    read = {"pth": _of_checkpoint, "xtuner": _of_folder}.get(source.format)
    found = read(source.path, config) if read else None
    if found is None:
        return source, None
    name, adapter = found
    base = read_llm(name).tensors
    tensors = {**source.tensors, **{target: base[target] for target in adapter.factors}}
    return replace(source, tensors=tensors), adapter


def _of_checkpoint(path: Path, config: str | None) -> tuple[str, Adapter] | None:
    """Return the base's name and the LLM's factors of a checkpoint, if it has any."""
    settings = settings_of(path, config)
    found = factors_of(read_checkpoint(path), f"'{path}'")
    factors = {target: pair for target, pair in found.items() if target.startswith("llm.")}
    notes = {"quantization": settings.llm_quantization}
    adapter = Adapter(path, dict(settings.llm_lora or {}), factors, notes=notes)
    return (settings.llm_name_or_path, adapter) if factors else None


def _of_folder(path: Path, config: str | None) -> tuple[str, Adapter] | None:
    """Return the same of an xtuner folder that keeps its adapters apart."""
    adapter = read_adapters(path).get("llm")
    if adapter is None:
        return None
    named = _load_settings(path, config, ()).llm_name_or_path if config else adapter.base
    return (named, adapter) if named else None


def open_xtuner(path: Path, config: str | None, overrides: Sequence[str]) -> Source:
    """Open an xtuner folder; parts that were frozen and left out come from the config."""
    adapters = read_adapters(path)
    names: dict[str, str | Path | None] = {"llm": path, "vision": path / "visual_encoder"}
    whole = has_weights(path), (path / "visual_encoder").is_dir()
    notes, positions = read_notes(path), None
    if config is None and not all(whole) and (known := _bases(adapters, notes, whole)):
        names |= known
        positions = (notes.get("base") or {}).get("max_position_embeddings")
    elif not all(whole):  # XTuner leaves frozen parts out
        # A config that lies in the folder is not taken: it would be foreign code.
        settings = _load_settings(path, config, overrides)
        if not whole[0]:
            names["llm"], positions = settings.llm_name_or_path, settings.max_position_embeddings
        if not whole[1]:
            names["vision"] = settings.visual_encoder_name_or_path
        notes = {
            "prompt_template": settings.prompt_template,
            "visual_select_layer": settings.visual_select_layer,
        } | notes
    vision = read_vision(names["vision"]) if names["vision"] else None
    projector = read_projector(path / "projector")
    tower = notes.get("visual_encoder")
    if vision is not None:
        tower = tower or (None if whole[1] else str(names["vision"]))
        tower = tower or vision.config.get("_name_or_path")
    llm = read_llm(names["llm"] or path)
    if not whole[0]:
        llm = replace(llm, config=stretch_positions(llm.config, positions))
    source = assemble(path, "xtuner", llm, vision, projector, notes, tower)
    for adapter in adapters.values():
        merged, where = merge_adapter(source.tensors, adapter), f"'{adapter.folder}'"
        tensors, settled = settle_embeddings(
            source.llm_config, source.tensors, adapter.whole, merged, where
        )
        source = replace(source, tensors=tensors, llm_config=settled)
    return source


def _bases(
    adapters: Mapping[str, Adapter], notes: Mapping[str, Any], whole: tuple[bool, bool]
) -> dict[str, str | Path | None]:
    """Return the models that a folder without frozen parts says it needs, {} if it does not."""
    bases = dict(notes.get("base") or {})
    bases |= {part: adapter.base for part, adapter in adapters.items() if adapter.base}
    wanted = {"llm": "llm", "vision": "visual_encoder"}
    lacking = [key for key, there in zip(wanted, whole, strict=True) if not there]
    if any(not bases.get(wanted[key]) for key in lacking):
        return {}
    return {key: str(bases[wanted[key]]) for key in lacking}


def open_llava(path: Path) -> Source:
    """Open haotian-liu/LLaVA's folder; a tower that is not in it comes from `mm_vision_tower`."""
    config = read_json(path / "config.json")
    kind, where = str(config.get("mm_projector_type", "linear")), f"'{path}'"
    if kind != "linear" and not re.fullmatch(r"mlp[0-9]+x_gelu", kind):
        raise UserError(
            f"{where} has a projector of type '{kind}'.", "Known: linear, mlp2x_gelu and the like."
        )
    if config.get("mm_vision_select_feature", "patch") != "patch":
        raise UserError(
            f"{where} feeds the class token to the LLM (mm_vision_select_feature).",
            "Only models that use the patch features can be converted.",
        )
    apart = path / "mm_projector.bin"  # of LLaVA's first stage: the LLM is the base's
    base = path if has_weights(path) or not apart.is_file() else _base_of(path, config)
    tensors = convert(read_weights(base), LLAVA_READ, where)
    if apart.is_file():
        kept = {name: t for name, t in tensors.items() if not name.startswith("projector.")}
        tensors = {**kept, **read_projector(apart).tensors}
    held = {name: value for name, value in tensors.items() if name.startswith("visual_encoder.")}
    own, tower = path / "visual_encoder", str(config.get("mm_vision_tower"))
    if held and (own / "config.json").is_file():
        vision = Part(held, read_vision_config(own), own, read_image_processor(own))
    else:
        vision = read_vision(own if has_weights(own) else tower)
        vision = Part(held or vision.tensors, vision.config, path, vision.image_processor)
    parts = ("mm_", "tune_mm_", "use_mm_", "freeze_mm_", "unfreeze_mm_", "image_", "tokenizer_")
    llm = {key: value for key, value in config.items() if not key.startswith(parts)}
    llm |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    tensors = without_twin(tensors, llm, where)
    notes = {
        "visual_select_layer": config.get("mm_vision_select_layer", -2),
        "pad_image_to_square": config.get("image_aspect_ratio") == "pad",
    } | read_notes(path)
    whole = from_whole(path, "llava", tensors, llm, vision, "gelu", notes, tower)
    return whole if base == path else replace(whole, tokenizer_dir=base)


def _base_of(path: Path, config: Mapping[str, Any]) -> Path:
    """Return the folder of the LLM that a folder with only a projector was trained on."""
    name = str(config.get("_name_or_path") or "")
    if not name or Path(name) == path:
        raise UserError(
            f"'{path}' holds a projector alone, and does not say of which LLM (_name_or_path).",
            "Give the three parts: convert xtuner_to_llava --text_model_id ...",
        )
    return resolve_folder(name)


def open_hf(path: Path) -> Source:
    """Open LlavaForConditionalGeneration's folder, or that of a causal LM alone."""
    config = read_json(path / "config.json")
    if config.get("model_type") != "llava":
        return assemble(path, "hf", read_llm(path), None, None, read_notes(path))
    layer = config.get("vision_feature_layer", -2)
    nested = dict(config.get("vision_config") or {})
    kind = str(nested.get("model_type", "clip_vision_model"))
    strategy = "full" if kind.startswith("siglip") else "default"
    found = config.get("vision_feature_select_strategy", "default")
    if not isinstance(layer, int) or found != strategy:
        raise UserError(
            f"'{path}' takes its image features from layer {layer} by the strategy '{found}'.",
            f"One layer, and '{strategy}' for a tower of type {kind}, can be converted.",
        )
    tensors = convert(read_weights(path), HF_READ, f"'{path}'")
    vision = Part(
        {name: value for name, value in tensors.items() if name.startswith("visual_encoder.")},
        vision_defaults(nested | {"model_type": kind}),
        path,
        read_image_processor(path),
    )
    notes = {"visual_select_layer": layer} | read_notes(path)
    text = _text_defaults(config) | {"tie_word_embeddings": "llm.lm_head.weight" not in tensors}
    if notes.get("tied_embeddings") and same_twins(tensors):  # written out by our own export
        text["tie_word_embeddings"] = True
        del tensors["llm.lm_head.weight"]
    act = str(config.get("projector_hidden_act", "gelu"))
    tower = notes.get("visual_encoder") or nested.get("_name_or_path")
    return from_whole(path, "hf", tensors, text, vision, act, notes, tower)


def _text_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the text config with what it left to its class's defaults, and its architecture."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    text = {"model_type": "llama"} | dict(config.get("text_config") or {})
    full = AutoConfig.for_model(**text).to_diff_dict() | text
    return full | {"architectures": [NAMES[text["model_type"]]]}
