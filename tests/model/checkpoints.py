"""Runs as training leaves them: `config.py` and `iter_1.pth` with what was trained, no more."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from llava_tools.model.lazy import LazyTensor
from llava_tools.model.parts import read_llm, read_vision
from tests import tiny

TEMPLATES = {"phi3": "phi3_chat", "llama3": "llama3_chat", "vicuna": "vicuna"}


def make_run(
    folder: Path,
    parts: Path,
    llm: str | Path = "phi3",
    tower: str | None = "clip",
    *,
    trains: tuple[str, ...] = ("llm",),
    depth: int = 2,
    **settings: Any,
) -> Path:
    """Write a run of `parts` (names in that folder, or paths) and return its checkpoint.

    `trains` names the parts that training changed besides the projector.
    """
    folder.mkdir(parents=True)
    base = read_llm(parts / llm)
    torch.manual_seed(7)
    state: dict[str, torch.Tensor] = {}
    if "llm" in trains:
        state |= changed(base.tensors)
    if tower:
        vision = read_vision(parts / tower)
        if "visual_encoder" in trains:
            state |= changed(vision.tensors)
        state |= projector(vision.config["hidden_size"], base.config["hidden_size"], depth)
    torch.save({"state_dict": state, "meta": {"iter": 1}}, folder / "iter_1.pth")
    family = Path(llm).name.split("-")[0]
    values = {
        "llm_name_or_path": str(parts / llm),
        "visual_encoder_name_or_path": str(parts / tower) if tower else None,
        "prompt_template": TEMPLATES[family],
        "projector_depth": depth,
        "freeze_llm": "llm" not in trains,
        "freeze_visual_encoder": "visual_encoder" not in trains,
        "datasets": [{"data_path": str(parts / "llava.json"), "pad_image_to_square": True}],
        **settings,
    }
    (folder / "config.py").write_text("".join(f"{k} = {v!r}\n" for k, v in values.items()))
    return folder / "iter_1.pth"


def resave(run: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """Change the state dict of a checkpoint in place."""
    saved = torch.load(run, weights_only=True)
    change(saved["state_dict"])
    torch.save(saved, run)
    return run


def changed(tensors: Mapping[str, LazyTensor]) -> dict[str, torch.Tensor]:
    """Return the tensors with a little noise, as training would change them."""
    read = {name: tensor.read() for name, tensor in tensors.items()}
    return {n: t + 0.05 * torch.randn_like(t.float()) for n, t in read.items()}


def projector(seen: int, width: int, depth: int = 2) -> dict[str, torch.Tensor]:
    """Return a random projector's weights."""
    state = {}
    for i in range(depth):
        state[f"projector.model.{2 * i}.weight"] = torch.randn(width, width if i else seen) / 4
        state[f"projector.model.{2 * i}.bias"] = torch.randn(width) / 4
    return state


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    kept = {key: value for key, value in content.items() if value is not None}
    path.write_text(json.dumps(kept))


def gqa_phi3(folder: Path) -> Path:
    """Write a Phi-3 with two key-value heads for four query heads."""
    return tiny.save_llm(folder / "phi3-gqa", "phi3", kv_heads=2)


def tie(folder: Path) -> Path:
    """Make the LLM in a folder one with tied embeddings."""
    state = load_file(folder / "model.safetensors")
    del state["lm_head.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    edit_json(folder / "config.json", tie_word_embeddings=True)
    return folder


def as_zero(run: Path, stage: int, world: int = 2) -> Path:
    """Make a checkpoint DeepSpeed's directory of `world` ranks, what else was saved in it."""
    saved = torch.load(run, weights_only=False)
    state = saved.pop("state_dict")
    run.unlink()
    run.mkdir()
    shapes = [{name: tensor.shape for name, tensor in state.items()}]
    rank = "zero_pp_rank_{}_mp_rank_00"
    if stage == 3:  # a piece of every parameter on each rank
        cut = [_padded(t, world).chunk(world) for t in state.values()]
        flat = [torch.cat([pieces[i] for pieces in cut]) for i in range(world)]
        module, key = {name: torch.zeros(0) for name in state}, "fp32_flat_groups"
    else:  # the parameters laid end to end, cut into a piece a rank
        row = torch.cat([tensor.flatten() for tensor in state.values()])
        flat = [piece.clone() for piece in _padded(row, 2 * world).chunk(world)]
        module = {name: tensor.bfloat16() for name, tensor in state.items()}
        key = "single_partition_of_fp32_groups"
    states = {"module": module, "param_shapes": shapes, "buffer_names": [], **saved}
    for i, piece in enumerate(flat):
        held = {"zero_stage": stage, "partition_count": world, key: [piece]}
        file = run / f"bf16_{rank.format(i)}_optim_states.pt"
        torch.save({"optimizer_state_dict": held}, file)
        if stage == 3:
            torch.save(states, run / f"{rank.format(i)}_model_states.pt")
    if stage != 3:
        torch.save(states, run / "mp_rank_00_model_states.pt")
    return run


def _padded(tensor: torch.Tensor, multiple: int) -> torch.Tensor:
    flat = tensor.flatten()
    return torch.nn.functional.pad(flat, (0, -len(flat) % multiple))
