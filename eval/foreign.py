"""Prediction files of LLaVA's scripts, lmms-eval and benchmark authors: JSON and JSON lines.

They number questions in ways of their own; an answer finds its question by number, by category and
number, or by the image's name and the question's words, never by its position.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_tools.errors import UserError
from llava_tools.eval.formats import joint_index, plain, split_question
from llava_tools.eval.pictures import Index, as_index
from llava_tools.eval.tsv import Row

IDS = ("index", "question_id", "questionId", "id", "doc_id")
TEXTS = ("text", "prediction", "filtered_resps", "resps", "response", "answer")
PROMPTS = ("prompt", "question", "input")


@dataclass(frozen=True)
class Said:
    """An answer with what a record says of its question."""

    where: str
    number: Any
    text: str
    category: str = ""
    prompt: str = ""


def foreign_answers(
    path: Path, content: Any, rows: Mapping[Index, Row]
) -> Iterator[tuple[Index, str]]:
    """Yield (index, answer) of a parsed file. Raises UserError naming a record without either."""
    for said in _records(path, content):
        for index in _candidates(said):
            row = rows.get(index)
            if row is not None and _fits(said, row):
                yield index, said.text
                break
        else:
            raise UserError(
                f"{said.where}: the answer to '{said.number}' belongs to no question of the data.",
                "Give the data that the predictions were made from with --data-path.",
            )


def mme_answers(path: Path, rows: Mapping[Index, Row]) -> Iterator[tuple[Index, str]]:
    """Yield (index, answer) of MME's result files, one or the folder of them, a task each.

    A line has the image, the question, the right answer and the model's, separated by tabs. Raises
    UserError naming a line of anything else.
    """
    known = {_mme_key(r.cells.get("category", ""), r.cells.get("image_path", ""),
                      r.cells.get("question", "")): r.index for r in rows.values()}  # fmt: skip
    for file in sorted(path.glob("*.txt")) if path.is_dir() else [path]:
        try:
            lines = file.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
        except UnicodeDecodeError as error:
            raise UserError(
                f"'{file}' is not text in UTF-8: {error.reason}.", "Save it as UTF-8."
            ) from error
        for number, line in enumerate(lines, 1):
            fields = line.split("\t", 3)
            where = f"'{file}', line {number}"
            if len(fields) != 4:
                raise UserError(
                    f"{where} has {len(fields)} fields.",
                    "MME's results: image, question, right answer and the model's.",
                )
            index = known.get(_mme_key(file.stem, fields[0], fields[1]))
            if index is None:
                raise UserError(
                    f"{where}: the answer belongs to no question of the data.",
                    "Give the data that the predictions were made from with --data-path.",
                )
            yield index, fields[3]


def _mme_key(task: str, image: str, question: str) -> tuple[str, str, str]:
    return task, Path(image).stem, plain(question)


def _records(path: Path, content: Any) -> Iterator[Said]:
    if isinstance(content, dict):
        answers = content.get("outputs", content)
        answers = answers if isinstance(answers, dict) else {}
        for key, text in answers.items():
            yield Said(f"'{path}', {key}", key, _text(f"'{path}', {key}", text))
        return
    for number, record in enumerate(content if isinstance(content, list) else [content], 1):
        where = f"'{path}', record {number}"
        doc = record.get("doc") if isinstance(record, dict) else None
        fields = {**record, **doc} if isinstance(doc, dict) else record
        place = next((name for name in IDS if isinstance(fields, dict) and name in fields), None)
        if place is None:
            raise UserError(f"{where} names no question.", f"Known: {', '.join(IDS)}.")
        given = next((record[name] for name in TEXTS if name in record), None)
        prompt = next((fields[n] for n in PROMPTS if isinstance(fields.get(n), str)), "")
        category = str(fields.get("category") or "")
        yield Said(where, fields[place], _text(where, given), category, prompt)


def _text(where: str, value: Any) -> str:
    """Return the answer; lmms-eval wraps it into lists."""
    while isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, str):
        raise UserError(
            f"{where} holds no answer but {value!r:.40}.", "An answer of a model is a text."
        )
    return value


def _candidates(said: Said) -> Iterator[Index]:
    yield as_index(str(said.number))
    yield f"{said.category}_{said.number}"
    question = split_question(said.prompt)["question"]
    for name in (said.number, Path(str(said.number)).with_suffix("")):
        yield joint_index(name, question)


def _fits(said: Said, row: Row) -> bool:
    """Tell whether a record's prompt, where it has one, asks a row's question."""
    return plain(row.cells.get("question", "")) in plain(said.prompt) if said.prompt else True
