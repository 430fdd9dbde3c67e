"""MMBench in batches against one row at a time, with the same answers.

    python benchmarks/mmbench_batched.py [tiny|small|medium]   # 1M, 45M and 100M parameters
    python benchmarks/mmbench_batched.py --model work_dirs/quickstart/models/xtuner \\
        --data work_dirs/quickstart/data/mmbench.tsv           # the quickstart's model
    sh benchmarks/peers/make_xtuner_env.sh /tmp/xtuner         # once; needs PyPI
    python benchmarks/mmbench_batched.py medium --xtuner /tmp/xtuner/bin/python

A random LLaVA (Llama and CLIP architectures) answers a made-up table with rolled copies. The
plain side is the loop that other kits run: decode the row's picture, encode it, generate. Ours
is the whole `evaluate`, its reading, writing and scoring included. XTuner's is its own command, its
model loaded before the clock starts. The sides alternate; the ratios of the median rates are
printed as JSON.
"""

from __future__ import annotations

import argparse
import base64
import csv
import io
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.peers.rounds import Rounds, say
from llava_tools.cli.entry import run
from llava_tools.data.images import decode_image
from llava_tools.data.render import render_prompt
from llava_tools.data.sample import Turn
from llava_tools.eval.mmbench import question
from llava_tools.eval.run import evaluate
from llava_tools.eval.tsv import read_table
from llava_tools.model.generate import GenerationSettings, answer_text, generate
from llava_tools.model.load import Assistant, load_assistant
from llava_tools.model.projector import Projector
from tests import tiny

BATCH_SIZE, NEW_TOKENS = 16, 8
# name -> questions (of 4 copies), image side, (width, layers) of the tower and of the LLM
SIZES = {"tiny": (24, 112, (64, 4), (64, 4)), "small": (8, 336, (384, 12), (512, 8)),
         "medium": (6, 336, (512, 12), (640, 12))}  # fmt: skip


def write_model(
    root: Path, side: int, tower_size: tuple[int, int], llm_size: tuple[int, int]
) -> Path:
    """Write a model with random weights that are spread enough to give different answers."""
    raw = root / "raw"
    vocab = tiny.save_tokenizer(raw, "llama3")
    (width, layers), (llm_width, llm_layers) = tower_size, llm_size
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=width // 32, image_size=side, patch_size=14,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=llm_width, intermediate_size=3 * llm_width, num_hidden_layers=llm_layers,
        num_attention_heads=llm_width // 32, num_key_value_heads=llm_width // 32, vocab_size=vocab,
        max_position_embeddings=2048, initializer_range=0.1,
    )  # fmt: skip
    LlamaForCausalLM(text).save_pretrained(raw)
    CLIPVisionModel(vision).save_pretrained(raw / "visual_encoder")
    size = {"crop_size": {"height": side, "width": side}, "size": {"shortest_edge": side}}
    preprocessing = {**tiny.PREPROCESSORS["clip"], **size}
    (raw / "visual_encoder/preprocessor_config.json").write_text(json.dumps(preprocessing))
    projector = Projector(width, llm_width)
    (raw / "projector").mkdir()
    (raw / "projector/config.json").write_text(json.dumps(projector.to_config()))
    save_file(projector.state_dict(), raw / "projector/model.safetensors")
    command = ["convert", str(raw), str(root / "model"), "--to", "xtuner", "--dtype", "fp32"]
    if run(command):  # so that transformers 4 reads it, too
        raise SystemExit(1)
    return root / "model"


def for_xtuner(model: Path, root: Path, token: str) -> Path:
    """Return the model with a tokenizer that begins every text with `token`, copied if need be.

    Published tokenizers do, so XTuner puts none there; the ones made here leave it to the template.
    """
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    known = [(token, tokenizer.token_to_id(token))]
    if tokenizer.encode("a").ids[0] == known[0][1]:
        return model
    shutil.copytree(model, root / "theirs")
    tokenizer.post_processor = TemplateProcessing(single=f"{token} $A", special_tokens=known)
    tokenizer.save(str(root / "theirs" / "tokenizer.json"))
    return root / "theirs"


