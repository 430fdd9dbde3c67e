"""What multiple-choice benchmarks share: options, the layouts of prompts, accuracy."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence

from llava_tools.constants import IMAGE_TOKEN
from llava_tools.errors import UserError
from llava_tools.eval.benchmark import Part, Question, Scores, Verdict
from llava_tools.eval.choices import Choose
from llava_tools.eval.pictures import Index
from llava_tools.eval.scores import by_group
from llava_tools.eval.tsv import Row

ASK_LETTER = "Answer with the option's letter from the given choices directly."
ASK_LETTER_CN = "请直接回答选项字母。"
ASK_SHORT = "Answer the question using a single word or phrase."
_CHINESE = re.compile("[\u4e00-\u9fff]")

Options = Mapping[str, str]
Read = Callable[[str, Question], Verdict]
Rows = Sequence[tuple[Question, Verdict]]


def options_of(row: Row) -> dict[str, str]:
    """Return the options of a row by their letter: its columns of one capital."""
    return {letter: row.cells[letter] for letter in string.ascii_uppercase if letter in row.cells}


def is_chinese(text: str) -> bool:
    """Tell whether a text has a Chinese character."""
    return _CHINESE.search(text) is not None


def llava_layout(row: Row, options: Options) -> str:
    """Return hint, question, options and instruction as LLaVA, XTuner and VLMEvalKit do."""
    lines = [row.cells[name] for name in ("hint", "question") if name in row.cells]
    lines += [f"{letter}. {text}" for letter, text in options.items()]
    text = "\n".join(lines)
    return f"{text}\n{ASK_LETTER_CN if is_chinese(text) else ASK_LETTER}"


def with_pictures(row: Row, text: str) -> str:
    """Return a user's message: the pictures of a row in front of a text.

    An `<image>` inside the text is no picture and is left out, as LLaVA does.
    """
    number = 0 if row.text_only else max(1, len(row.pictures))
    return f"{IMAGE_TOKEN}\n" * number + text.replace(IMAGE_TOKEN, "")


def shared_question(row: Row, protocol: str) -> Question:
    """Return the question of a row, in the layout that all kits share."""
    options = options_of(row)
    return letter_question(row, with_pictures(row, llava_layout(row, options)), options)


def letter_question(row: Row, prompt: str, options: Options) -> Question:
    """Return a question whose answer is a letter.

    Raises UserError naming a row without question or options, or with another answer.
    """
    answer = row.cells.get("answer")
    answer = answer if answer is None else answer.strip()
    if "question" in row.cells and not options:
        raise UserError(f"{row.where} has no options.", "Mend the row, or fetch the file again.")
    if options and answer is not None and answer not in options:
        raise UserError(
            f"{row.where}: the answer '{answer}' is none of its options {', '.join(options)}.",
            "An answer is the letter of one option.",
        )
    return plain_question(row, prompt, answer, options)


def plain_question(
    row: Row, prompt: str, answer: str | None, options: Options | None = None
) -> Question:
    """Return a question with what a row says of its place in the benchmark.

    Raises UserError naming a row without a question.
    """
    if "question" not in row.cells:
        raise UserError(f"{row.where} has no question.", "Mend the row, or fetch the file again.")
    return Question(
        index=row.index,
        prompt=prompt,
        pictures=row.pictures,
        options=options or {},
        answer=answer,
        category=row.cells.get("category"),
        l2_category=row.cells.get("l2-category") or row.cells.get("l2_category"),
        split=row.cells.get("split"),
        row=row,
    )


def read_by(choosers: Mapping[str, Choose], protocol: str) -> Read:
    """Return the reading of answers that are letters, by a protocol's rule."""
    choose = choosers[protocol]

    def read(text: str, question: Question) -> Verdict:
        choice = choose(text, question.options)
        return Verdict(choice, choice == question.answer)

    return read


def score_rows(
    questions: Sequence[Question],
    answers: Mapping[Index, str],
    read: Read,
    part: Callable[[Rows], Part] | None = None,
) -> Scores:
    """Score every row by itself; a row that is missing from `answers` is wrong.

    `part` makes the numbers of some rows (accuracy where none is given).
    """
    part = part or accuracy_part
    rows = []
    for question in questions:
        text = answers.get(question.index)
        verdict = Verdict(None, False, 0.0) if text is None else read(text, question)
        rows.append((question, verdict))
    names = sorted({q.split for q in questions if q.split is not None})
    splits = {name: part([row for row in rows if row[0].split == name]) for name in names}
    answered = [row for row in rows if row[0].index in answers]
    counts = {
        "rows": len(rows),
        "answered": len(answered),
        "missing": len(rows) - len(answered),
        "undecided": sum(verdict.choice is None for _, verdict in answered),
    }
    return Scores(part(rows), splits, counts, {q.index: verdict for q, verdict in rows})


def accuracy_part(rows: Rows) -> Part:
    """Return the mean of what the answers earn: of all, by category and by l2-category."""
    return Part(accuracy(rows), grouped(rows, accuracy))


def accuracy(rows: Rows) -> dict[str, float]:
    """Return the mean of what the answers earn, as a fraction."""
    earned = sum(verdict.earned for _, verdict in rows)
    return {"accuracy": earned / len(rows) if rows else 0.0, "questions": len(rows)}


def grouped(
    rows: Rows, metrics: Callable[[Rows], Mapping[str, float]]
) -> dict[str, dict[str, Mapping[str, float]]]:
    """Return tables of the metrics by l2-category and by category, where rows have them."""
    names: dict[str, Callable[[tuple[Question, Verdict]], str | None]] = {
        "l2_category": lambda row: row[0].l2_category,
        "category": lambda row: row[0].category,
    }
    return by_group(rows, names, metrics)
