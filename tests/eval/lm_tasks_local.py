"""lm-eval's own tasks over rows in local files: prompts and scoring theirs, no network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from llava_tools.eval.lm import Options, evaluate
from llava_tools.model.load import load_llm, load_tokenizer

Row = dict[str, Any]
FILES = {
    "arc_challenge": "arc/arc_challenge.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "truthfulqa_mc2": "truthfulqa/truthfulqa_mc2.yaml",
    "winogrande": "winogrande/default.yaml",
    "gsm8k": "gsm8k/gsm8k.yaml",
    "triviaqa": "triviaqa/default.yaml",
    "nq_open": "nq_open/nq_open.yaml",
}


TRUE: list[Row] = [
    {
        "question": "one or two?",
        "mc1_targets": {"choices": ["one"], "labels": [1]},
        "mc2_targets": {"choices": ["one", "two three", "a cat"], "labels": [1, 1, 0]},
    },
    {
        "question": "What is in the picture?",
        "mc1_targets": {"choices": ["two blue circles"], "labels": [1]},
        "mc2_targets": {"choices": ["two blue circles", "dog"], "labels": [1, 0]},
    },
]
SCHEMAS: list[Row] = [
    {"sentence": f"The {a} saw the {b} as the _ was {c}.", "option1": a, "option2": b, "answer": w}
    for a, b, c, w in (
        ("cat", "dog", "red", "1"),
        ("dog", "square", "blue", "2"),
        ("picture", "user", "curious", "2"),
        ("assistant", "cat", "artificial", "1"),
    )
]
SCENES: list[Row] = [
    {
        "activity_label": f"Counting {i}",
        "ctx_a": "A user sees a picture.",
        "ctx_b": "the cat",
        "endings": ["is red [step] and  blue.", "answers.", "chats with two dogs.", "is eight."],
        "label": str(i % 4),
    }
    for i in range(4)
]


def write_task(folder: Path, name: str, rows: list[Row], shots: Sequence[Row] = ()) -> None:
    """Write a task file that takes `rows`, and examples in their order, instead of the hub's."""
    spec = find_spec("lm_eval")
    assert spec is not None and spec.submodule_search_locations is not None
    original = Path(spec.submodule_search_locations[0]) / "tasks" / FILES[name]
    data = {split: folder / f"{name}-{split}.jsonl" for split in ("train", "validation", "test")}
    for split, file in data.items():
        held = list(shots) if split == "train" and shots else rows
        file.write_text("".join(json.dumps(row) + "\n" for row in held))
    files = {split: str(file) for split, file in data.items()}
    lines = [
        f"include: {original}",
        f"task: {name}",
        "dataset_path: json",
        "dataset_name: null",
        f"dataset_kwargs: {json.dumps({'data_files': files})}",
    ]
    if shots:
        lines.append("fewshot_config: {sampler: first_n, split: train}")
    (folder / f"{name}.yaml").write_text("\n".join(lines) + "\n")


def run(model: Path, task: str, tasks: Path, work: Path, shots: int = 0, **options: Any) -> Any:
    """Return a task's metrics."""
    given = Options(device="cpu", dtype="fp32", **options)
    report = evaluate(model, task, work, num_fewshot=shots, include_path=tasks, options=given)
    return report["results"][task]


def write_repo(root: Path, name: str, config: str, **splits: Sequence[Row]) -> None:
    """Write a data set as the hub has it: rows by splits, and a README that names them."""
    folder = root / name
    (folder / config).mkdir(parents=True, exist_ok=True)
    lines = [f"- config_name: {config}", "  data_files:"]
    for split, rows in splits.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / config / f"{split}.jsonl").write_text(text)
        lines += [f"  - split: {split}", f"    path: {config}/{split}.jsonl"]
    readme = folder / "README.md"
    before = readme.read_text().splitlines()[2:-1] if readme.is_file() else []
    readme.write_text("\n".join(["---", "configs:", *before, *lines, "---"]) + "\n")


def teach(folder: Path, texts: Sequence[tuple[str, str]], steps: int = 400) -> Path:
    """Let a tiny model learn by heart what to say behind each prompt, well or less so."""
    tokenizer, llm = load_tokenizer(folder), load_llm(str(folder), dtype=torch.float32)
    heads = [tokenizer(asked)["input_ids"] for asked, _ in texts]
    tails = [tokenizer(said + tokenizer.eos_token)["input_ids"] for _, said in texts]
    rows = [head + tail for head, tail in zip(heads, tails, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [2] * (width - len(row)) for row in rows])
    labels = ids.clone()
    for row, head, tokens in zip(labels, heads, rows, strict=True):
        row[: len(head)] = row[len(tokens) :] = -100
    optimizer = torch.optim.AdamW(llm.parameters(), lr=1e-2, weight_decay=0.0)
    torch.manual_seed(0)
    for _ in range(steps):
        loss = llm(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.01:
            break
    llm.save_pretrained(folder)
    return folder
