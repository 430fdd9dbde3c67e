"""Chosen rows in a new file, in the format of the file that they come from and otherwise as is."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from llava_tools.data.folders import suffix_of
from llava_tools.data.rows import RawRow, read_rows
from llava_tools.errors import UserError
from llava_tools.whole_files import write_whole


def write_rows(data: Path, places: Sequence[int], out: Path) -> None:
    """Write the rows of `data` at some places (from 0), in that order, to OUT.

    A JSON list becomes one with an indent of 4 (Cherry_LLM's), JSONL stays JSONL, line by line,
    packed files stay packed. OUT appears whole or not at all.
    """
    wanted = {place: i for i, place in enumerate(places)}
    rows: list[bytes] = [b""] * len(wanted)
    for place, row in enumerate(read_rows(data)):
        if place in wanted:
            rows[wanted[place]] = WRITTEN[_kind(out)](row)
    written = b"".join(JOINED[_kind(out)](rows))
    # Without a time stamp, so that the same rows are the same bytes.
    write_whole(out, gzip.compress(written, mtime=0) if out.suffix == ".gz" else written)


def _kind(path: Path) -> str:
    return suffix_of(path).removesuffix(".gz")


def check_target(out: Path, data: Path, *, overwrite: bool) -> None:
    """Refuse to write over the data, over what is there already, or in another format.

    The rows of Parquet and Arrow files are written as JSONL.

    Raises UserError.
    """
    suffix = suffix_of(data)
    kept = suffix if suffix.removesuffix(".gz") in WRITTEN else ".jsonl"  # tables become lines
    if suffix_of(out) != kept:
        raise UserError(
            f"The rows of '{data}' are written as {kept}, and '{out}' does not end in that.",
            f"Name it '{out.name.split('.')[0] or 'out'}{kept}'.",
        )
    if out.exists() and out.samefile(data):
        raise UserError(f"'{out}' is the data itself.", "Name another file.")
    if out.exists() and not overwrite:
        raise UserError(f"'{out}' exists.", "Name another file, or give --overwrite.")


def _indented(row: RawRow) -> bytes:
    """Return a row as json.dump(rows, indent=4) has it; what is not ASCII stays as it was."""
    value: Any = json.loads(row.data)
    text = json.dumps(value, indent=4, ensure_ascii=row.data.isascii())
    return "\n".join(f"    {line}" for line in text.split("\n")).encode()


def _line(row: RawRow) -> bytes:
    return row.data.rstrip(b"\r\n")


def _list(rows: Sequence[bytes]) -> Iterable[bytes]:
    if not rows:
        return [b"[]"]
    return [b"[\n", b",\n".join(rows), b"\n]"]


def _lines(rows: Sequence[bytes]) -> Iterable[bytes]:
    return (row + b"\n" for row in rows)


WRITTEN: dict[str, Callable[[RawRow], bytes]] = {".json": _indented, ".jsonl": _line}
JOINED: dict[str, Callable[[Sequence[bytes]], Iterable[bytes]]] = {
    ".json": _list,
    ".jsonl": _lines,
}
