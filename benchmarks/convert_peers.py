"""Converting a checkpoint against XTuner's own converter: same model, same formats, same machine.

    sh benchmarks/peers/make_xtuner_env.sh /tmp/xtuner        # once; needs PyPI
    python benchmarks/convert_peers.py --xtuner /tmp/xtuner/bin/python [--scale 0.05] [--rounds 3]

A LLaVA with a Llama of Phi-3-mini's shapes (`--scale 0.5`: half of the layers) behind CLIP ViT-L/14
at 336 pixels, all of it trained, as fp32 `.pth`; base models in fp16. Both sides are run as their
command lines run, in processes of their own; rounds alternate. Printed for each format as JSON:
medians of wall and CPU seconds and of the peak resident memory of the process, the ratios, and
whether the weights that both wrote are equal, bit for bit, in the LLM. Ours reads all back that it
wrote, and XTuner's does not: the ratio of wall times is also given without that. XTuner holds about
1.5 times the checkpoint in memory (12 GB at 0.5), the disk needs about twice the checkpoint's size
(17 GB at 0.5). XTuner asks `torch.cpu` for a function that only `torch.cuda` has, so one is given.
Without --xtuner only our side is run.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from safetensors import safe_open
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from llava_tools.converters.writer import Writer
from llava_tools.model.lazy import LazyTensor
from llava_tools.model.projector import Projector
from tests import tiny

XTUNER_CONFIG = """
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPImageProcessor, CLIPVisionModel
from xtuner.model import LLaVAModel
tokenizer = dict(type=AutoTokenizer.from_pretrained, pretrained_model_name_or_path={llm!r})
image_processor = dict(
    type=CLIPImageProcessor.from_pretrained, pretrained_model_name_or_path={clip!r})
model = dict(
    type=LLaVAModel, freeze_llm=False, freeze_visual_encoder=False,
    llm=dict(type=AutoModelForCausalLM.from_pretrained, pretrained_model_name_or_path={llm!r}),
    visual_encoder=dict(
        type=CLIPVisionModel.from_pretrained, pretrained_model_name_or_path={clip!r}))
