"""AlpacaEval's files: model_outputs.json, annotations.json, leaderboard.csv, and its difficulty."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llava_tools.errors import UserError
from llava_tools.eval.alpaca_metrics import Gamed
from llava_tools.whole_files import write_whole

COLUMNS = (
    "win_rate",
    "standard_error",
    "n_wins",
    "n_wins_base",
    "n_draws",
    "n_total",
    "discrete_win_rate",
    "mode",
    "avg_length",
    "length_controlled_winrate",
    "lc_standard_error",
)
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Outputs:
    """The answers to each instruction, in the file's order, and who gave them."""

    generator: str
    rows: tuple[Row, ...]


def read_rows(path: Path, needed: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of a JSON list (or of lines), each with texts under the `needed` keys.

    Raises UserError naming the first row without one.
    """
    try:
        text = path.read_text(encoding="utf-8")
        lines = path.suffix == ".jsonl"
        rows = (
            [json.loads(line) for line in text.splitlines() if line] if lines else json.loads(text)
        )
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read: {error}.", "Give a JSON list.") from error
    if not isinstance(rows, list) or not rows:
        raise UserError(f"'{path}' is no list of rows.", "Give AlpacaEval's outputs.")
    for number, row in enumerate(rows, 1):
        missing = [key for key in needed if not isinstance(row, dict) or not _text(row, key)]
        if missing:
            raise UserError(
                f"Row {number:,} of '{path}' has no text '{missing[0]}'.",
                f"Each row needs {', '.join(needed)}.",
            )
    return rows


def _text(row: Row, key: str) -> bool:
    return isinstance(row.get(key), str)


def read_outputs(path: Path) -> Outputs:
    """Return a file of outputs. Raises UserError for rows without one, or repeated instructions."""
    rows = read_rows(path, ("instruction", "output"))
    seen: set[str] = set()
    for number, row in enumerate(rows, 1):
        if row["instruction"] in seen:
            raise UserError(
                f"Row {number:,} of '{path}' repeats an instruction: '{row['instruction']:.60}'.",
                "Rows are matched by instruction: take one of them out.",
            )
        seen.add(row["instruction"])
    return Outputs(str(rows[0].get("generator") or path.stem), tuple(rows))


def read_difficulty(path: Path, number: int) -> list[float]:
    """Return the difficulty of each instruction, of instruction_difficulty.csv or df_gamed.csv.

    The latter tells it once for each of its baselines, under the same `index`.
    Raises UserError for a file of another number of instructions.
    """
    table = _table(path, ("instruction_difficulty",), ("index",))
    found = table["instruction_difficulty"]
    if "index" in table:
        pairs = zip(reversed(table["index"]), reversed(found), strict=True)
        found = [value for _, value in sorted(dict(pairs).items())]  # the first of each
    if len(found) != number:
        raise UserError(
            f"'{path}' has {len(found):,} instructions, the reference {number:,}.",
            "It goes by the row: it is that of AlpacaEval's 805 instructions, in order.",
        )
    return found


def read_gamed(path: Path) -> Gamed:
    """Return the gamed baselines (df_gamed.csv).

    Columns: preference (0 to 1, how often the baseline wins), std_delta_len,
    instruction_difficulty. Raises UserError for a file without them.
    """
    table = _table(path, ("preference", "std_delta_len", "instruction_difficulty"))
    columns = [np.array(column) for column in table.values()]
    if not len(columns[0]) or columns[0].min() < 0 or columns[0].max() > 1:
        raise UserError(
            f"'{path}' has preferences that are no shares from 0 to 1.",
            "Give AlpacaEval's df_gamed.csv.",
        )
    return Gamed(*columns)


def _table(path: Path, columns: Sequence[str], more: Sequence[str] = ()) -> dict[str, list[float]]:
    """Return some columns of a CSV file; of `more`, those that it has."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        names = [*columns, *(name for name in more if name in (reader.fieldnames or ()))]
        found = {name: [float(row[name]) for row in rows] for name in names}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"'{path}' has no numbers under {', '.join(columns)}: {error}.",
            "Give AlpacaEval's file.",
        ) from error
    if not all(np.isfinite(values).all() for values in found.values()):
        raise UserError(f"'{path}' has values that are no numbers.", "Give AlpacaEval's file.")
    return found


def write_json(path: Path, value: Any) -> None:
    """Write a file whole or not at all."""
    write_whole(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_leaderboard(path: Path, name: str, row: Row) -> None:
    """Put a model's line into a leaderboard, in place of its older one; best win rate first.

    Raises UserError for a file that is no leaderboard.
    """
    lines: dict[str, dict[str, Any]] = {}
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            head = next(reader, [])
            if "win_rate" not in head:
                raise UserError(f"'{path}' is no leaderboard.", "Name another work dir.")
            lines = {
                line[0]: dict(zip(head[1:], line[1:], strict=False)) for line in reader if line
            }
    lines[name] = dict(row)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["", *COLUMNS])
    for model, values in sorted(lines.items(), key=lambda line: -_number(line[1])):
        cells = [values.get(column) for column in COLUMNS]
        writer.writerow([model, *("" if cell is None else cell for cell in cells)])
    write_whole(path, buffer.getvalue().encode())


def _number(values: Row) -> float:
    found = values.get("length_controlled_winrate") or values.get("win_rate") or 0
    return float(found)
