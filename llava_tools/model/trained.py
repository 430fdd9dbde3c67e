"""What training saved: checkpoints of every shape under canonical names, laid over their base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llava_tools.errors import UserError
from llava_tools.model.keymap import convert
from llava_tools.model.lazy import LazyTensor
from llava_tools.model.lora import merge_lora
from llava_tools.model.parts import TWINS
from llava_tools.model.safe_pickle import read_pickle
from llava_tools.model.tables import CHECKPOINT_READ
from llava_tools.model.weights import read_tensors
from llava_tools.model.zero import is_zero_dir, read_zero

if TYPE_CHECKING:
    from llava_tools.config import Settings

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")


def read_checkpoint(path: str | Path) -> Mapping[str, LazyTensor]:
    """Return a checkpoint's tensors under canonical names: what was trained, no more.

    Takes an `iter_N.pth` (file or DeepSpeed directory, or a file inside of one), a bare state
    dict, a `.safetensors`, and LLaVA's mm_projector.bin.

    Raises UserError when it is none of these, damaged, or holds no weights of a LLaVA.
    """
    path = Path(path)
    if path.suffix == ".pt" and is_zero_dir(path.parent):
        path = path.parent
    where = f"'{path}'"
    if is_zero_dir(path):
        raw: Mapping[str, LazyTensor] = read_zero(path)
    elif path.is_dir() or not path.exists():
        raise UserError(
            f"{where} is no checkpoint: " + ("no such file." if not path.exists() else "a folder."),
            "Give an iter_N.pth, or the directory of that name that DeepSpeed wrote.",
        )
    elif path.suffix == ".safetensors":
        raw = read_tensors(path)
    else:
        raw = _state_dict(path)
    tensors = convert(raw, CHECKPOINT_READ, where)
    if not tensors:
        raise UserError(f"{where} holds no weights.", "Give another checkpoint.")
    return tensors


def _state_dict(path: Path) -> dict[str, LazyTensor]:
    loaded = read_pickle(path)
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict):
        raise UserError(
            f"'{path}' holds no state dict of tensors.", "Give a checkpoint that training wrote."
        )
    foreign = [name for name, value in state.items() if not isinstance(value, LazyTensor)]
    if foreign or not state:
        what = f"; for example '{foreign[0]}' is no tensor" if foreign else ""
        raise UserError(
            f"'{path}' holds no state dict of tensors{what}.",
            "Give a checkpoint that training wrote.",
        )
    return {str(name): value for name, value in state.items()}


def overlay(
    base: Mapping[str, LazyTensor],
    trained: Mapping[str, LazyTensor],
    settings: Settings,
    where: str,
) -> dict[str, LazyTensor]:
    """Return the tensors of the base parts with the trained ones in their place, LoRA merged.

    Raises UserError when a trained tensor fits no place, and when a part that the settings train
    is missing or incomplete: exporting the base's weights instead would be a silent failure.
    """
    trained = merge_lora(base, trained, settings, where)
    for name, tensor in trained.items():
        if name.startswith("projector."):
            continue
        held = base.get(name) or (base.get(TWINS[0]) if name in TWINS else None)  # tied
        if held is None:
            raise UserError(
                f"{where} has a weight that the config's models lack: {name}.",
                "Give the config of the run that wrote the checkpoint.",
            )
        if tensor.shape != held.shape:
            raise UserError(
                f"{where}: {name} has shape {tensor.shape}, in the base model {held.shape}.",
                "Give the config of the run that wrote the checkpoint.",
            )
    wanted = {"llm": not settings.freeze_llm and not settings.llm_lora}
    if settings.visual_encoder_name_or_path:
        wanted["visual_encoder"] = (
            not settings.freeze_visual_encoder and not settings.visual_encoder_lora
        )
    for part in [part for part, trains in wanted.items() if trains]:
        absent = [n for n in base if n.startswith(part + ".") and n not in trained]
        if absent:
            raise UserError(
                f"The config trains the {part}, but {where} lacks {len(absent)} of its weights, "
                f"for example {absent[0]}.",
                "Give the config of the run that wrote the checkpoint.",
            )
    return {**base, **trained}
