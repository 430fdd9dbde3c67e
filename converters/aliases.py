"""The commands of XTuner's README, step by step, on the same converters as `convert`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava_tools.converters.convert import convert, export, without_vision
from llava_tools.converters.phi_to_llama import as_llama, as_phi3
from llava_tools.errors import UserError, did_you_mean
from llava_tools.model.checksums import noting_checksums
from llava_tools.model.source import open_parts, open_source

SAVE_FORMATS = {"xtuner": "xtuner", "official": "llava", "huggingface": "hf"}


def pth_to_hf(
    config: str,
    pth: str | Path,
    dst: str | Path,
    save_format: str = "xtuner",
    fp32: bool = False,
    max_shard_size: str = "2GB",
    cfg_options: Sequence[str] = (),
    overwrite: bool = False,
) -> dict[str, Any]:
    """`convert pth_to_hf CONFIG PTH DST [--fp32] [--save-format xtuner|official|huggingface]`."""
    if save_format not in SAVE_FORMATS:
        raise UserError(
            f"Unknown save format '{save_format}'.", did_you_mean(save_format, SAVE_FORMATS)
        )
    return convert(
        pth,
        dst,
        SAVE_FORMATS[save_format],
        config=config,
        dtype="fp32" if fp32 else "fp16",
        max_shard_size=max_shard_size,
        overwrite=overwrite,
        cfg_options=cfg_options,
    )


@noting_checksums()
def phi_to_llama(
    phi_path: str | Path,
    save_path: str | Path,
    max_shard_size: str = "2GB",
    overwrite: bool = False,
) -> dict[str, Any]:
    """`convert phi_to_llama --phi_path --save_path`: the LLM of a Phi-3 folder as a Llama."""
    source = without_vision(open_source(phi_path))
    if source.llm_config["model_type"] != "phi3":
        raise UserError(
            f"'{phi_path}' is no Phi-3, but a {source.llm_config['model_type']}.",
            "Other language models need no such step.",
        )
    return export(as_llama(source), save_path, "hf", None, max_shard_size, overwrite=overwrite)


@noting_checksums()
def llama_to_phi(
    llama_path: str | Path,
    save_path: str | Path,
    max_shard_size: str = "2GB",
    overwrite: bool = False,
) -> dict[str, Any]:
    """`convert llama_to_phi --llama_path --save_path`: the way back of `phi_to_llama`."""
    source = as_phi3(without_vision(open_source(llama_path)))
    return export(source, save_path, "hf", None, max_shard_size, overwrite=overwrite)


@noting_checksums()
def xtuner_to_llava(
    text_model_id: str,
    vision_model_id: str,
    projector_weight: str | Path,
    save_path: str | Path,
    max_shard_size: str = "2GB",
    overwrite: bool = False,
) -> dict[str, Any]:
    """`convert xtuner_to_llava`: LLM, vision tower and projector as one official folder."""
    source = open_parts(text_model_id, vision_model_id, projector_weight)
    return export(source, save_path, "llava", None, max_shard_size, overwrite=overwrite)


@noting_checksums()
def xtuner_to_hf(
    text_model_id: str,
    vision_model_id: str,
    projector_weight: str | Path,
    save_path: str | Path,
    max_shard_size: str = "2GB",
    overwrite: bool = False,
) -> dict[str, Any]:
    """`convert xtuner_to_hf`: LLM, vision tower and projector as one transformers folder."""
    source = open_parts(text_model_id, vision_model_id, projector_weight)
    return export(source, save_path, "hf", None, max_shard_size, overwrite=overwrite)
