"""A Source: a model as canonical tensors and the configs of its parts, put together and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_tools.errors import UserError
from llava_tools.model.lazy import LazyTensor
from llava_tools.model.parts import Part, projector_config
from llava_tools.model.tables import check_complete
from llava_tools.model.weights import read_json

NOTES = "llava_tools.json"  # what we write into every folder about how the model was trained


@dataclass(frozen=True)
class Source:
    """A model of any format. `tensors` is complete: frozen parts come from their base folders."""

    path: Path
    format: str
    tensors: Mapping[str, LazyTensor]
    llm_config: dict[str, Any]
    vision_config: dict[str, Any] | None
    projector_config: dict[str, Any] | None
    visual_select_layer: int
    tokenizer_dir: Path
    image_processor: dict[str, Any] | None
    prompt_template: str | None
    pad_image_to_square: bool
    visual_encoder_name: str | None = None  # as the run or the folder calls its vision tower


def assemble(
    path: Path,
    kind: str,
    llm: Part,
    vision: Part | None,
    projector: Part | None,
    notes: Mapping[str, Any],
    tower: str | None = None,
) -> Source:
    """Put the parts together. Raises UserError when one is missing or of another model."""
    tensors = dict(llm.tensors)
    if (vision is None) != (projector is None):
        there, absent = (
            ("projector", "vision tower") if projector else ("vision tower", "projector")
        )
        raise UserError(f"'{path}' has a {there}, but no {absent}.", "Give the complete model.")
    if vision is not None and projector is not None:
        tensors = {**tensors, **vision.tensors, **projector.tensors}
        _check_widths(path, llm, vision, projector)
    return Source(
        path=path,
        format=kind,
        tensors=tensors,
        llm_config=llm.config,
        vision_config=vision.config if vision else None,
        projector_config=projector.config if projector else None,
        visual_select_layer=int(notes.get("visual_select_layer", -2)),
        tokenizer_dir=llm.folder,
        image_processor=vision.image_processor if vision else None,
        prompt_template=str(notes["prompt_template"]) if notes.get("prompt_template") else None,
        pad_image_to_square=bool(notes.get("pad_image_to_square", True)),
        visual_encoder_name=tower,
    )


def _check_widths(path: Path, llm: Part, vision: Part, projector: Part) -> None:
    for part, size, key in (
        ("vision tower", vision.config["hidden_size"], "visual_hidden_size"),
        ("language model", llm.config["hidden_size"], "llm_hidden_size"),
    ):
        if size != projector.config[key]:
            raise UserError(
                f"'{path}': the {part} is {size} wide, the projector expects "
                f"{projector.config[key]}.",
                "The parts belong to different models.",
            )


def read_notes(folder: Path) -> dict[str, Any]:
    """Return what a folder's llava_tools.json says, {} when it has none."""
    return read_json(folder / NOTES) if (folder / NOTES).is_file() else {}


def from_whole(
    path: Path,
    kind: str,
    tensors: Mapping[str, LazyTensor],
    llm: dict[str, Any],
    vision: Part,
    hidden_act: str,
    notes: Mapping[str, Any],
    tower: str | None,
) -> Source:
    """Return the source of a folder that holds all parts in one set of weights."""
    where = f"'{path}'"
    projector = {name: value for name, value in tensors.items() if name.startswith("projector.")}
    own = projector_config(projector, where, hidden_act)
    text = {name: value for name, value in tensors.items() if name.startswith("llm.")}
    check_complete({**text, **vision.tensors, **projector}, where, llm, vision.config, own)
    part = Part(projector, own, path)
    return assemble(path, kind, Part(text, llm, path), vision, part, notes, tower)
