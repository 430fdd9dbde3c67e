"""SEED-Bench, its questions about single images: multiple choice, plain accuracy by category."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llava_tools.eval.benchmark import Benchmark, Question, Scores
from llava_tools.eval.choices import (
    choose_lmms_seed,
    choose_vlmevalkit,
    choose_vlmevalkit_2026,
    choose_whole,
)
from llava_tools.eval.multiple_choice import (
    read_by,
    score_rows,
    shared_question,
)
from llava_tools.eval.pictures import Index

CHOOSERS = {
    "lmms-eval": choose_lmms_seed,
    "vlmevalkit": choose_vlmevalkit,
    "vlmevalkit-2026": choose_vlmevalkit_2026,
    "llava": choose_whole,
}


def score(questions: Sequence[Question], answers: Mapping[Index, str], protocol: str) -> Scores:
    """Return the accuracy over all questions, and for each kind of question."""
    return score_rows(questions, answers, read_by(CHOOSERS, protocol))


SEED = Benchmark(
    name="seed",
    columns=("image", "question", "A", "B", "answer"),
    question=shared_question,
    score=score,
    protocols=tuple(CHOOSERS),
    max_new_tokens=16,
    metrics={"accuracy": "Accuracy %"},
    published={"68017231464752261a2526d6ca3a10c0": "SEEDBench_IMG"},
)
