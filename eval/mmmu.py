"""MMMU val: college questions in 30 subjects, most with options, some with several images.

A LLaVA has learnt to see one image, in front of the text: so the texts keep their "<image 1>"; of
several images lmms-eval shows all that are marked, the others the first alone. The "interleaved"
protocols put images in their markers' places, as these kits do for models that were made for it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from llava_tools.constants import IMAGE_TOKEN
from llava_tools.errors import UserError
from llava_tools.eval.benchmark import INTERLEAVED, Benchmark, Question, Scores, Verdict
from llava_tools.eval.choices import (
    choose_lmms_mmmu,
    choose_mmmu,
    choose_vlmevalkit,
    choose_vlmevalkit_2026,
)
from llava_tools.eval.mmmu_open import claims, is_right
from llava_tools.eval.multiple_choice import (
    ASK_LETTER,
    ASK_SHORT,
    Options,
    Read,
    is_chinese,
    letter_question,
    llava_layout,
    options_of,
    plain_question,
    score_rows,
    with_pictures,
)
from llava_tools.eval.pictures import Index
from llava_tools.eval.tsv import Row

CHOOSERS = {
    "official": choose_mmmu,
    "lmms-eval": choose_lmms_mmmu,
    f"lmms-eval{INTERLEAVED}": choose_lmms_mmmu,
    "vlmevalkit": choose_vlmevalkit,
    f"vlmevalkit{INTERLEAVED}": choose_vlmevalkit,
    "vlmevalkit-2026": choose_vlmevalkit_2026,
}
# VLMEvalKit gives an open question two options, of which the first is the gold answer.
OTHER = "Other Answers"
ASK_PLAINLY = "Answer the question directly."
ASK_PLAINLY_CN = "请直接回答问题。"
_MARKER = re.compile(r"<image (\d+)>")


def question(row: Row, protocol: str) -> Question:
    """Return the question of a row, with options or without.

    Raises UserError naming a row with a marker of an image that it has not.
    """
    options = options_of(row)
    layout = _vlmevalkit_layout if protocol.startswith("vlmevalkit") else _authors_layout
    row, prompt = with_marked_pictures(row, layout(row, options), protocol)
    if options:
        return letter_question(row, prompt, options)
    return plain_question(row, prompt, row.cells.get("answer"))


def _vlmevalkit_layout(row: Row, options: Options) -> str:
    if options:
        return llava_layout(row, options)
    text = row.cells.get("question", "")
    return f"{text}\n{ASK_PLAINLY_CN if is_chinese(text) else ASK_PLAINLY}"


def _authors_layout(row: Row, options: Options) -> str:
    lines = [row.cells.get("question", "")]
    lines += [f"{letter}. {text}" for letter, text in options.items()]
    text = "\n".join(lines)
    return f"{text}\n\n{ASK_LETTER if options else ASK_SHORT}"


def with_marked_pictures(row: Row, text: str, protocol: str) -> tuple[Row, str]:
    """Return a row with the pictures that a protocol shows, in their order, and the message.

    An interleaved message has each picture at every marker of it, and those without a marker
    nowhere; without any marker, all stand in front, as they do for models that see one image.
    """
    numbers = [int(number) for number in _MARKER.findall(text)]
    interleaved = protocol.endswith(INTERLEAVED)
    if interleaved and numbers:
        bare = text.replace(IMAGE_TOKEN, "")
        return _chosen(row, numbers), _MARKER.sub(IMAGE_TOKEN, bare)
    if protocol.startswith("lmms-eval"):
        row = _chosen(row, sorted(set(numbers))) if numbers else row
    elif protocol == "official" and _marked(options_of(row).values()) > 1:
        row = replace(row, pictures=(), text_only=True)  # its runner then shows none at all
    elif not interleaved:
        row = replace(row, pictures=row.pictures[:1])
    return row, with_pictures(row, text)


def _chosen(row: Row, numbers: Sequence[int]) -> Row:
    """Return a row with the pictures of these numbers, which begin at 1 (none: they are unread)."""
    there = range(1, len(row.pictures) + 1)
    absent = [number for number in numbers if number not in there]
    if row.pictures and absent:
        raise UserError(
            f"{row.where} has a marker <image {absent[0]}>, but {len(row.pictures)} image(s).",
            "Mend the row, or fetch the file again.",
        )
    return replace(row, pictures=tuple(row.pictures[n - 1] for n in numbers if n in there))


def _marked(texts: Iterable[str]) -> int:
    return sum(len(_MARKER.findall(text)) for text in texts)


def golds(answer: str) -> list[str]:
    """Return the right answers of an open question: a text, or the text of a list of them."""
    if answer.strip().startswith("["):
        try:
            found = ast.literal_eval(answer)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return [answer]
        if isinstance(found, list):
            return [str(gold) for gold in found]
    return [answer]


def score(questions: Sequence[Question], answers: Mapping[Index, str], protocol: str) -> Scores:
    """Return the accuracy over all questions, and for each subject.

    The counts say how many questions have more images than one.
    """
    scores = score_rows(questions, answers, read(protocol))
    several = sum(
        any(int(number) > 1 for text in (q.row.cells["question"], *q.options.values())
            for number in _MARKER.findall(text))
        for q in questions
    )  # fmt: skip
    return replace(scores, counts={**scores.counts, "with_several_images": several})


def read(protocol: str) -> Read:
    """Return the reading of answers with and without options."""
    choose = CHOOSERS[protocol]

    def read_one(text: str, question: Question) -> Verdict:
        right = golds(question.answer or "")
        if question.options:
            choice = choose(text, question.options)
            return Verdict(choice, choice == question.answer)
        if protocol.startswith("vlmevalkit"):
            choice = choose(text, {"A": right[0], "B": OTHER})
            return Verdict(choice, choice == "A")
        found = claims(text)
        return Verdict("; ".join(sorted(map(str, found))), is_right(found, right))

    return read_one


MMMU = Benchmark(
    name="mmmu",
    columns=("image", "question", "answer"),
    question=question,
    score=score,
    protocols=tuple(CHOOSERS),
    max_new_tokens=128,
    metrics={"accuracy": "Accuracy %"},
    published={
        "521afc0f3bf341e6654327792781644d": "MMMU_DEV_VAL",
        "585e8ad75e73f75dcad265dfd0417d64": "MMMU_DEV_VAL",
    },
)
