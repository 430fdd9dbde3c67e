"""What is said about the digits: training rows, and the held-out questions as a benchmark table."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llava_tools.constants import IMAGE_TOKEN
from llava_tools.quickstart.digits import WORDS, Picture

Row = dict[str, Any]

QUESTION = "Which digit is shown?"
ASK_LETTER = "Answer with the option's letter from the given choices directly."  # MMBench's words
OPEN_QUESTIONS = ("What is in the picture?", "What do you see?")
ANSWER = "A handwritten {}."
# What stands for a picture while there is only text.
DESCRIPTIONS = ("The picture shows a {}.", "A handwritten {}.", "{}.")
TEXT_EXAMPLE = f"{DESCRIPTIONS[0].format('seven')}\n{OPEN_QUESTIONS[0]}"
LETTERS = "ABCD"
COPY_STEP = 1_000_000  # MMBench's: copy r of question i has the index i + r * 1,000,000
GROUPS = {
    "straight strokes": ("one", "four", "seven"),
    "open curves": ("two", "three", "five"),
    "closed loops": ("zero", "six", "eight", "nine"),
}
COLUMNS = ("index", "question", *LETTERS, "answer", "category", "l2-category", "image")
CHOICE_SHARE = 0.7  # of the text rows; the others are open questions


def text_rows(count: int, rng: np.random.Generator) -> list[Row]:
    """Return rows without pictures: a digit is described, then named or found among options."""
    rows = []
    for number in range(count):
        word = WORDS[rng.integers(len(WORDS))]
        head = DESCRIPTIONS[rng.integers(len(DESCRIPTIONS))].format(word)
        ask = choice if rng.random() < CHOICE_SHARE else name
        question, answer = ask(word, rng)
        rows.append(_row(f"text-{number}", f"{head}\n{question}", answer))
    return rows


def caption_rows(pictures: Iterable[Picture], rng: np.random.Generator) -> list[Row]:
    """Return a row for each picture that names its digit."""
    return [_picture_row("caption", p, *name(p.word, rng)) for p in pictures]


def choice_rows(pictures: Iterable[Picture], rng: np.random.Generator) -> list[Row]:
    """Return a row for each picture that asks for the letter of its digit."""
    return [_picture_row("choice", p, *choice(p.word, rng)) for p in pictures]


def blind_rows(files: Sequence[str], count: int, rng: np.random.Generator) -> list[Row]:
    """Return choice rows with an empty page in the place of the digit.

    There the model can only learn what the questions alone give away. That is what the evaluation
    with blank images then measures: nothing, if the questions are sound. Without such rows a model
    that looks might take any blank picture for one and the same digit.
    """
    words = [WORDS[i] for i in rng.integers(len(WORDS), size=count)]
    pages = [Picture(files[i % len(files)], -1, word) for i, word in enumerate(words)]
    return [_picture_row("blind", page, *choice(page.word, rng)) for page in pages]


def name(word: str, rng: np.random.Generator) -> tuple[str, str]:
    """Return an open question and its answer."""
    return OPEN_QUESTIONS[rng.integers(len(OPEN_QUESTIONS))], ANSWER.format(word)


def choice(word: str, rng: np.random.Generator) -> tuple[str, str]:
    """Return a question with four options in MMBench's layout, and the right letter."""
    options = draw_options(word, rng)
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True)]
    return "\n".join([QUESTION, *lines, ASK_LETTER]), LETTERS[options.index(word)]


def draw_options(word: str, rng: np.random.Generator) -> list[str]:
    """Return the word and three others, in random order."""
    others = [other for other in WORDS if other != word]
    options = [word, *(others[i] for i in rng.choice(len(others), len(LETTERS) - 1, replace=False))]
    return [options[i] for i in rng.permutation(len(LETTERS))]


def _picture_row(kind: str, picture: Picture, question: str, answer: str) -> Row:
    row = _row(f"{kind}-{Path(picture.file).stem}", f"{IMAGE_TOKEN}\n{question}", answer)
    return {"id": row["id"], "image": picture.file, **row}


def _row(row_id: str, question: str, answer: str) -> Row:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": row_id, "conversations": turns}


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows in LLaVA's layout: a JSON list, one row a line."""
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def write_benchmark(
    path: Path, folder: Path, pictures: Sequence[Picture], rng: np.random.Generator
) -> None:
    """Write a question for each picture as an MMBench table with its rolled copies.

    Copy r has the options rolled by r places; only the question itself (r = 0) holds the picture,
    the copies refer to it by its index.
    """
    group = {word: name for name, words in GROUPS.items() for word in words}
    questions = [(draw_options(picture.word, rng), picture) for picture in pictures]
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(COLUMNS)
        for r in range(len(LETTERS)):
            for index, (options, picture) in enumerate(questions):
                rolled = options[r:] + options[:r]
                image = base64.b64encode((folder / picture.file).read_bytes()).decode()
                table.writerow(
                    [
                        index + r * COPY_STEP,
                        QUESTION,
                        *rolled,
                        LETTERS[rolled.index(picture.word)],
                        picture.word,
                        group[picture.word],
                        index if r else image,
                    ]
                )
