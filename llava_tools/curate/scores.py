"""Scores read back: from one file or the shards of one, ours or Cherry_LLM's `.pt`, as columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llava_tools.curate.ratios import ratios
from llava_tools.curate.score_log import Record, Vectors, read_log, read_vectors
from llava_tools.errors import UserError

Column = np.ndarray[Any, np.dtype[np.float64]]

# `--by` -> the key of a record; `ifd` is ifd_loss or ifd_ppl.
KEYS = {
    "ifd-loss": "ifd_loss",
    "ifd-ppl": "ifd_ppl",
    "ifd-image": "ifd_image",
    "loss": "loss",
    "direct-loss": "direct_loss",
    "text-loss": "text_loss",
    "ppl": "ppl",
    "direct-ppl": "direct_ppl",
    "length": "tokens",
    "prompt-length": "prompt_tokens",
}


@dataclass
class Scores:
    """The records of all rows that have one, by the row's place in the data file (from 0)."""

    records: dict[int, Record]
    mode: str
    formula: str = "loss"
    made_by: dict[str, Any] = field(default_factory=dict)
    vectors: list[tuple[Path, Vectors]] = field(default_factory=list)
    started: bool = True  # it is known which row comes first

    def key(self, by: str) -> str:
        """Return the key of the records that `--by` means."""
        return KEYS[f"ifd-{self.formula}" if by == "ifd" else by]

    def column(self, key: str, rows: int) -> Column:
        """Return a value of each row, NaN where it has none."""
        column = np.full(rows, np.nan)
        for place, record in self.records.items():
            value = record.get(key)
            if isinstance(value, (int, float)):
                column[place] = value
        return column

    def embedding(self, place: int) -> Vectors:
        """Return the embedding [D] of a row that has one."""
        file, vector = self.records[place]["embedding"]
        row: Vectors = self.vectors[file][1][vector]
        return row


def read_scores(paths: Sequence[Path], start: int | None = None) -> Scores:
    """Read score files that belong together: one, all shards of one, or a `.pt` of Cherry_LLM.

    A path that is not there, but whose shards are, stands for them. `start` is the place of the
    first row of a `.pt`, which does not tell (Cherry's --start_idx).

    Raises UserError for files that are no scores, or of different runs, or score a row twice.
    """
    files = shards_of(paths)
    if any(file.suffix in (".pt", ".pth", ".bin") for file in files):
        if len(files) > 1:
            raise UserError(
                "Several score files, one of which is a .pt.", "Give one .pt file at a time."
            )
        return _from_cherry(files[0], start)
    if start is not None:
        raise UserError(
            "--start-idx is for the .pt files of Cherry_LLM.", "These scores know their rows."
        )
    found: Scores | None = None
    for file in files:
        header, records, _ = read_log(file)
        if header is None:
            raise UserError(f"'{file}' has no scores yet.", "Let `curate ifd` write some.")
        identity = {k: v for k, v in header["fingerprint"].items() if k != "shard"}
        if found is None:
            found = Scores({}, identity["mode"], header["info"].get("ifd", "loss"), identity)
        _check_same(found.made_by, identity, files[0], file)
        if identity["mode"] == "pre":
            count = 1 + max((r.get("vector", -1) for r in records), default=-1)
            if count:
                found.vectors.append((file, read_vectors(file, count)))
        for record in records:
            if record["row"] in found.records:
                raise UserError(
                    f"'{file}' scores row {record['row'] + 1} again.", "Give each file once."
                )
            if "vector" in record:
                record["embedding"] = len(found.vectors) - 1, record["vector"]
            found.records[record["row"]] = record
    if found is None:
        raise UserError("No score file was given.", "Name the file that `curate ifd` wrote.")
    return found


def shards_of(paths: Sequence[Path]) -> list[Path]:
    """Return the files that paths stand for: themselves, or their shards where those lie alone."""
    return [file for path in paths for file in _shards(path)]


def _shards(path: Path) -> list[Path]:
    if path.exists():
        return [path]
    return sorted(path.parent.glob(f"{path.stem}-*-of-*{path.suffix}")) or [path]


def _check_same(one: dict[str, Any], other: dict[str, Any], first: Path, file: Path) -> None:
    for key in {**one, **other}:
        if one.get(key) != other.get(key):
            raise UserError(
                f"'{first}' and '{file}' are scores of different runs: {key} is "
                f"{one.get(key)!r} and {other.get(key)!r}.",
                "Score all shards with the same model, data and settings.",
            )


def _from_cherry(path: Path, given: int | None) -> Scores:
    """Read what Cherry_LLM's data_analysis saved; perplexities tell the losses."""
    from llava_tools.model.safe_pickle import read_pickle

    saved = read_pickle(path)
    if not isinstance(saved, list) or not all(isinstance(row, dict) for row in saved):
        raise _no_cherry(path)
    start = given or 0
    pre = any("sent_emb" in row for row in saved)
    records: dict[int, Record] = {}
    embeddings: list[Vectors] = []
    for i, row in enumerate(saved):
        values = row.get("ppl")
        if not isinstance(values, list) or len(values) < 3:
            raise _no_cherry(path)
        record: Record = {"row": start + i}
        if pre:
            record |= {"ppl": _number(values[0])}
            vector = _tensor(row.get("sent_emb"))
            if vector is None:
                record["reason"] = "not_finite"
            else:
                record["embedding"] = 0, len(embeddings)
                embeddings.append(vector)
        else:
            direct, asked = _number(values[1]), _number(values[2])
            record |= ratios(_log(asked), _log(direct))
            record |= {} if record["ifd_loss"] is not None else {"reason": "not_finite"}
        records[start + i] = record
    scores = Scores(
        records, "pre" if pre else "cherry", made_by={"file": str(path)}, started=given is not None
    )
    if len({len(vector) for vector in embeddings}) > 1:
        raise _no_cherry(path)
    if embeddings:
        scores.vectors.append((path, np.stack(embeddings)))
    return scores


def _no_cherry(path: Path) -> UserError:
    return UserError(
        f"'{path}' is no list of scores as Cherry_LLM saves it.",
        "Give the file that its data_analysis.py wrote, or scores of `curate ifd`.",
    )


def _number(value: Any) -> float:
    """Return a number, or a tensor of one, as a float; NaN for anything else."""
    if hasattr(value, "read"):
        value = value.read()
        value = value.float().item() if value.numel() == 1 else math.nan
    return float(value) if isinstance(value, (int, float)) else math.nan


def _tensor(value: Any) -> Vectors | None:
    first = value[0] if isinstance(value, list) and value else None
    if first is None or not hasattr(first, "read"):
        return None
    array: Vectors = first.read().float().reshape(-1).numpy()
    return array


def _log(value: float) -> float:
    return math.log(value) if value > 0 else math.nan
