"""The vision tower: load CLIP, SigLIP or open_clip, and take its patch features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, CLIPVisionModel, PreTrainedModel, SiglipVisionModel

from llava_tools.errors import UserError

# `clip` and `siglip` are whole two-tower folders, of which the loader takes the vision half.
TOWERS: dict[str, type[PreTrainedModel]] = {
    "clip": CLIPVisionModel,
    "clip_vision_model": CLIPVisionModel,
    "siglip": SiglipVisionModel,
    "siglip_vision_model": SiglipVisionModel,
}


def load_visual_encoder(name_or_path: str) -> PreTrainedModel:
    """Load a vision tower in fp32 from a hub id or folder: HF CLIP or SigLIP, or open_clip.

    Raises UserError when there is no such model, or when it is of another kind.
    """
    from llava_tools.model.open_clip import is_open_clip, load_open_clip

    if is_open_clip(name_or_path):
        return load_open_clip(name_or_path)[0]
    try:
        config = AutoConfig.from_pretrained(name_or_path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"No vision tower at '{name_or_path}': {first_line(error)}",
            "Give a folder with config.json, or a hub id that is downloaded already.",
        ) from error
    tower = TOWERS.get(config.model_type)
    if tower is None:
        raise UserError(
            f"'{name_or_path}' is a model of type '{config.model_type}', not a vision tower.",
            f"Vision towers that work: {', '.join(sorted(TOWERS))}, and open_clip checkpoints.",
        )
    return load_strictly(tower, name_or_path, dtype=torch.float32)


def load_strictly(kind: Any, name_or_path: str, **kwargs: Any) -> PreTrainedModel:
    """`kind.from_pretrained`, with an error where transformers only warns of missing weights."""
    try:
        model, report = kind.from_pretrained(name_or_path, output_loading_info=True, **kwargs)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"Could not load '{name_or_path}': {first_line(error)}",
            "Give a complete model folder (config.json and weights), or a downloaded hub id.",
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"'{name_or_path}' lacks {len(missing)} weights of {type(model).__name__}, "
            f"for example {missing[0]}.",
            "The folder is incomplete, or its config.json describes another model.",
        )
    if not isinstance(model, PreTrainedModel):
        raise TypeError(type(model))
    return model


def first_line(error: Exception) -> str:
    """Return the first line of an exception's text (transformers adds pages of advice)."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def has_class_token(tower: nn.Module) -> bool:
    """Tell whether the first feature is a class token (CLIP), not a patch (SigLIP)."""
    return any(name.endswith("class_embedding") for name, _ in tower.named_parameters())


def num_patches(config: Any) -> int:
    """Return the number of features an image becomes: (image side / patch side) squared."""
    return int(config.image_size // config.patch_size) ** 2


def patch_features(tower: nn.Module, pixels_NCHW: torch.Tensor, layer: int) -> torch.Tensor:
    """Return the patch features [N, P, D] after block `layer` (-2: the last but one).

    As LLaVA does: the block's output without the final norm, and without the class token.
    """
    output = tower(pixel_values=pixels_NCHW, output_hidden_states=True)
    features: torch.Tensor = output.hidden_states[layer]
    return features[:, 1:] if has_class_token(tower) else features


def pixel_dtype(tower: nn.Module) -> torch.dtype:
    """Return the dtype in which the tower expects its pixels."""
    return next(p.dtype for p in tower.parameters() if p.is_floating_point())


def image_processor_source(name_or_path: str) -> dict[str, Any] | None:
    """Return open_clip's preprocessing for an open_clip tower, None for a Hugging Face one."""
    from llava_tools.model.open_clip import is_open_clip, load_open_clip

    return load_open_clip(name_or_path)[1] if is_open_clip(name_or_path) else None


def is_local(name_or_path: str) -> bool:
    """Tell whether this names a folder on this machine (not a hub id)."""
    return Path(name_or_path).expanduser().is_dir()


transformers.utils.logging.disable_progress_bar()
