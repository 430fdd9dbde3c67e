"""AI2D test: questions about school diagrams, plain accuracy.

The published number is that of the masked file, where labels in the diagram are replaced by
letters; `AI2D_TEST_NO_MASK` keeps the words and scores several points higher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llava_tools.eval.benchmark import Benchmark, Question, Scores
from llava_tools.eval.choices import choose_lmms_ai2d, choose_vlmevalkit, choose_vlmevalkit_2026
from llava_tools.eval.multiple_choice import (
    read_by,
    score_rows,
    shared_question,
)
from llava_tools.eval.pictures import Index

CHOOSERS = {
    "lmms-eval": choose_lmms_ai2d,
    "vlmevalkit": choose_vlmevalkit,
    "vlmevalkit-2026": choose_vlmevalkit_2026,
}


def score(questions: Sequence[Question], answers: Mapping[Index, str], protocol: str) -> Scores:
    """Return the accuracy over all questions."""
    return score_rows(questions, answers, read_by(CHOOSERS, protocol))


AI2D = Benchmark(
    name="ai2d",
    columns=("image", "question", "A", "B", "answer"),
    question=shared_question,
    score=score,
    protocols=tuple(CHOOSERS),
    max_new_tokens=16,
    metrics={"accuracy": "Accuracy %"},
    published={
        "0f593e0d1c7df9a3d69bf1f947e71975": "AI2D_TEST",
        "fd8f463634d4fe9fbd23b876e8eea5be": "AI2D_TEST_NO_MASK",
    },
)
