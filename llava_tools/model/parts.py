"""The parts of a model as they lie in folders: language model, vision tower, projector."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llava_tools.data.preprocessing import find_config
from llava_tools.errors import UserError, first_line
from llava_tools.model.keymap import convert
from llava_tools.model.lazy import LazyTensor
from llava_tools.model.tables import (
    LLM_FOLDER,
    PROJECTOR_READ,
    VISION_FOLDER_READ,
    check_complete,
)
from llava_tools.model.weights import has_weights, read_json, read_tensors, read_weights

_TOWERS = ("clip", "clip_vision_model", "siglip", "siglip_vision_model")
# What a part needs; the hub's repositories hold the same weights for other frameworks, too.
_SMALL = ["*.json", "*.model", "*.txt", "*.jinja"]


@dataclass(frozen=True)
class Part:
    """Canonical tensors with the config.json they belong to, and where they come from."""

    tensors: Mapping[str, LazyTensor]
    config: dict[str, Any]
    folder: Path
    image_processor: dict[str, Any] | None = None


def resolve_folder(name_or_path: str | Path) -> Path:
    """Return the folder of a local path or hub id; the hub's cache comes before the network.

    Raises UserError when there is neither.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download

    name = str(name_or_path)
    offline = os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE")
    try:
        folder = Path(snapshot_download(name, local_files_only=True))
        if offline or has_weights(folder):
            return folder
    except (OSError, ValueError) as missing:
        if offline:
            raise _nowhere(name, missing) from missing
    try:
        folder = Path(snapshot_download(name, allow_patterns=[*_SMALL, "*.safetensors"]))
        if not has_weights(folder):
            folder = Path(snapshot_download(name, allow_patterns=[*_SMALL, "pytorch_model*.bin"]))
        return folder
    except (OSError, ValueError) as error:
        raise _nowhere(name, error) from error


def _nowhere(name: str, error: Exception) -> UserError:
    return UserError(
        f"'{name}' is no folder, and there is no such model in the hub's cache: "
        f"{first_line(error)}",
        "Give a local folder, or download the model first (hf download).",
    )


def read_llm(name_or_path: str | Path) -> Part:
    """Read a folder with a causal LM. Raises UserError when it is incomplete."""
    folder = resolve_folder(name_or_path)
    config = read_json(folder / "config.json")
    _refuse_quantized(folder, config)
    where = f"'{folder}'"
    tensors = without_twin(convert(read_weights(folder), LLM_FOLDER, where), config, where)
    if "model_type" not in config:
        raise UserError(f"'{folder / 'config.json'}' names no model_type.", "Copy it again.")
    check_complete(tensors, f"'{folder}'", config)
    return Part(tensors, config, folder)


TWINS = ("llm.model.embed_tokens.weight", "llm.lm_head.weight")


