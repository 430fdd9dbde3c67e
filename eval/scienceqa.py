"""ScienceQA test, the questions with an image: plain accuracy by subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llava_tools.eval.benchmark import Benchmark, Question, Scores
from llava_tools.eval.choices import (
    choose_llava_scienceqa,
    choose_lmms_scienceqa,
    choose_vlmevalkit,
    choose_vlmevalkit_2026,
)
from llava_tools.eval.multiple_choice import (
    ASK_LETTER,
    Options,
    letter_question,
    llava_layout,
    options_of,
    read_by,
    score_rows,
    with_pictures,
)
from llava_tools.eval.pictures import Index
from llava_tools.eval.tsv import Row

CHOOSERS = {
    "lmms-eval": choose_lmms_scienceqa,
    "llava": choose_llava_scienceqa,
    "vlmevalkit": choose_vlmevalkit,
    "vlmevalkit-2026": choose_vlmevalkit_2026,
}


def lmms_layout(row: Row, options: Options) -> str:
    """Return a question as lmms-eval asks it, its hint as context."""
    context = [f"Context: {row.cells['hint']}"] if "hint" in row.cells else []
    lines = [*context, row.cells.get("question", "")]
    lines += [f"{letter}. {text}" for letter, text in options.items()]
    return "\n".join([*lines, ASK_LETTER])


def llava_questions_layout(row: Row, options: Options) -> str:
    """Return a question as LLaVA's question file words it (its CQM-A form)."""
    choices = " ".join(f"({letter}) {text}" for letter, text in options.items())
    lines = [
        f"Context: {row.cells.get('hint', 'N/A')}",
        f"Question: {row.cells.get('question', '')}",
        f"Options: {choices}",
        ASK_LETTER,
    ]
    return "\n".join(lines)


LAYOUTS = {"lmms-eval": lmms_layout, "llava": llava_questions_layout}


def question(row: Row, protocol: str) -> Question:
    """Return the question of a row in the words of a protocol."""
    options = options_of(row)
    text = LAYOUTS.get(protocol, llava_layout)(row, options)
    return letter_question(row, with_pictures(row, text), options)


def score(questions: Sequence[Question], answers: Mapping[Index, str], protocol: str) -> Scores:
    """Return the accuracy over all questions, and for each subject."""
    return score_rows(questions, answers, read_by(CHOOSERS, protocol))


SCIENCEQA = Benchmark(
    name="scienceqa",
    columns=("image", "question", "A", "B", "answer"),
    question=question,
    score=score,
    protocols=tuple(CHOOSERS),
    max_new_tokens=16,
    metrics={"accuracy": "Accuracy %"},
    published={"e42e9e00f9c59a80d8a5db35bc32b71f": "ScienceQA_TEST"},
)
