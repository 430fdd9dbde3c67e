"""Prediction files: our `predictions.jsonl`, other kits' tables, JSON and JSON lines."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from llava_tools.constants import IMAGE_TOKEN
from llava_tools.errors import UserError
from llava_tools.eval.benchmark import Question
from llava_tools.eval.foreign import foreign_answers, mme_answers
from llava_tools.eval.pictures import Index, as_index
from llava_tools.eval.sheets import read_delimited, read_xlsx, sheet_text
from llava_tools.eval.sources import load_json
from llava_tools.eval.tsv import Row


@dataclass(frozen=True)
class Predictions:
    """Answers by index, what is known of the questions they answer, and of how they were made."""

    path: Path
    answers: Mapping[Index, str]
    prompt_hashes: Mapping[Index, str] = field(default_factory=dict)
    questions: Mapping[Index, str] = field(default_factory=dict)
    header: Mapping[str, Any] = field(default_factory=dict)


def prompt_hash(question: Question) -> str:
    """Return a short hash of the question as asked, pictures aside."""
    text = question.prompt.replace(f"{IMAGE_TOKEN}\n", "")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def whole_lines(path: Path) -> tuple[list[bytes], int]:
    """Return the lines that end in a newline, and the offset of the end of the last one."""
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    return data[:end].split(b"\n")[:-1], end


def read_header(path: Path, line: bytes) -> dict[str, Any]:
    """Return the first line of our jsonl. Raises UserError for a file of something else."""
    try:
        header = orjson.loads(line)
    except orjson.JSONDecodeError:
        header = None
    if not isinstance(header, dict) or not isinstance(header.get("fingerprint"), dict):
        raise UserError(
            f"'{path}' does not begin with the header line that an evaluation writes.",
            "Give the predictions.jsonl of an evaluation, or an .xlsx or .tsv of predictions.",
        )
    return header


def read_jsonl(path: Path, lines: Sequence[bytes]) -> Predictions:
    """Return the answers of our jsonl. Raises UserError naming the line that holds none."""
    header = read_header(path, lines[0] if lines else b"")
    answers: dict[Index, str] = {}
    hashes: dict[Index, str] = {}
    for number, line in enumerate(lines[1:], start=2):
        try:
            record = orjson.loads(line)
            index, text = record["index"], record["prediction"]
            if not isinstance(index, int | str) or not isinstance(text, str):
                raise TypeError("an index is a number or a text, an answer a text")
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(
                f"'{path}', line {number}: no answer of an evaluation.",
                "Remove the line; run the evaluation again to answer its row.",
            ) from error
        _once(path, index, answers)
        answers[index], hashes[index] = text, record.get("prompt", "")
    return Predictions(path, answers, hashes, header=header)


def _once(path: Path, index: Index, answers: Mapping[Index, str]) -> None:
    if index in answers:
        raise UserError(
            f"'{path}' answers index {index} twice.", "Remove one of the two; which one is right?"
        )


def read_predictions(path: str | Path, rows: Iterable[Row] = ()) -> Predictions:
    """Read a prediction file: our jsonl, or a table (.xlsx, .tsv, .csv) with index and prediction.

    XTuner's and VLMEvalKit's result files are such tables. LLaVA's and lmms-eval's JSON lines, JSON
    of answers by number, and MME's results (.txt, or their folder) find their questions among
    `rows`. Raises UserError for anything else.
    """
    path = Path(path)
    known = {row.index: row for row in rows}
    folder = path.is_dir() and any(path.glob("*.txt"))
    if not path.is_file() and not folder:
        raise UserError(f"There is no file '{path}'.", "Give a file of predictions.")
    if folder or path.suffix.lower() == ".txt":
        found = Predictions(path, _gathered(path, mme_answers(path, known)))
    elif path.suffix.lower() in (".jsonl", ".json"):
        found = _from_json(path, known)
    else:
        found = _from_table(path)
    if not found.answers:
        raise UserError(f"'{path}' holds no predictions.", "Did the evaluation answer anything?")
    return found


def _from_json(path: Path, rows: Mapping[Index, Row]) -> Predictions:
    """Return the answers of our jsonl, or of other kits' files where `rows` are known."""
    lines = whole_lines(path)[0]
    start = (lines[0] if lines else path.read_bytes()).strip().removesuffix(b",")
    if not start:
        return Predictions(path, {})
    try:
        first = orjson.loads(start)
        ours = isinstance(first, dict) and "fingerprint" in first
    except orjson.JSONDecodeError:
        ours = path.suffix.lower() == ".jsonl"
    if ours or not rows:
        return read_jsonl(path, lines)
    return Predictions(path, _gathered(path, foreign_answers(path, load_json(path), rows)))


def _gathered(path: Path, found: Iterable[tuple[Index, str]]) -> dict[Index, str]:
    answers: dict[Index, str] = {}
    for index, text in found:
        _once(path, index, answers)
        answers[index] = text
    return answers


def _from_table(path: Path) -> Predictions:
    readers = {
        ".xlsx": lambda: read_xlsx(path),
        ".tsv": lambda: read_delimited(path, "\t"),
        ".csv": lambda: read_delimited(path, ","),
    }
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise UserError(
            f"'{path}' is no prediction file that can be read.",
            f"Known: .jsonl, .json, {', '.join(readers)}.",
        )
    rows = readers[suffix]()
    missing = [name for name in ("index", "prediction") if rows and name not in rows[0]]
    if missing:
        raise UserError(
            f"'{path}' has no column {', '.join(missing)}; it has: {', '.join(rows[0])}.",
            "A table of predictions names the row (index) and the answer (prediction).",
        )
    answers: dict[Index, str] = {}
    questions: dict[Index, str] = {}
    for row in rows:
        index = _table_index(row["index"])
        _once(path, index, answers)
        answers[index] = "" if row["prediction"] is None else str(row["prediction"])
        if isinstance(row.get("question"), str):
            questions[index] = row["question"]
    return Predictions(path, answers, questions=questions)


def _table_index(value: Any) -> Index:
    """Return the index of a sheet's cell; pandas writes whole numbers as 12.0 beside blanks."""
    whole = isinstance(value, float) and value.is_integer()
    return int(value) if whole else as_index(str(value).strip())


def check_match(found: Predictions, questions: Sequence[Question], data: Path) -> None:
    """Check that predictions answer these questions. Raises UserError naming the first stranger."""
    known = {question.index: question for question in questions}
    for index in found.answers:
        if index not in known:
            raise _foreign(found.path, data, f"index {index} is not in the data")
    for index, value in found.prompt_hashes.items():
        if value != prompt_hash(known[index]):
            raise _foreign(found.path, data, f"index {index} was asked another question")
    for index, text in found.questions.items():
        if _comparable(text) != _comparable(known[index].row.cells["question"]):
            raise _foreign(found.path, data, f"index {index} has another question")


def _comparable(text: str) -> str:
    return " ".join(sheet_text(text).split())


def _foreign(path: Path, data: Path, what: str) -> UserError:
    return UserError(
        f"'{path}' does not answer the questions of '{data}': {what}.",
        "Give the table that the predictions were made from with --data-path.",
    )