def same_twins(tensors: Mapping[str, LazyTensor]) -> bool:
    """Tell whether the input and the output embeddings are there and equal, block by block."""
    if not all(name in tensors for name in TWINS):
        return False
    first, last = (tensors[name] for name in TWINS)
    if first.shape != last.shape:
        return False
    pairs = zip(first.to(torch.float32).blocks(), last.to(torch.float32).blocks(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def without_twin(
    tensors: Mapping[str, LazyTensor], config: Mapping[str, Any], where: str
) -> dict[str, LazyTensor]:
    """Return the tensors of an LLM with tied embeddings under one name, the input's.

    Raises UserError when the two differ: releases of transformers disagree which one counts.
    """
    kept, (first, twin) = dict(tensors), TWINS
    if not config.get("tie_word_embeddings") or twin not in kept:
        return kept
    same = first not in kept or same_twins(kept)
    other = kept.pop(twin)
    kept.setdefault(first, other)
    if not same:
        raise UserError(
            f"{where} says that its embeddings are tied, but holds two different ones.",
            "If they were trained apart, set tie_word_embeddings to false in config.json.",
        )
    return kept


def _refuse_quantized(folder: Path, config: Mapping[str, Any]) -> None:
    if packed := config.get("quantization_config"):
        method = packed.get("quant_method") if isinstance(packed, dict) else None
        raise UserError(
            f"'{folder}' holds quantized weights ({method or 'of an unknown kind'}), which cannot "
            "be converted, merged or packed again.",
            "Give the folder of the unquantized model.",
        )


def read_vision(name_or_path: str | Path) -> Part:
    """Read a folder with a CLIP or SigLIP tower (alone or with its text half), or open_clip's."""
    from llava_tools.model.open_clip import is_open_clip

    if is_open_clip(name_or_path):
        return _read_open_clip(str(name_or_path))
    folder = resolve_folder(name_or_path)
    config = read_vision_config(folder)
    tensors = convert(read_weights(folder), VISION_FOLDER_READ, f"'{folder}'")
    check_complete(tensors, f"'{folder}'", None, config)
    return Part(tensors, config, folder, read_image_processor(folder))


def read_vision_config(folder: Path) -> dict[str, Any]:
    """Return the vision tower's config in a folder; of a whole CLIP, its vision half."""
    config = read_json(folder / "config.json")
    kind = str(config.get("model_type"))
    if kind not in _TOWERS:
        raise UserError(
            f"'{folder}' holds a model of type '{kind}', not a vision tower.",
            f"Vision towers that work: {', '.join(_TOWERS)}, and open_clip checkpoints.",
        )
    if "vision_config" in config:
        config = vision_defaults(
            dict(config["vision_config"]) | {"model_type": f"{kind}_vision_model"}
        )
    return config


def vision_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a nested vision config with what it left to its class's defaults."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**config).to_diff_dict() | dict(config)


def read_image_processor(folder: Path) -> dict[str, Any] | None:
    """Return the preprocessing settings in a folder, None when it has none."""
    found = find_config(str(folder))
    return found[0] if found else None


def _read_open_clip(name: str) -> Part:
    from llava_tools.model.open_clip import load_open_clip

    model, image_processor = load_open_clip(name)
    weights = {key: LazyTensor.of(value) for key, value in model.state_dict().items()}
    tensors = convert(weights, VISION_FOLDER_READ, f"'{name}'")
    return Part(tensors, model.config.to_diff_dict(), Path(name), image_processor)


def read_projector(path: str | Path) -> Part:
    """Read a projector folder of the xtuner format, or one file of its weights."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"No projector at '{path}'.", "Give the folder 'projector' or its weights.")
    raw = read_weights(path) if path.is_dir() else read_tensors(path)
    tensors = convert(raw, PROJECTOR_READ, f"'{path}'")
    folder = path if path.is_dir() else path.parent
    known = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if known.get("model_type", "projector") != "projector":
        known = {}  # mm_projector.bin lies beside the config of a whole model
    config = projector_config(tensors, f"'{path}'", str(known.get("hidden_act", "gelu")))
    check_complete(tensors, f"'{path}'", None, None, config)
    return Part(tensors, config, folder)


def projector_config(
    tensors: Mapping[str, LazyTensor], where: str, hidden_act: str = "gelu"
) -> dict[str, Any]:
    """Return the config that canonical projector tensors imply."""
    prefix = "projector.model."
    layers = [n for n in tensors if n.startswith(prefix) and n.endswith(".weight")]
    if prefix + "0.weight" not in tensors or len(tensors[prefix + "0.weight"].shape) != 2:
        raise UserError(
            f"{where} holds no projector of linear layers (model.0.weight is missing).",
            "Give the projector of a LLaVA whose projector is an MLP.",
        )
    width, seen = tensors[prefix + "0.weight"].shape
    return {
        "model_type": "projector",
        "visual_hidden_size": seen,
        "llm_hidden_size": width,
        "depth": len(layers),
        "hidden_act": hidden_act,
        "bias": prefix + "0.bias" in tensors,
    }
