"""The end of the quickstart: what was made, the scores, the loss curves, and what to try next."""

from __future__ import annotations

import json
import platform
import shlex
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llava_tools import __version__
from llava_tools.errors import UserError
from llava_tools.quickstart.configs import RUNS
from llava_tools.quickstart.plot import plot_losses, read_losses
from llava_tools.quickstart.stages import CHAT_PICTURE, CHAT_QUESTION, FORMATS, Stage
from llava_tools.quickstart.state import State

EVALUATIONS = ("mmbench", "mmbench_blank")
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "scikit-learn", "pillow")
MADE = {
    "pictures, rows, benchmark table": "data",
    "configs of the three runs": "configs",
    "tokenizer and random parts": "parts",
    "checkpoints and logs": "runs",
    "the language model alone": "models/llm",
    "the model, xtuner format": "models/xtuner",
    "the model, official LLaVA format": "models/llava",
    "the model, Hugging Face format": "models/hf",
    "answers and scores": "eval/mmbench",
    "answers to grey pictures": "eval/mmbench_blank",
    "loss curves": "loss.png",
    "all numbers": "summary.json",
}
# What the full quickstart must reach; four options in every order leave nothing to chance.
LEAST_CIRCULAR = 0.80
MOST_BLANK = 0.15


def finish(root: Path, todo: Sequence[Stage], state: State, *, expected: bool) -> int:
    """Write summary.json and loss.png, print the last table; return the exit code.

    With `expected` a model that is worse than the quickstart's should be is a failure (1).
    Raises UserError when the three formats answer differently.
    """
    losses = {name: read_losses(root / "runs" / name / "log.jsonl") for name in RUNS}
    plot_losses(losses, root / "loss.png")
    summary = summarise(root, todo, state)
    summary["loss"] = {name: curve[-1][1] for name, curve in losses.items() if curve}
    (root / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    show(root, summary)
    complaint = verdict(summary) if expected else ""
    if complaint:
        Console(stderr=True).print(f"[bold red]{complaint}")
    return int(bool(complaint))


def summarise(root: Path, todo: Sequence[Stage], state: State) -> dict[str, Any]:
    """Return what summary.json holds, of the stages' own files."""
    scores, blank = (_read(root / "eval" / name / "scores.json") for name in EVALUATIONS)
    seconds = {stage.name: state.done[stage.name]["seconds"] for stage in todo}
    answers = {name: state.done[f"chat_{name}"]["answer"] for name in FORMATS}
    if len(set(answers.values())) > 1:
        raise UserError(
            f"The three formats of one model answer differently: {answers}.",
            "Please report it, with conversion.json of the three folders.",
        )
    return {
        "mmbench": {
            "circular": scores["circular"],
            "vanilla": scores["vanilla"],
            "circular_blank_images": blank["circular"],
            "vanilla_blank_images": blank["vanilla"],
            "questions": scores["questions"],
            "protocol": scores["protocol"],
            "data_md5": scores["data"]["md5"],
        },
        "formats": {name: _format(root / "models" / name, answers[name]) for name in FORMATS},
        "chat": {"image": CHAT_PICTURE, "question": CHAT_QUESTION, "answer": answers["hf"]},
        "seconds": seconds,
        "total_seconds": round(sum(seconds.values()), 1),
        "seed": state.recipe["seed"],
        "versions": {
            "llava-tools": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
    }


def _format(folder: Path, answer: str) -> dict[str, Any]:
    proof = _read(folder / "conversion.json")
    return {
        "path": str(folder),
        "bytes": size(folder),
        "verified": proof["passed"],
        "largest_logit_difference": proof["largest_logit_difference"],
        "answer": answer,
    }


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def verdict(summary: dict[str, Any]) -> str:
    """Return what is wrong with the result, an empty text if it is as it should be."""
    scores = summary["mmbench"]
    if scores["circular"] < LEAST_CIRCULAR:
        return f"Circular accuracy is {scores['circular']:.3f}, less than {LEAST_CIRCULAR}."
    if scores["circular_blank_images"] >= MOST_BLANK:
        return (
            f"Circular accuracy with grey pictures is {scores['circular_blank_images']:.3f}: "
            "the model does not look."
        )
    return ""


def show(root: Path, summary: dict[str, Any]) -> None:
    """Print what was made, what it is worth, and what to try next."""
    console = Console(highlight=False, soft_wrap=True)
    table = Table("made", "where", "size", box=None, header_style="bold", padding=(0, 3, 0, 0))
    table.columns[1].no_wrap = True
    table.columns[1].overflow = "ignore"  # a path that is cut short cannot be copied
    for what, name in MADE.items():
        table.add_row(what, escape(str(root / name)), readable(size(root / name)))
    console.print(table)
    scores = summary["mmbench"]
    console.print(
        f"\nMMBench on {scores['questions']} held-out pictures, each asked in 4 orders: "
        f"[bold]circular {100 * scores['circular']:.1f} %[/], "
        f"vanilla {100 * scores['vanilla']:.1f} %; "
        f"with grey pictures circular {100 * scores['circular_blank_images']:.1f} %."
    )
    console.print(f"All of it took {summary['total_seconds']:.0f} seconds. Try next:\n")
    for arguments in next_commands(root):
        console.print(f"  {escape(shlex.join(['llava-tools', *arguments]))}")


def next_commands(root: Path) -> list[list[str]]:
    """Return commands that work on what was made."""
    return [
        ["chat", str(root / "models/hf"), "--image", str(root / CHAT_PICTURE)],
        ["inspect", str(root / "models/llava")],
        ["data", "show", str(root / "configs/finetune.py")],
        ["eval", "report", *(str(root / "eval" / name) for name in EVALUATIONS)],
    ]


def readable(size: int) -> str:
    """Return a number of bytes for people."""
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
