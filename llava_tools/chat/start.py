"""What a conversation starts with: a model, in one folder or in parts, and image files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.markup import escape

from llava_tools.chat.gguf_open import is_gguf, open_gguf, server_command
from llava_tools.chat.session import Session
from llava_tools.data.images import open_image
from llava_tools.errors import UserError
from llava_tools.model.adapted import read_llm_adapter, with_adapter
from llava_tools.model.adapters import merge_adapter, read_adapters
from llava_tools.model.assembly import Source, read_notes
from llava_tools.model.generate import GenerationSettings
from llava_tools.model.load import Assistant, build_assistant
from llava_tools.model.parts import resolve_folder
from llava_tools.model.source import open_adapted, open_parts, open_source


def open_session(
    model: str,
    *,
    llava: str | None = None,
    visual_encoder: str | None = None,
    visual_select_layer: int | None = None,
    config: str | None = None,
    template: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    system: str | None = None,
    settings: GenerationSettings | None = None,
    adapter: str | None = None,
    quantization: dict[str, Any] | None = None,
) -> Session:
    """Load a model and start a conversation with it.

    `model` is a finished model of any format, GGUF included; with `llava`, a language model whose
    projector (and vision tower, unless `visual_encoder` names one) lie in that folder, as XTuner
    keeps them.
    `config` is the config of the run, for a checkpoint that has none beside it. `adapter` is a
    folder with a LoRA for the LLM; `quantization` packs the LLM (see `QuantizationSpec`).

    Raises UserError when something is missing or does not fit together.
    """
    if is_gguf(model):
        unused = {
            "--llava": llava,
            "--visual-select-layer": visual_select_layer,
            "--config": config,
            "--adapter": adapter,
            "--bits": quantization and quantization["bits"],
        }
        talker = open_gguf(
            model,
            visual_encoder=visual_encoder,
            template=template,
            dtype=dtype,
            device=device,
            unused=unused,
        )
        return Session(talker, settings, system)
    assistant = open_assistant(
        model,
        llava=llava,
        visual_encoder=visual_encoder,
        visual_select_layer=visual_select_layer,
        config=config,
        adapter=adapter,
        quantization=quantization,
        template=template,
        dtype=dtype,
        device=device,
    )
    return Session(assistant, settings, system)


def open_assistant(
    model: str,
    *,
    llava: str | None = None,
    visual_encoder: str | None = None,
    visual_select_layer: int | None = None,
    config: str | None = None,
    adapter: str | None = None,
    quantization: dict[str, Any] | None = None,
    **options: Any,
) -> Assistant:
    """Load a model as `open_session` does; `options` are those of `build_assistant`."""
    if is_gguf(model):
        raise UserError(
            f"'{model}' is GGUF: it can be talked with in the terminal; llama.cpp has a server.",
            f"{server_command(model)} (OpenAI's API at /v1, a page at /), or give the folder that "
            "the file was converted from.",
        )
    with Console(stderr=True).status(f"Loading {escape(model)}"):
        held = None
        if adapter is None and llava is None and visual_encoder is None:
            source, held = open_adapted(model, config, apart=quantization is not None)
        else:
            source = _open(model, llava, visual_encoder, config)
        if adapter is not None:
            lora = read_llm_adapter(adapter)
            source = with_adapter(source, lora, apart=quantization is not None)
            held = lora if quantization is not None else None
        if visual_select_layer is not None:
            source = _with_layer(source, visual_select_layer)
        return build_assistant(source, quantization=quantization, adapter=held, **options)


def _open(model: str, llava: str | None, visual_encoder: str | None, config: str | None) -> Source:
    if llava is not None and Path(llava) != Path(model):
        return _open_parts(model, llava, visual_encoder)
    if visual_encoder is not None:
        raise UserError(
            f"--visual-encoder {visual_encoder} has no use: '{model}' is a complete model.",
            "Leave it out, or give the folder of the projector with --llava.",
        )
    return open_source(model, config)


def _open_parts(llm: str, llava: str, visual_encoder: str | None) -> Source:
    folder = resolve_folder(llava)
    own = folder / "visual_encoder"
    if own.is_dir() == (visual_encoder is not None):
        problem = "has a vision tower of its own" if own.is_dir() else "has no vision tower"
        raise UserError(
            f"'{llava}' {problem}.",
            f"{'Leave out' if own.is_dir() else 'Name the one it was trained with by'} "
            "--visual-encoder.",
        )
    source = open_parts(llm, visual_encoder or own, folder / "projector")
    for adapter in read_adapters(folder).values():
        source = replace(source, tensors=merge_adapter(source.tensors, adapter))
    notes = read_notes(folder)
    return replace(
        source,
        prompt_template=notes.get("prompt_template"),
        visual_select_layer=int(notes.get("visual_select_layer", source.visual_select_layer)),
        pad_image_to_square=bool(notes.get("pad_image_to_square", source.pad_image_to_square)),
    )


def _with_layer(source: Source, layer: int) -> Source:
    if source.vision_config is None:
        raise UserError(f"'{source.path}' has no vision tower.", "Leave out --visual-select-layer.")
    layers = int(source.vision_config["num_hidden_layers"])
    if not -layers - 1 <= layer <= layers:
        raise UserError(
            f"--visual-select-layer {layer}: the vision tower of '{source.path}' has {layers} "
            "layers.",
            f"Choose from {-layers - 1} to {layers}; LLaVA uses -2.",
        )
    return replace(source, visual_select_layer=layer)


def open_pictures(paths: Sequence[str]) -> list[Image.Image]:
    """Open the image files of a row of data, which fetches nothing.

    Raises UserError for a file that is missing or no image, and for a URL.
    """
    for path in paths:
        if re.match("https?://", path):
            raise UserError(
                f"'{path}' is a URL; rows name image files only.",
                "Download it first, for example: curl -O URL",
            )
    return [open_image(str(Path(path).expanduser())) for path in paths]
