"""The raw rows of data files, as JSON, one at a time, whatever their size."""

from __future__ import annotations

import codecs
import gzip
import mmap
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from llava_tools.data.folders import SUFFIXES, is_single, offsets, place_of, suffix_of
from llava_tools.data.tables import count_table_rows, table_rows
from llava_tools.errors import UserError

BOM = b"\xef\xbb\xbf"
# What can open or close an object, with strings matched whole: braces inside them do not count.
_STRING_OR_BRACE = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}]', re.DOTALL)
_BEFORE_FIRST = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[\s*")
_BETWEEN = re.compile(rb"\s*,\s*")
_AFTER_LAST = re.compile(rb"\s*\]\s*")


_MEND = "Mend the file; rows that are merely wrong in content are skipped and listed instead."
# What a file of an ending is, that begins with a sign.
_MISNAMED = {
    (".json", "{"): "It looks like a row a line: name it .jsonl, or write one list, in brackets.",
    (".jsonl", "["): "It looks like one list: name it .json, or write a row a line.",
}


class RawRow(NamedTuple):
    """The bytes of one row; `number` counts rows of a list, or lines, from 1."""

    number: int
    data: bytes


class MalformedRow(UserError):
    """A row that is no valid JSON."""


def read_rows(path: str | Path) -> Iterator[RawRow]:
    """Yield the rows of a data file, unparsed; of a folder or a pattern, those of all its files.

    A `.json` file holds one list, a `.jsonl` file one object a line; either may be packed (`.gz`).
    Raises UserError for a missing file, another suffix, or a file that is no such list.
    """
    if is_single(path):
        yield from _file_rows(Path(path))
        return
    files, ends = offsets(str(path))
    for file, before in zip(files, [0, *ends], strict=False):
        for number, data in _file_rows(file):
            yield RawRow(before + number, data)


def _file_rows(path: Path) -> Iterator[RawRow]:
    reader = _READERS.get(suffix_of(path))
    if reader is None:
        raise UserError(
            f"'{path}': training data must be a file of one of the kinds {', '.join(SUFFIXES)}.",
            "A .json file holds one list of rows, a .jsonl file one row a line.",
        )
    try:
        yield from reader(path)
    except (OSError, EOFError) as error:  # EOFError: a packed file that was cut off
        raise UserError(
            f"'{path}' cannot be read: {getattr(error, 'strerror', None) or error}.",
            "Check the path (in a config: `data_path`).",
        ) from error


def last_number(path: Path) -> int:
    """Return the number of the last row of one file, or of its last line. Raises UserError."""
    suffix = suffix_of(path)
    if suffix in (".parquet", ".arrow"):
        return count_table_rows(path)
    if suffix.startswith(".jsonl"):
        with _opened(path) as file:
            return sum(1 for _ in file)
    return sum(1 for _ in _file_rows(path))


def parse_row(path: str | Path, row: RawRow) -> Any:
    """Return the row's JSON value. Raises UserError naming file and row when it is malformed."""
    try:
        return orjson.loads(row.data)
    except orjson.JSONDecodeError as error:
        where = f"character {error.pos + 1} of the row"
        raise _malformed(path, row.number, error.msg, where) from error


def origin(path: str | Path, number: int) -> str:
    """Return how messages name a row: "train.json, row 12", "train.jsonl, line 12"."""
    file, number, word = (path, number, _word(path)) if _one(path) else _placed(path, number)
    return f"{file}, {word} {number}"


@lru_cache(maxsize=64)
def _one(path: str | Path) -> bool:
    return is_single(path)


@lru_cache(maxsize=64)
def _word(path: str | Path) -> str:
    return "line" if suffix_of(path).startswith(".jsonl") else "row"


def _placed(path: str | Path, number: int) -> tuple[str | Path, int, str]:
    file, place = place_of(path, number)
    return file, place, _word(file)


def _malformed(path: str | Path, number: int, problem: str, where: str) -> UserError:
    file = place_of(path, number)[0]
    with file.open("rb") as opened:
        head = opened.read(64)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return UserError(
            f"'{path}' is in UTF-16; JSON must be in UTF-8.",
            "Convert it: iconv -f UTF-16 -t UTF-8 OLD > NEW",
        )
    begins = head.removeprefix(BOM).lstrip()[:1].decode(errors="replace")
    return MalformedRow(
        f"{origin(path, number)}: malformed JSON: {problem} at {where}.",
        _MISNAMED.get((suffix_of(file), begins), _MEND),
    )


def _opened(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _jsonl_rows(path: Path) -> Iterator[RawRow]:
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            data = line.removeprefix(BOM) if number == 1 else line
            if data.strip():
                yield RawRow(number, data)


def _json_rows(path: Path) -> Iterator[RawRow]:
    """Cut the list into its objects without parsing it whole (which takes 4 times its size).

    Only the plain case is cut: objects with commas between. At anything else the whole file is
    parsed, so that orjson decides what is valid and says what is not.
    """
    with mapped(path) as data:
        number = end = 0
        for start, end in cut_objects(data):
            number += 1
            yield RawRow(number, data[start:end])
        if number and is_rest(data, end):
            return
        rows = _parse_list(path, data[:], number + 1)
    for i in range(number, len(rows)):
        yield RawRow(i + 1, orjson.dumps(rows[i]))


def cut_objects(data: Any) -> Iterator[tuple[int, int]]:
    """Yield where the objects of a list begin and end, as far as it is objects and commas."""
    count = end = depth = start = 0
    for match in _STRING_OR_BRACE.finditer(data):
        brace = match[0]
        if brace == b"{":
            if depth == 0:
                gap = _BETWEEN if count else _BEFORE_FIRST
                if not gap.fullmatch(data, end, match.start()):
                    return
                start = match.start()
            depth += 1
        elif brace == b"}":
            depth -= 1
            if depth < 0:
                return
            if depth == 0:
                count, end = count + 1, match.end()
                yield start, end


def is_rest(data: Any, end: int) -> bool:
    """Return whether the list ends here: what follows the last object is its bracket alone."""
    return _AFTER_LAST.fullmatch(data, end) is not None


@contextmanager
def mapped(path: Path) -> Iterator[Any]:
    """Map a file read-only; an empty one, which cannot be mapped, gives empty bytes."""
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data


def _packed_list_rows(path: Path) -> Iterator[RawRow]:
    with _opened(path) as file:
        rows = _parse_list(path, file.read(), 1)
    for number, row in enumerate(rows, start=1):
        yield RawRow(number, orjson.dumps(row))


def _table_rows(path: Path) -> Iterator[RawRow]:
    for number, data in enumerate(table_rows(path), start=1):
        yield RawRow(number, data)


def _parse_list(path: Path, data: bytes, number: int) -> list[Any]:
    try:
        rows = orjson.loads(data.removeprefix(BOM))
    except orjson.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno} of the file"
        raise _malformed(path, number, error.msg, where) from error
    if not isinstance(rows, list):
        raise UserError(
            f"'{path}' holds a single JSON value, not a list of rows.",
            "Put the rows into a list, or write one row a line and name the file .jsonl.",
        )
    return rows


_READERS: dict[str, Callable[[Path], Iterator[RawRow]]] = {
    ".json": _json_rows,
    ".jsonl": _jsonl_rows,
    ".json.gz": _packed_list_rows,
    ".jsonl.gz": _jsonl_rows,
    ".parquet": _table_rows,
    ".arrow": _table_rows,
}
