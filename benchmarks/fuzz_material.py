"""Genuine files for `fuzz_readers.py`: each reader with a set of files that it reads."""

from __future__ import annotations

import io
import json
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFWriter
from safetensors.torch import save

from llava_tools.converters.check_gguf import compare_files, open_gguf
from llava_tools.converters.convert import convert
from llava_tools.converters.sentencepiece_model import read_pieces
from llava_tools.model.adapters import read_adapter
from llava_tools.model.parts import read_projector
from llava_tools.model.safe_pickle import read_pickle
from llava_tools.model.safetensors_file import read_safetensors
from llava_tools.model.source import detect, open_source, read_checkpoint
from llava_tools.model.weights import read_weights
from llava_tools.model.zero import read_zero, read_zero_moments
from tests import tiny

Files = dict[str, bytes]
Reader = Callable[[Path], Any]
Material = dict[str, tuple[Reader, Files]]


def saved(value: Any, **options: Any) -> bytes:
    """Return what torch.save writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def material() -> Material:
    """Return the readers by name, each with a genuine set of files."""
    torch.manual_seed(0)
    projector = {f"projector.model.{i}.{k}": torch.randn(*s) for i in (0, 2)
                 for k, s in (("weight", (4, 4)), ("bias", (4,)))}  # fmt: skip
    run = {"state_dict": projector, "meta": {"iter": 6, "name": "x", "betas": (0.9, 0.95)}}
    llm = {f"model.w{i}": torch.randn(3, 2).half() for i in range(4)}
    own = {k.removeprefix("projector."): v for k, v in projector.items()}
    settings = {"visual_hidden_size": 4, "llm_hidden_size": 4, "depth": 2, "hidden_act": "gelu"}
    kind = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}
    zero = zero2(projector)
    return {
        "pickle": (lambda p: read_pickle(p / "x.pth"), {"x.pth": saved(run)}),
        "legacy": (
            lambda p: read_pickle(p / "x.bin"),
            {"x.bin": saved(llm, _use_new_zipfile_serialization=False)},
        ),
        "checkpoint": (lambda p: read_checkpoint(p / "x.pth"), {"x.pth": saved(run)}),
        "zero": (read_zero, zero),
        "zero moments": (read_zero_moments, zero),
        "zero 3": (read_zero, zero3(projector)),
        "safetensors": (
            lambda p: read_safetensors(p / "x.safetensors"),
            {"x.safetensors": save(llm)},
        ),
        "shards": (read_weights, shards(llm)),
        "projector": (
            read_projector,
            {"config.json": json.dumps(settings).encode(), "model.safetensors": save(own)},
        ),
        "adapter": (lambda p: read_adapter(p, "llm"), adapter()),
        "detect": (detect, {"config.json": json.dumps(kind).encode()}),
        "gguf": (lambda p: compare_files(open_gguf(p), open_gguf(p), lambda n: None), gguf()),
        "sentencepiece": (lambda p: read_pieces(p / "t.model"), {"t.model": sentencepiece()}),
        **folders(),
    }


def zero2(state: dict[str, torch.Tensor]) -> Files:
    """Return DeepSpeed's files of two ranks, all parameters in a row."""
    flat = torch.cat([value.reshape(-1) for value in state.values()])
    files = {"mp_rank_00_model_states.pt": saved(_model(state, state))}
    for rank, part in enumerate(flat.split(flat.numel() // 2)):
        moments = {0: {"step": torch.tensor(1.0), "exp_avg": part, "exp_avg_sq": part}}
        held = {"single_partition_of_fp32_groups": [part], "partition_count": 2, "zero_stage": 2}
        held["base_optimizer_state"] = {"state": moments}
        name = f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        files[name] = saved({"optimizer_state_dict": held})
    return files


def zero3(state: dict[str, torch.Tensor]) -> Files:
    """Return DeepSpeed's files of two ranks, a half of every parameter on each."""
    files, hollow = {}, {name: torch.zeros(0) for name in state}
    for rank in range(2):
        part = torch.cat([t.reshape(-1).chunk(2)[rank] for t in state.values()])
        held = {"fp32_flat_groups": [part], "partition_count": 2, "zero_stage": 3}
        name = f"zero_pp_rank_{rank}_mp_rank_00"
        files[f"{name}_optim_states.pt"] = saved({"optimizer_state_dict": held})
        files[f"{name}_model_states.pt"] = saved(_model(state, hollow))
    return files


def _model(state: dict[str, torch.Tensor], held: dict[str, torch.Tensor]) -> dict[str, Any]:
    shapes = [{name: value.shape for name, value in state.items()}]
    return {"module": held, "param_shapes": shapes, "buffer_names": [], "shared_params": []}


def shards(weights: dict[str, torch.Tensor]) -> Files:
    """Return two shards with their index."""
    names = list(weights)
    files = {f"m{i}.safetensors": save({n: weights[n] for n in names[2 * i : 2 * i + 2]})
             for i in (0, 1)}  # fmt: skip
    places = {name: f"m{i // 2}.safetensors" for i, name in enumerate(names)}
    index = {"metadata": {"total_size": 48}, "weight_map": places}
    return {**files, "model.safetensors.index.json": json.dumps(index).encode()}


def adapter() -> Files:
    """Return peft's folder of an adapter with a layer that was trained as a whole."""
    start = "base_model.model.model.layers.0.mlp.down_proj.lora_"
    factors = {f"{start}{side}.weight": torch.randn(2, 2) for side in "AB"}
    factors["base_model.model.lm_head.weight"] = torch.randn(4, 2)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none",
              "base_model_name_or_path": "x", "alpha_pattern": {"down_proj": 2},
              "modules_to_save": ["lm_head"], "target_modules": ["down_proj"]}  # fmt: skip
    files = {"adapter_model.safetensors": save(factors)}
    return files | {"adapter_config.json": json.dumps(config).encode()}


def gguf() -> Files:
    """Return a language model's file with keys of every kind and two tensors."""
    with tempfile.TemporaryDirectory() as folder:
        writer = GGUFWriter(f"{folder}/x.gguf", "llama")
        writer.add_file_type(1)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_token_list(["<s>", "a", "b"])
        writer.add_token_scores([0.0, -1.0, -2.0])
        for name in ("token_embd.weight", "output_norm.weight"):
            writer.add_tensor(name, torch.randn(4, 2).numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return {"x.gguf": Path(folder, "x.gguf").read_bytes()}


def sentencepiece() -> bytes:
    """Return a tokenizer.model: some pieces, and the trainer's word that it is of type BPE."""
    pieces = b""
    for i, text in enumerate((b"<unk>", b"<s>", b"\xe2\x96\x81a", b"b")):
        piece = _field(1, text) + b"\x15" + struct.pack("<f", -i) + b"\x18" + bytes([1 + (i < 2)])
        pieces += _field(1, piece)
    return pieces + _field(2, b"\x18\x02")


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2, len(content)]) + content


def folders() -> Material:
    """Return whole models of the three formats, opened as conversions open them."""
    found: Material = {}
    with tempfile.TemporaryDirectory() as tmp:
        root = Path(tmp)
        tiny.save_llm(root / "parts/phi3", "phi3")
        tiny.save_vision(root / "parts/clip", "clip")
        source = tiny.save_xtuner(root / "xtuner", root / "parts")
        for kind in ("xtuner", "llava", "hf"):
            if kind != "xtuner":
                convert(source, root / kind, kind)
            paths = [p for p in (root / kind).rglob("*") if p.suffix in (".json", ".safetensors")]
            files = {str(p.relative_to(root / kind)): p.read_bytes() for p in sorted(paths)}
            kept = {n: b for n, b in files.items() if "token" not in n and "generation" not in n}
            found[f"{kind} folder"] = (lambda p: open_source(p).tensors, kept)
    return found