"""
OUR_CONFIG = """
llm_name_or_path = {llm!r}
visual_encoder_name_or_path = {clip!r}
prompt_template = "vicuna"
freeze_llm = False
freeze_visual_encoder = False
datasets = [{{"data_path": {rows!r}}}]
"""
FORMATS = {"xtuner": "xtuner", "hf": "huggingface"}  # ours: XTuner's --save-format
OURS, XTUNER = "llava-tools", "XTuner"
MEASURED = str(Path(__file__).with_name("measured.py"))
TARGETS = {"wall": 4.0, "peak GB": 8.0}


def shapes(scale: float) -> tuple[Any, Any, Any]:
    """Return LLM, tower and projector without storage."""
    llama = LlamaConfig(
        vocab_size=32064, hidden_size=3072, intermediate_size=8192, num_attention_heads=32,
        num_hidden_layers=max(1, round(32 * scale)), max_position_embeddings=4096,
    )  # fmt: skip
    clip = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        image_size=336, patch_size=14, projection_dim=768,
    )  # fmt: skip
    with torch.device("meta"):
        parts = LlamaForCausalLM(llama), CLIPVisionModel(clip)
        return *parts, Projector(clip.hidden_size, llama.hidden_size)


def write_run(root: Path, scale: float) -> int:
    """Write base models, a checkpoint and both configs; return the checkpoint's bytes."""
    llm, tower, projector = shapes(scale)
    torch.manual_seed(0)
    state = {f"llm.{name}": torch.randn(v.shape) * 0.02 for name, v in llm.state_dict().items()}
    for name, value in tower.state_dict().items():
        name = f"visual_encoder.vision_model.{name.removeprefix('vision_model.')}"
        state[name] = torch.randn(value.shape) * 0.02
    for name, value in projector.state_dict().items():
        state[f"projector.{name}"] = torch.randn(value.shape) * 0.02
    tiny.save_llm(root / "llm", "vicuna")  # for the tokenizer
    tiny.save_vision(root / "clip")
    for folder, part, model in (("llm", "llm.", llm), ("clip", "visual_encoder.", tower)):
        (root / folder / "model.safetensors").unlink()
        held = {n.removeprefix(part): LazyTensor.of(t) for n, t in state.items() if part in n}
        writer = Writer(root / folder, root / folder, torch.float16)
        writer.weights(held)
        names = {"architectures": [type(model).__name__], "torch_dtype": "float16"}
        writer.json("config.json", model.config.to_dict() | names)
    processor = json.loads((root / "clip/preprocessor_config.json").read_text())
    processor |= {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    (root / "clip/preprocessor_config.json").write_text(json.dumps(processor))
    (root / "run").mkdir()
    torch.save({"state_dict": state, "meta": {"iter": 1}}, root / "run/iter_1.pth")
    (root / "rows.json").write_text("[]")
    places = {"llm": str(root / "llm"), "clip": str(root / "clip"), "rows": str(root / "rows.json")}
    (root / "run/config.py").write_text(OUR_CONFIG.format(**places))
    (root / "xtuner_config.py").write_text(XTUNER_CONFIG.format(**places))
    return (root / "run/iter_1.pth").stat().st_size


def command(side: str, root: Path, to: str, python: str) -> list[str]:
    """Return the command line of one side; it writes to `root/SIDE`."""
    checkpoint, target = str(root / "run/iter_1.pth"), str(root / side)
    if side == OURS:
        run = "from llava_tools.cli.entry import main; main()"
        return [sys.executable, "-c", run, "convert", checkpoint, target, "--to", to]
    script = (
        "import torch; torch.cpu.is_bf16_supported = lambda: True; "
        "from xtuner.tools.model_converters.pth_to_hf import main; main()"
    )
    given = [str(root / "xtuner_config.py"), checkpoint, target, "--safe-serialization"]
    return [python, "-c", script, *given, "--save-format", FORMATS[to]]


def measure(arguments: list[str], log: Path) -> dict[str, float]:
    """Run a program; return its wall and CPU seconds and its peak resident memory."""
    taken = log.with_name("taken.json")
    with log.open("w") as file:
        line = [sys.executable, MEASURED, str(taken), *arguments]
        code = subprocess.run(line, stdout=file, stderr=file, check=False).returncode
    if code:
        raise SystemExit(f"{arguments[0]} ended with {code}:\n{log.read_text()}")
    found: dict[str, float] = json.loads(taken.read_text())
    return found


def read_back(log: Path) -> float:
    """Return the seconds that a conversion took to read back and compare what it had written."""
    found = re.search(r"([\d.]+) to compare", log.read_text())
    assert found, log.read_text()
    return float(found[1])


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own: a child begins with its parent's peak memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def equal_weights(first: Path, second: Path) -> dict[str, int]:
    """Count the tensors of two folders that are equal in names and bits, and the others.

    XTuner's xtuner format keeps tower and projector in fp32; its fp16 is the LLM's.
    """
    held = [_tensors(folder) for folder in (first, second)]
    same, other = 0, len(set(held[0]) ^ set(held[1]))
    for name in set(held[0]) & set(held[1]):
        one, two = (
            safe_open(side[name], "pt").get_tensor(name.split(":")[1]).half() for side in held
        )
        equal = torch.equal(one, two)
        same, other = same + equal, other + (not equal)
    return {"equal": same, "other": other}


def _tensors(folder: Path) -> dict[str, Path]:
    found = {}
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            found |= {f"{file.parent.relative_to(folder)}:{n}": file for n in opened.keys()}  # noqa: SIM118
    return found


def compare(root: Path, to: str, rounds: int, python: str | None) -> dict[str, Any]:
    """Run both sides in turns; return medians, ratios, and whether they wrote the same."""
    sides = [OURS] if python is None else [OURS, XTUNER]
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    record: dict[str, Any] = {}
    for number in range(rounds):
        for side in sides if number % 2 else sides[::-1]:
            line = command(side, root, to, python or "")
            found[side].append(measure(line, root / "log.txt"))
            if side == OURS:
                found[side][-1]["unread"] = found[side][-1]["wall"] - read_back(root / "log.txt")
        if number == 0 and python is not None:
            record["weights"] = apart(equal_weights, root / OURS, root / XTUNER)
        for side in sides:
            shutil.rmtree(root / side)
    median = {
        side: {key: statistics.median(one[key] for one in held) for key in held[0]}
        for side, held in found.items()
    }
    for side, values in median.items():
        record[side] = {key: round(value, 2) for key, value in values.items()}
    if python is not None:
        for key in ("wall", "cpu", "peak GB"):
            ratio = round(median[XTUNER][key] / median[OURS][key], 2)
            record[f"{key}, times ours"] = {"is": ratio, "target": TARGETS.get(key)}
        ratio = round(median[XTUNER]["wall"] / median[OURS]["unread"], 2)
        record["wall, times ours without reading back"] = ratio
    return record


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--xtuner", help="the Python of XTuner's environment")
    parser.add_argument("--scale", type=float, default=0.05)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        size = apart(write_run, root, arguments.scale)
        to = {name: compare(root, name, arguments.rounds, arguments.xtuner) for name in FORMATS}
    finally:
        shutil.rmtree(root)
    record = {"benchmark": "convert_peers", "checkpoint GB": round(size / 1e9, 2), "to": to}
    sys.stdout.write(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
