"""MMBench and its like (DEV, TEST, English, Chinese, CCBench): multiple choice with rolled copies.

llava-tools eval mmbench MODEL --data-path MMBench_DEV_EN.tsv --work-dir DIR
"""

from __future__ import annotations

import re
import string

from llava_tools.constants import IMAGE_TOKEN
from llava_tools.errors import UserError
from llava_tools.eval.benchmark import Benchmark, Question
from llava_tools.eval.choices import CHOOSERS
from llava_tools.eval.scores import circular_scores
from llava_tools.eval.tsv import Row

ASK_LETTER = "Answer with the option's letter from the given choices directly."
ASK_LETTER_CN = "请直接回答选项字母。"
_CHINESE = re.compile("[\u4e00-\u9fff]")

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


def prompt(row: Row, options: dict[str, str]) -> str:
    """Return the user's message: pictures, hint, question, options, instruction.

    The layout of LLaVA and XTuner, which VLMEvalKit takes over for both. An `<image>` inside the
    texts is no picture and is left out, as LLaVA does.
    """
    lines = [row.cells[name] for name in ("hint", "question") if name in row.cells]
    lines += [f"{letter}. {text}" for letter, text in options.items()]
    text = "\n".join(lines).replace(IMAGE_TOKEN, "")
    instruction = ASK_LETTER_CN if _CHINESE.search(text) else ASK_LETTER
    return f"{IMAGE_TOKEN}\n" * max(1, len(row.pictures)) + f"{text}\n{instruction}"


def question(row: Row) -> Question:
    """Return the question of a row. Raises UserError naming the row when it cannot be asked."""
    options = {c: row.cells[c] for c in string.ascii_uppercase if c in row.cells}
    answer = row.cells.get("answer")
    answer = answer if answer is None else answer.strip()
    if "question" not in row.cells or not options:
        lacks = "options" if "question" in row.cells else "question"
        raise UserError(f"{row.where} has no {lacks}.", "Mend the row, or fetch the file again.")
    if answer is not None and answer not in options:
        raise UserError(
            f"{row.where}: the answer '{answer}' is none of its options {', '.join(options)}.",
            "An answer is the letter of one option.",
        )
    return Question(
        index=row.index,
        prompt=prompt(row, options),
        pictures=row.pictures,
        options=options,
        answer=answer,
        category=row.cells.get("category"),
        l2_category=row.cells.get("l2-category"),
        split=row.cells.get("split"),
        row=row,
    )


MMBENCH = Benchmark(
    name="mmbench",
    columns=("image", "question", "A", "B"),
    question=question,
    score=circular_scores,
    protocols=tuple(CHOOSERS),
    max_new_tokens=32,
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
