"""MMStar: 1,500 questions that need their image, in 6 categories of 3 abilities each.

The published number is the mean of all questions; lmms-eval takes the mean of the 18 abilities.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from llava_tools.eval.benchmark import Benchmark, Part, Question, Scores
from llava_tools.eval.choices import (
    choose_lmms_2026,
    choose_mmstar,
    choose_vlmevalkit,
    choose_vlmevalkit_2026,
)
from llava_tools.eval.multiple_choice import (
    ASK_LETTER,
    Rows,
    accuracy_part,
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
    "vlmevalkit": choose_vlmevalkit,
    "vlmevalkit-2026": choose_vlmevalkit_2026,
    "official": choose_mmstar,
    "lmms-eval": choose_mmstar,
    "lmms-eval-2026": choose_lmms_2026,
}
_OPTIONS = re.compile(r"Options:\s*(.*)", re.DOTALL)
_OPTION = re.compile(r"([A-D]):\s*(.*?)\s*(?=,\s*[A-D]:|$)", re.DOTALL)


def split_options(row: Row) -> Row:
    """Return a row whose options have columns of their own.

    The authors' file writes them into the question: "... Options: A: one, B: two".
    """
    text = row.cells.get("question", "")
    found = _OPTIONS.search(text)
    if options_of(row) or not found:
        return row
    options = dict(_OPTION.findall(found[1]))
    return replace(row, cells={**row.cells, "question": text[: found.start()].strip(), **options})


def question(row: Row, protocol: str) -> Question:
    """Return the question of a row, in LLaVA's layout; lmms-eval leaves a text as it is written."""
    parted = split_options(row)
    options = options_of(parted)
    text = llava_layout(parted, options)
    if protocol.startswith("lmms-eval") and parted is not row:
        text = f"{row.cells['question'].strip()}\n{ASK_LETTER.removesuffix('.')}"
    return letter_question(row, with_pictures(row, text), options)


def score(questions: Sequence[Question], answers: Mapping[Index, str], protocol: str) -> Scores:
    """Return the accuracy, overall and by category and ability."""
    part = mean_of_abilities if protocol.startswith("lmms-eval") else accuracy_part
    return score_rows(questions, answers, read_by(CHOOSERS, protocol), part)


def mean_of_abilities(rows: Rows) -> Part:
    """Return the numbers of `accuracy_part`, but as overall the mean of the abilities' means."""
    part = accuracy_part(rows)
    abilities = part.groups.get("l2_category", {})
    if not abilities:
        return part
    mean = sum(ability["accuracy"] for ability in abilities.values()) / len(abilities)
    return replace(part, overall={**part.overall, "accuracy": mean})


MMSTAR = Benchmark(
    name="mmstar",
    columns=("image", "question", "answer"),
    question=question,
    score=score,
    protocols=tuple(CHOOSERS),
    max_new_tokens=16,
    metrics={"accuracy": "Accuracy %"},
    published={"e1ecd2140806c1b1bbf54b43372efb9e": "MMStar"},
)
