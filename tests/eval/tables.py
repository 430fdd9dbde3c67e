"""Made-up benchmark tables: pictures of one colour, questions with rolled copies."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from llava_tools.eval.benchmark import Question
from llava_tools.eval.mmbench import question
from llava_tools.eval.scores import COPY_STEP
from llava_tools.eval.tsv import Row

COLUMNS = (
    *("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "l2-category"),
    *("image", "split"),
)
COLORS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250), "grey": (90, 90, 90)}


def picture(color: str, size: tuple[int, int] = (20, 16)) -> str:
    """Return a picture as base64."""
    buffer = io.BytesIO()
    Image.new("RGB", size, COLORS[color]).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def write(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = COLUMNS) -> Path:
    """Write a table as pandas does: quotes where a cell needs them."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(
            file, columns, delimiter="\t", restval="", extrasaction="ignore", lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)
    return path


def copies(base: int, options: Sequence[str], right: int = 0, **cells: str) -> list[dict[str, Any]]:
    """Return a question and its rolled copies; the copies refer to the first row's image."""
    rows = []
    for shift in range(len(options)):
        rolled = [*options[shift:], *options[:shift]]
        letters = dict(zip("ABCD", rolled, strict=False))
        answer = next(k for k, v in letters.items() if v == options[right])
        image = cells.get("image", picture("red")) if shift == 0 else str(base)
        row = {"index": base + shift * COPY_STEP, "answer": answer, "split": "dev"}
        rows.append({"question": f"What is {base}?", **row, **cells, **letters, "image": image})
    return rows


def small(questions: int = 6) -> list[dict[str, Any]]:
    """Return questions of 2, 3 and 4 options on three pictures, shuffled a little."""
    names = list(COLORS)
    rows = []
    for i in range(questions):
        cells = {"category": f"kind {i % 2}", "l2-category": ["logic_reasoning", "other"][i % 2]}
        cells |= {"image": picture(names[i % 3])} | ({"hint": "Look twice." * i} if i % 2 else {})
        rows += copies(i, names[: 2 + i % 3], right=i % 2, **cells)
    return rows[1::2] + rows[::2]


def as_questions(rows: Sequence[Mapping[str, Any]]) -> list[Question]:
    """Return questions without any file."""
    result = []
    for number, row in enumerate(rows, start=1):
        cells = {k: str(v) for k, v in row.items() if k != "image" and str(v)}
        result.append(question(Row(row["index"], cells, f"'made.tsv', row {number}")))
    return result
