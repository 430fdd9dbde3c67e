"""`curate compare`: two models' answers by BLEU and ROUGE, and before a judge."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_tools.curate.compare_metrics import METRICS, means
from llava_tools.curate.compare_rows import Question
from llava_tools.whole_files import write_json, write_whole

EXAMPLES = 5  # rows that eval_results.json shows, as compare.py
COLOURS = ("#2a6fbb", "#6fa8dc", "#d1495b", "#e8a33d")
GREY = "#555555"


def compare(questions: Sequence[Question], answers: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return the metrics of each name, in compare.py's shape: `metrics` and five `examples`."""
    references = [question.reference for question in questions]
    scores = {name: means(said, references) for name, said in answers.items()}
    examples = [
        {
            "prompt": question.text,
            "reference": question.reference,
            "instruction": question.instruction,
            "input": question.input,
            **{name: said[i] for name, said in answers.items()},
        }
        for i, question in enumerate(questions[:EXAMPLES])
    ]
    return {
        "metrics": {name: dict(found.metrics) for name, found in scores.items()},
        "examples": examples,
        "rows": len(questions),
        "without_rouge": {name: found.without_rouge for name, found in scores.items()},
    }


def table(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """Return the metrics as aligned lines, a model each."""
    width = max(map(len, metrics))
    lines = [" " * width + "".join(f"{name:>9}" for name in METRICS)]
    for name, scores in metrics.items():
        lines.append(name.ljust(width) + "".join(f"{scores[metric]:9.3f}" for metric in METRICS))
    return "\n".join(lines)


def chart(metrics: Mapping[str, Mapping[str, float]]) -> bytes:
    """Return a PNG with a group of bars for each model, 0 to 1, the values written above."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.6), dpi=120, layout="constrained")
    panel = figure.add_subplot()
    for i, (metric, colour) in enumerate(zip(METRICS, COLOURS, strict=True)):
        heights = [scores[metric] for scores in metrics.values()]
        places = [x + (i - 1.5) * 0.2 for x in range(len(heights))]
        bars = panel.bar(places, heights, 0.18, color=colour, label=metric)
        panel.bar_label(bars, fmt="%.3f", fontsize=8, color=GREY, padding=2)
    panel.set_xticks(range(len(metrics)), list(metrics))
    panel.set_ylim(0, 1)
    panel.set_ylabel("mean over the rows", color=GREY)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(
        frameon=False, ncols=len(METRICS), labelcolor=GREY, loc="lower right", bbox_to_anchor=(1, 1)
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def write(folder: Path, report: Mapping[str, Any]) -> None:
    """Write eval_results.json and model_comparison.png, each whole or not at all."""
    write_json(folder / "eval_results.json", report)
    write_whole(folder / "model_comparison.png", chart(report["metrics"]))