def write_table(path: Path, questions: int) -> Path:
    """Write questions of four options on noise pictures, each with its three rolled copies."""
    words = ["one", "two", "three", "four"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow("index image question A B C D answer category".split())
        for i in range(questions):
            buffer = io.BytesIO()
            Image.effect_noise((320, 240), 20 + 5 * i).save(buffer, "JPEG")
            image = base64.b64encode(buffer.getvalue()).decode()
            text = f"What is in picture {i}? " * (1 + i % 3)
            for turn in range(4):
                rolled = words[turn:] + words[:turn]
                cell = str(i) if turn else image
                writer.writerow([i + turn * 10**6, cell, text, *rolled, "ADCB"[turn], "made up"])
    return path


def one_by_one(assistant: Assistant, data: Path) -> dict[int | str, str]:
    """Answer row after row, as XTuner, VLMEvalKit and LLaVA's scripts do."""
    table = read_table(data, ("image", "question"))
    settings = GenerationSettings(max_new_tokens=NEW_TOKENS)
    answers = {}
    for row in table.rows:
        images = [decode_image(table.picture_bytes(p), row.where) for p in row.pictures]
        turns = [Turn("user", question(row).prompt)]
        prompt = render_prompt(turns, assistant.template, assistant.tokenizer)
        (ids,) = generate(assistant, [prompt], [assistant.pixels(images)], settings)
        answers[row.index] = answer_text(assistant, ids, settings)
    return answers


def batched(assistant: Assistant, data: Path, work_dir: Path) -> dict[int | str, str]:
    """Answer as `llava-tools eval mmbench` does."""
    evaluate(
        "mmbench", "random", data, work_dir,
        batch_size=BATCH_SIZE, max_new_tokens=NEW_TOKENS, assistant=assistant,
    )  # fmt: skip
    lines = (work_dir / "predictions.jsonl").read_text().splitlines()[1:]
    return {record["index"]: record["prediction"] for record in map(json.loads, lines)}


def compare(args: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Let the sides answer in turns; return their rates and how they agree."""
    questions, *sizes = SIZES[args.size]
    model = args.model or write_model(root, *sizes)
    data = args.data or write_table(root / "made_up.tsv", questions)
    template = None if args.model else "llama3_chat"
    assistant = load_assistant(model, template=template, dtype="fp32", device="cpu")
    rounds = Rounds(root, torch.get_num_threads())
    copied = for_xtuner(model, root, assistant.tokenizer.bos_token) if args.xtuner else model
    job = {"model": str(copied), "data": str(data), "template": assistant.template.name,
           "threads": torch.get_num_threads(), "new_tokens": NEW_TOKENS}  # fmt: skip
    one_by_one(assistant, write_table(root / "warm_up.tsv", 1))
    seconds: dict[str, list[float]] = {"one_by_one": [], "batched": [], "xtuner": []}
    theirs: dict[str, str] = {}
    for number in range(args.rounds):
        say(f"Round {number + 1} of {args.rounds}")
        start = time.perf_counter()
        plain = one_by_one(assistant, data)
        middle = time.perf_counter()
        ours = batched(assistant, data, root / str(number))
        seconds["one_by_one"].append(middle - start)
        seconds["batched"].append(time.perf_counter() - middle)
        assert ours == plain, "batching changed an answer"
        if args.xtuner:
            found = rounds.run(args.xtuner, ["xtuner_mmbench.py"], job)
            seconds["xtuner"].append(found["seconds"])
            theirs = found["answers"]
    rates = {side: len(ours) / statistics.median(s) for side, s in seconds.items() if s}
    return {
        "benchmark": "mmbench_batched",
        "size": str(args.model or args.size),
        "rows": len(ours),
        "distinct_answers": len(set(ours.values())),
        "same_answers_as_xtuner": sum(theirs.get(str(i)) == text for i, text in ours.items()),
        "rows_per_second": {side: round(rate, 2) for side, rate in rates.items()},
        "ratios": {
            side: round(rates["batched"] / r, 2) for side, r in rates.items() if side != "batched"
        },
    }


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("size", nargs="?", default="tiny", choices=SIZES)
    parser.add_argument("--model", type=Path, help="a saved model instead, in the xtuner format")
    parser.add_argument("--data", type=Path, help="its table; made up otherwise")
    parser.add_argument("--xtuner", help="the python of XTuner's environment")
    parser.add_argument("--rounds", type=int, default=3)
    with tempfile.TemporaryDirectory() as root:
        print(json.dumps(compare(parser.parse_args(), Path(root))))


if __name__ == "__main__":
    main()
