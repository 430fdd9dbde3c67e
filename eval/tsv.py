"""Benchmark tables in VLMEvalKit's TSV layout, read as a stream: the pictures stay on disk.

The first pass keeps texts and the place of every picture, so that a file of several GB takes
memory for its texts only; pictures are read again one at a time when they are needed.
"""

from __future__ import annotations

import csv
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from llava_tools.errors import UserError, nearest
from llava_tools.eval.pictures import (
    CellScanner,
    Index,
    Picture,
    Reference,
    as_index,
    decode_part,
    follow,
    split_cell,
)

log = logging.getLogger(__name__)

LARGE_FILE = 200 * 10**6  # bytes: reading it takes seconds
LARGEST_CELL = 2**28  # characters; Python's own limit is 128 KiB, less than one photograph


@dataclass(frozen=True)
class Row:
    """One row: its texts (blank cells are absent) and where its pictures lie.

    `text_only` marks a question that has none; without it, there are some that were not read.
    """

    index: Index
    cells: Mapping[str, str]
    where: str
    pictures: tuple[Picture, ...] = ()
    text_only: bool = False


@dataclass(frozen=True)
class Table:
    """A benchmark table. `md5` is that of the whole file; `columns` are in the file's order."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    md5: str
    image_column: int = -1

    def picture_bytes(self, picture: Picture) -> bytes:
        """Read one picture from the file (safe from several threads at once).

        Raises UserError where a file that was there is not any more.
        """
        if picture.file:
            return _file_bytes(picture)
        with self.path.open("rb") as file:
            file.seek(picture.offset)
            record = next(csv.reader(_Lines(file), delimiter="\t"))
        parts = split_cell(record[self.image_column], picture.where)
        return decode_part(parts[picture.part], picture.where)


def _file_bytes(picture: Picture) -> bytes:
    try:
        return Path(picture.file).read_bytes()
    except OSError as error:
        raise UserError(
            f"{picture.where}: '{picture.file}' cannot be read: {error.strerror}.",
            "Put the image back, or name the right --image-folder.",
        ) from error


def is_absent(cell: str) -> bool:
    """Return whether a cell is blank; pandas also writes a missing value as `nan`."""
    text = cell.strip()
    return len(text) <= 3 and text.lower() in ("", "nan")


def read_table(path: str | Path, required: Sequence[str], *, images: bool = True) -> Table:
    """Read a TSV whose columns hold at least `index` and `required`.

    Without `images` the image column may be missing and is not looked at (scoring needs none).
    Raises UserError naming file and row for a missing column, a ragged row, an index that comes
    twice, and an image cell that holds no picture.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file '{path}'.", "Give the benchmark's TSV with --data-path.")
    csv.field_size_limit(max(csv.field_size_limit(), LARGEST_CELL))
    if (size := path.stat().st_size) > LARGE_FILE:
        log.info("Reading '%s' (%.1f GB) ...", path, size / 1e9)
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        lines = _Lines(file, digest)
        try:
            return _read(path, lines, required, images)
        except UnicodeDecodeError as error:
            raise UserError(
                f"'{path}' is not text in UTF-8 (line {lines.number}): {error.reason}.",
                "A benchmark table is a text file with columns separated by tabs.",
            ) from error
        except csv.Error as error:
            raise UserError(
                f"'{path}', line {lines.number}: {error}.",
                "A benchmark table has columns separated by tabs, and closes the quotes it opens.",
            ) from error


class _Lines:
    """The lines of a file for the csv reader, which takes exactly as many as a record needs."""

    def __init__(self, file: BinaryIO, digest: hashlib._Hash | None = None) -> None:
        self.file = file
        self.digest = digest
        self.offset = 0
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.file.readline()
        if not line:
            raise StopIteration
        self.number += 1
        if self.digest is not None:
            self.digest.update(line)
        encoding = "utf-8-sig" if self.number == 1 and self.offset == 0 else "utf-8"
        self.offset += len(line)
        return line.decode(encoding)


def _read(path: Path, lines: _Lines, required: Sequence[str], images: bool) -> Table:
    columns = _header(path, lines, required if images else [c for c in required if c != "image"])
    image_column = columns.index("image") if "image" in columns else -1
    scanner = CellScanner()
    rows: dict[Index, Row] = {}
    found: dict[Index, Reference | tuple[Picture, ...]] = {}
    for number, (offset, record) in enumerate(_records(lines), start=1):
        row = _row(path, number, columns, record, rows)
        rows[row.index] = row
        if images and image_column >= 0:
            cell = record[image_column]
            if is_absent(cell):
                raise UserError(
                    f"{row.where}: the image cell is empty.",
                    "Every row needs a picture or the index of a row that has it.",
                )
            found[row.index] = scanner.scan(cell, offset, row.where)
    if not rows:
        raise UserError(f"'{path}' has a header but no rows.", "Is the download complete?")
    if found:
        where = {index: row.where for index, row in rows.items()}
        rows = {
            index: Row(index, row.cells, row.where, follow(index, found, where))
            for index, row in rows.items()
        }
    assert lines.digest is not None
    return Table(path, columns, tuple(rows.values()), lines.digest.hexdigest(), image_column)


def _header(path: Path, lines: _Lines, required: Sequence[str]) -> tuple[str, ...]:
    columns = tuple(next(csv.reader(lines, delimiter="\t"), ()))
    if not any(columns):
        raise UserError(f"'{path}' is empty.", "Is the download complete?")
    missing = [name for name in ("index", *required) if name not in columns]
    if missing:
        shown = ", ".join(name[:40] for name in columns[:20])
        raise UserError(
            f"'{path}' has no column {', '.join(dict.fromkeys(missing))}; it has: {shown}.",
            _header_hint(columns, missing),
        )
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise UserError(f"'{path}' has the column {twice[0]} twice.", "Remove one of them.")
    return columns


def _header_hint(columns: tuple[str, ...], missing: list[str]) -> str:
    if len(columns) == 1:
        return "Columns must be separated by tabs."
    close = nearest(missing[0], columns)
    return f"Is '{close}' meant?" if close else "Is this the table of another benchmark?"


def _records(lines: _Lines) -> Iterator[tuple[int, list[str]]]:
    """Yield (byte offset, fields) of each record; the reader never reads ahead of a record."""
    reader = csv.reader(lines, delimiter="\t")
    offset = lines.offset
    for record in reader:
        if record:
            yield offset, record
        offset = lines.offset


def _row(
    path: Path,
    number: int,
    columns: tuple[str, ...],
    record: list[str],
    before: Mapping[Index, Row],
) -> Row:
    """Return a row without its pictures, after checking its shape and its index."""
    where = f"'{path}', row {number}"
    if len(record) != len(columns):
        raise UserError(
            f"{where} has {len(record)} fields, the header has {len(columns)}.",
            "The file is cut off, a quote is not closed, or a cell holds a bare tab.",
        )
    cells = {
        name: cell
        for name, cell in zip(columns, record, strict=True)
        if name != "image" and not is_absent(cell)
    }
    if "index" not in cells:
        raise UserError(f"{where} has no index.", "Every row needs an index of its own.")
    index = as_index(cells["index"].strip())
    where = f"{where} (index {index})"
    if index in before:
        raise UserError(f"{where}: the same index as {before[index].where}.", "Remove one of them.")
    return Row(index, cells, where)
