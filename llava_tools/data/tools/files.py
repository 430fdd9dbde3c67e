"""Rows in and out of the data tools: streamed, counted by reason, written whole or not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from llava_tools.data.detect import AUTO, detect_format
from llava_tools.data.folders import is_single
from llava_tools.data.formats import get_format
from llava_tools.data.progress import watched
from llava_tools.data.rows import MalformedRow, RawRow, origin, parse_row, read_rows
from llava_tools.data.sample import Sample, Skip
from llava_tools.errors import UserError
from llava_tools.whole_files import replacing

Row = dict[str, Any]
Write = Callable[[Row], None]
Reader = Callable[[Any, str], Sample | Skip]


class Read(NamedTuple):
    """A row as it stands, the sample that training makes of it, where it is, and its reader."""

    row: Row
    sample: Sample
    origin: str
    reader: Reader

    def again(self, row: Row) -> Read:
        """Return the changed row in this one's place; its sample stays where it makes none."""
        sample = self.reader(row, self.origin)
        return self._replace(row=row, sample=sample if isinstance(sample, Sample) else self.sample)


@dataclass
class Tally:
    """What became of the rows: `reasons` are drops, `notes` rows that were kept or mended.

    `report` is told of each as it comes: nothing is kept of a row.
    """

    rows: int = 0
    written: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    report: Write = lambda entry: None

    def drop(self, where: str, reason: str, detail: str = "") -> None:
        """Count a row that is left out."""
        self.reasons[reason] += 1
        self.report({"origin": where, "reason": reason, "detail": detail})

    def note(self, where: str, reason: str, detail: str = "") -> None:
        """Count something that was done to a row that is kept."""
        self.notes[reason] += 1
        self.report({"origin": where, "note": reason, "detail": detail})

    def summary(self) -> dict[str, Any]:
        """Return the counts, for scripts."""
        counts = {"rows": self.rows, "written": self.written}
        sides = {"dropped": self.reasons, "notes": self.notes}
        return counts | {name: dict(sorted(side.items())) for name, side in sides.items()}


class _Seen(NamedTuple):
    """A row as progress counts it."""

    raw: RawRow
    bytes_read: int
    seen: int = 1


def read_all(paths: Sequence[Path], tally: Tally, format: str = AUTO) -> Iterator[Read]:  # noqa: A002
    """Yield the rows that can be trained on; the others are counted by the reason they are not.

    Raises UserError for a file that cannot be read or whose format is unknown.
    """
    for path in paths:
        reader = get_format(detect_format(str(path)) if format == AUTO else format)
        for raw in _watched(path):
            tally.rows += 1
            where = origin(path, raw.number)
            try:
                row = parse_row(path, raw)
            except MalformedRow as error:
                tally.drop(where, "malformed_json", error.message)
                continue
            sample = reader(row, where)
            if isinstance(sample, Sample):
                yield Read(row, sample, where, reader)
            else:
                tally.drop(where, sample.reason, sample.detail)


def _watched(path: Path) -> Iterator[RawRow]:
    """Yield the raw rows and show how far they are, where they take more than a moment."""
    blocks = (_Seen(raw, len(raw.data)) for raw in read_rows(path))
    plain = is_single(path) and path.suffix in (".json", ".jsonl") and path.is_file()
    for block in watched(blocks, str(path), path.stat().st_size if plain else 0):
        yield block.raw


def check_out(out: Path, sources: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse to write over an input, over what is there, or under another ending.

    Raises UserError.
    """
    if out.suffix not in (".json", ".jsonl"):
        raise UserError(f"'{out}' ends neither in .json nor in .jsonl.", "Name it 'out.jsonl'.")
    if out.exists() and any(path.exists() and out.samefile(path) for path in sources):
        raise UserError(f"'{out}' is one of the inputs.", "Name another file.")
    if out.exists() and not overwrite:
        raise UserError(f"'{out}' exists.", "Name another file, or give --overwrite.")


@contextmanager
def writing(out: Path, *, lines: bool = False) -> Iterator[Write]:
    """Give a function that writes one row; OUT takes its name when all are written.

    It is a list where its name ends in .json, unless `lines` are wanted.
    """
    is_list, count = out.suffix == ".json" and not lines, 0
    with replacing(out) as file:

        def write(row: Row) -> None:
            nonlocal count
            before = (b",\n" if count else b"[\n") if is_list else b""
            file.write(before + orjson.dumps(row) + (b"" if is_list else b"\n"))
            count += 1

        yield write
        if is_list:
            file.write(b"\n]\n" if count else b"[]\n")
