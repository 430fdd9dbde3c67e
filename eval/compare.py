"""The same answers by the rules of every kit, with the answers on which the kits disagree.

llava-tools eval compare-protocols mmbench predictions.jsonl --data-path MMBench_DEV_EN.tsv
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava_tools.errors import UserError
from llava_tools.eval.benchmark import INTERLEAVED, Scores, get_benchmark, spread
from llava_tools.eval.predictions import check_match, read_predictions
from llava_tools.eval.report import asked_as, can_score
from llava_tools.eval.sheets import Cell, write_csv
from llava_tools.eval.sources import open_table

Comparison = dict[str, Any]


def compare_protocols(
    benchmark: str,
    predictions: str | Path,
    data_path: str | Path,
    *,
    answers: str | Path | None = None,
    out: str | Path | None = None,
) -> Comparison:
    """Score a prediction file by every protocol; `out` gets the disagreements as a CSV.

    Raises UserError for files that do not fit, and for data without answers.
    """
    chosen = get_benchmark(benchmark)
    table = open_table(chosen, data_path, answers=answers, images=False)
    found = read_predictions(predictions, table.rows)
    asked = asked_as(chosen, found, chosen.protocols[0])
    questions = [chosen.question(row, asked) for row in table.rows]
    check_match(found, questions, table.path)
    if not can_score(questions):
        raise UserError(
            f"'{table.path}' has rows without an answer.", "Only data with answers is scored."
        )
    rules = [name for name in chosen.protocols if not name.endswith(INTERLEAVED)]
    scores = {name: chosen.score(questions, found.answers, name) for name in rules}
    disagreements = [
        {
            "index": question.index,
            "answer": question.answer,
            "prediction": found.answers[question.index],
            **{name: _verdict(scores[name], question.index) for name in scores},
        }
        for question in questions
        if question.index in found.answers
        and len({s.verdicts[question.index].earned for s in scores.values()}) > 1
    ]
    if out is not None:
        write_csv(Path(out), ["index", "answer", "prediction", *scores], disagreements)
    return {
        "benchmark": chosen.name,
        "metrics": dict(chosen.metrics),
        "asked_as": asked,
        "data": {"path": str(table.path), "md5": table.md5},
        "protocols": {
            name: _summary(one, spread(chosen, one, questions, name, "")[0])
            for name, one in scores.items()
        },
        "disagreements": disagreements,
    }


def _verdict(scores: Scores, index: int | str) -> Cell:
    """Return what a protocol read, marked when that is right."""
    verdict = scores.verdicts[index]
    choice = "undecided" if verdict.choice is None else verdict.choice
    return f"{choice} (right)" if verdict.correct else choice


def _summary(scores: Scores, intervals: Mapping[str, tuple[float, float]]) -> Mapping[str, Any]:
    return {**scores.all.overall, "intervals": intervals, "counts": dict(scores.counts)}
