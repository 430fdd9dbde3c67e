"""MMBench and its like (DEV, TEST, English, Chinese, CCBench): multiple choice with rolled copies.

llava-tools eval mmbench MODEL --data-path MMBench_DEV_EN.tsv --work-dir DIR
"""

from __future__ import annotations

from dataclasses import replace

from llava_tools.eval.benchmark import Benchmark, Question
from llava_tools.eval.choices import CHOOSERS
from llava_tools.eval.multiple_choice import (
    ASK_LETTER,
    Options,
    letter_question,
    llava_layout,
    options_of,
    with_pictures,
)
from llava_tools.eval.scores import circular_scores
from llava_tools.eval.tsv import Row

PUBLISHED = {
    "b6caf1133a01c6bb705cf753bb527ed8": "MMBench_DEV_EN",
    "6939fadb0ce626fefc0bdc9c64efc528": "MMBench_TEST_EN",
    "08b8fc3324a5ed74155350f57be69fbd": "MMBench_DEV_CN",
    "7e1239baf0ee4c8b513e19705a0f317e": "MMBench_TEST_CN",
    "4115aea3383f3dd0083be6a633e0f820": "MMBench",
    "2e053ffc90ea598b1feae13c36dc13ee": "MMBench_CN",
    "1de88b4257e7eee3f60b18d45eda6f07": "CCBench",
    "f5dde47f24dc5a6fb6e595b409b466ac": "CCBench",
}


def lmms_layout(row: Row, options: Options) -> str:
    """Return hint, question and options as lmms-eval asks them."""
    texts = [row.cells[name] for name in ("hint", "question") if name in row.cells]
    head = " ".join([*texts, "There are several options:"])
    lines = [head, *(f"{letter}. {text}" for letter, text in options.items()), "", ASK_LETTER]
    return "\n".join(lines)


def question(row: Row, protocol: str = "vlmevalkit") -> Question:
    """Return the question of a row. Raises UserError naming the row when it cannot be asked."""
    options = options_of(row)
    layout = lmms_layout if protocol.startswith("lmms-eval") else llava_layout
    text = layout(row, options)
    return letter_question(row, with_pictures(row, text), options)


MMBENCH = Benchmark(
    name="mmbench",
    columns=("image", "question", "A", "B"),
    question=question,
    score=circular_scores,
    protocols=tuple(CHOOSERS),
    max_new_tokens=32,
    metrics={"circular": "Circular %", "vanilla": "Vanilla %"},
    submission_columns=(
        "index",
        "question",
        "A",
        "B",
        "C",
        "D",
        "category",
        "l2-category",
        "split",
    ),
    published=PUBLISHED,
)
CCBENCH = replace(MMBENCH, name="ccbench")
