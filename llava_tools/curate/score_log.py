"""Scores on disk as they come: a line that tells what made them, then one line a row.

A killed run goes on where it was. Embeddings lie beside in a `.npy` file, written before the lines
that count them, so that there are never fewer of them than lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import orjson

from llava_tools.errors import UserError, changes
from llava_tools.locks import hold

KIND = "llava-tools curate"
NPY_HEADER = 128  # bytes, with room for any number of rows

Record = dict[str, Any]
Vectors = np.ndarray[Any, np.dtype[np.float32]]


class ScoreLog:
    """A file of scores, opened for appending; `done` are the places of the rows it has.

    A last line that a kill cut short is dropped. Raises UserError for a file that is none of
    ours, that other settings made, or that another process is writing.
    """

    def __init__(
        self, path: Path, fingerprint: Mapping[str, Any], info: Mapping[str, Any], width: int = 0
    ) -> None:
        self.path, self.width = path, width
        self.done: set[int] = set()
        self.vectors = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file: BinaryIO = path.open("ab")
        except OSError as error:
            raise UserError(
                f"Cannot write '{path}': {error.strerror}.", "Choose another place."
            ) from error
        hint = "Wait for it, or give another file."
        try:
            hold(self.file, path, UserError(f"Another process is writing '{path}'.", hint))
            end = self._read(fingerprint)
        except UserError:
            self.file.close()
            raise
        self.file.truncate(end)
        if width:
            self.embeddings = _open_vectors(embeddings_path(path), self.vectors, width)
        if end == 0:
            self._write([{"kind": KIND, "fingerprint": dict(fingerprint), "info": dict(info)}])

    def _read(self, fingerprint: Mapping[str, Any]) -> int:
        """Take over what is there; return where the last whole line ends."""
        if self.path.stat().st_size == 0:
            return 0
        header, records, end = read_log(self.path)
        if header is None:
            return 0
        if different := changes(header["fingerprint"], fingerprint):
            raise UserError(
                f"'{self.path}' holds the scores of another run: {different}.",
                "Give another file, or delete that one to start over.",
            )
        self.done = {record["row"] for record in records}
        self.vectors = 1 + max((record.get("vector", -1) for record in records), default=-1)
        return end

    def append(self, records: Sequence[Record], vectors: Sequence[Vectors] = ()) -> None:
        """Write records and flush them; `vectors` are those of the records without a reason."""
        if self.width:
            self.embeddings.write(b"".join(v.astype("<f4").tobytes() for v in vectors))
            self.embeddings.flush()
            for record in records:
                if "reason" not in record:
                    record["vector"] = self.vectors
                    self.vectors += 1
        self._write(records)
        self.done |= {record["row"] for record in records}

    def _write(self, records: Iterable[Mapping[str, Any]]) -> None:
        try:
            self.file.write(b"".join(orjson.dumps(record) + b"\n" for record in records))
            self.file.flush()
        except OSError as error:
            raise UserError(
                f"Could not write '{self.path}': {error.strerror}.",
                "Make room and run the same command again: it goes on where it stopped.",
            ) from error

    def __enter__(self) -> ScoreLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.file.close()
        if self.width:
            self.embeddings.seek(0)
            self.embeddings.write(npy_header(self.vectors, self.width))
            self.embeddings.close()


def read_log(path: Path) -> tuple[Record | None, list[Record], int]:
    """Return (header, records, where the last whole line ends); no header: not even that is whole.

    Raises UserError for a file that is no score file of ours, or damaged other than at its end.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"The scores '{path}' cannot be read: {error.strerror}.", "Check the path."
        ) from error
    end = data.rfind(b"\n") + 1
    lines = data[:end].splitlines()
    foreign = UserError(
        f"'{path}' is no score file of `llava-tools curate`.", "Give a file that it wrote."
    )
    if not lines:
        mine = orjson.dumps({"kind": KIND})[:-1]
        if not mine.startswith(data[: len(mine)]):
            raise foreign
        return None, [], 0
    values = []
    for number, line in enumerate(lines, start=1):
        try:
            values.append(orjson.loads(line))
        except orjson.JSONDecodeError as error:
            if number == 1:
                raise foreign from error
            raise UserError(
                f"'{path}', line {number}, is damaged.", "Delete the line: its row is scored again."
            ) from error
    header, *records = values
    if not isinstance(header, dict) or header.get("kind") != KIND:
        raise foreign
    for number, record in enumerate(records, start=2):
        if not isinstance(record, dict) or not isinstance(record.get("row"), int):
            raise UserError(
                f"'{path}', line {number}, is damaged.", "Delete the line: its row is scored again."
            )
    return header, records, end


def embeddings_path(path: Path) -> Path:
    """Return where the embeddings of a score file lie."""
    return path.with_suffix(".npy")


def npy_header(rows: int, width: int) -> bytes:
    """Return the head of a .npy file, of the same length for any number of rows."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {width}), }}"
    head = b"\x93NUMPY\x01\x00" + (NPY_HEADER - 10).to_bytes(2, "little")
    return head + text.ljust(NPY_HEADER - 11).encode() + b"\n"


def _open_vectors(path: Path, rows: int, width: int) -> BinaryIO:
    """Open the embeddings for appending behind those that are counted; drop what a kill left."""
    size = NPY_HEADER + rows * width * 4
    if path.exists() and not _is_ours(path, width):
        raise UserError(
            f"'{path}', where the embeddings go, is another file.", "Give the scores another name."
        )
    if path.exists() and path.stat().st_size < size:
        raise UserError(
            f"'{path}' has fewer embeddings than its scores count.",
            "Delete it and the scores to start over.",
        )
    file = path.open("r+b" if path.exists() else "w+b")
    file.truncate(size)
    file.seek(0)
    file.write(npy_header(rows, width))
    file.seek(size)
    return file


def _is_ours(path: Path, width: int) -> bool:
    with path.open("rb") as file:
        head = file.read(NPY_HEADER)
    shape = re.search(rb"'shape': \((\d+), \d+\)", head)
    return shape is not None and head == npy_header(int(shape[1]), width)


def read_vectors(path: Path, rows: int) -> Vectors:
    """Return the first `rows` embeddings [rows, D] of a score file, memory-mapped.

    They can be read while more are being written. Raises UserError when there are fewer.
    """
    where = embeddings_path(path)
    try:
        with where.open("rb") as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        vectors: Vectors = np.memmap(where, dtype, "r", NPY_HEADER, (rows, shape[1]))
    except (OSError, ValueError, IndexError) as error:
        raise UserError(
            f"The embeddings '{where}' cannot be read, or are fewer than the scores count.",
            "They lie beside the scores that `curate ifd --mode pre` wrote: move both together.",
        ) from error
    return vectors
