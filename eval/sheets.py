"""Excel sheets and text files that appear whole or not at all."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from openpyxl import Workbook, load_workbook
from openpyxl.cell import WriteOnlyCell
from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
from openpyxl.utils.exceptions import InvalidFileException

from llava_tools.errors import UserError
from llava_tools.eval.tsv import LARGEST_CELL
from llava_tools.whole_files import beside, write_whole

Cell = str | int | float | bool | None


def write_xlsx(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Cell]]) -> Path:
    """Write a sheet of one table. Texts stay texts, also those that look like formulas."""
    with beside(path) as partial:  # first: a book that is not saved complains of it at its end
        book = Workbook(write_only=True)
        sheet = book.create_sheet("Sheet1")
        sheet.append(list(columns))
        for row in rows:
            sheet.append([_cell(sheet, row.get(name)) for name in columns])
        book.save(partial)
    return path


def _cell(sheet: Any, value: Cell) -> Any:
    if not isinstance(value, str):
        return value
    cell = WriteOnlyCell(sheet, sheet_text(value))
    cell.data_type = "s"  # openpyxl would make a formula of an answer that begins with "="
    return cell


def sheet_text(text: str) -> str:
    """Return the text without the control characters that a sheet cannot hold."""
    return ILLEGAL_CHARACTERS_RE.sub("", text)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Cell]]) -> Path:
    """Write a comma-separated table."""
    with beside(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write a text in UTF-8."""
    return write_whole(path, text.encode())


def read_xlsx(path: Path) -> list[dict[str, Any]]:
    """Return the rows of the first sheet by column name. Raises UserError for no such file."""
    try:
        book = load_workbook(path, read_only=True, data_only=True)
        rows = list(book.worksheets[0].iter_rows(values_only=True))
        book.close()
    except (OSError, ValueError, KeyError, IndexError, BadZipFile, InvalidFileException) as error:
        raise UserError(
            f"'{path}' cannot be read as an Excel sheet: {error}.",
            "Give the .xlsx that an evaluation wrote.",
        ) from error
    header = [str(name) for name in rows[0]] if rows else []
    return [
        dict(zip(header, row, strict=False)) for row in rows[1:] if any(c is not None for c in row)
    ]


def read_delimited(path: Path, delimiter: str) -> list[dict[str, Any]]:
    """Return the rows of a .tsv or .csv by column name. Raises UserError for no such file."""
    csv.field_size_limit(max(csv.field_size_limit(), LARGEST_CELL))
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [dict(row) for row in csv.DictReader(file, delimiter=delimiter)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"'{path}' cannot be read as a table: {error}.", "Give a table of predictions."
        ) from error
