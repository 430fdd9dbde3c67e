"""The rows of Parquet and Arrow files as JSON, by batches (pyarrow, the extra `parquet`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from llava_tools.errors import UserError

BATCH_ROWS = 1024
SUFFIXES = (".parquet", ".arrow")


def table_rows(path: Path) -> Iterator[bytes]:
    """Yield the rows of a table as JSON objects. Raises UserError for a damaged file.

    What JSON cannot hold becomes text; bytes, which are images as a rule, only their number.
    """
    arrow = _pyarrow(path)
    try:
        for batch in _BATCHES[path.suffix](path):
            for row in batch.to_pylist():
                yield orjson.dumps(row, default=_as_json, option=orjson.OPT_NON_STR_KEYS)
    except arrow.ArrowInvalid as error:
        raise _damaged(path, error) from error


def count_table_rows(path: Path) -> int:
    """Return the number of rows; a Parquet file says so without being read."""
    arrow = _pyarrow(path)
    try:
        if path.suffix == ".parquet":
            from pyarrow.parquet import ParquetFile

            with ParquetFile(path) as file:
                return int(file.metadata.num_rows)
        return sum(int(batch.num_rows) for batch in _arrow_batches(path))
    except arrow.ArrowInvalid as error:
        raise _damaged(path, error) from error


def _parquet_batches(path: Path) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=BATCH_ROWS)


def _arrow_batches(path: Path) -> Iterator[Any]:
    """Read an Arrow file in either form; `datasets` writes streams."""
    from pyarrow import ArrowInvalid, ipc, memory_map

    with memory_map(str(path)) as source:
        try:
            reader = ipc.open_file(source)
        except ArrowInvalid:
            source.seek(0)
            yield from ipc.open_stream(source)
            return
        yield from (reader.get_batch(i) for i in range(reader.num_record_batches))


_BATCHES = {".parquet": _parquet_batches, ".arrow": _arrow_batches}


def _as_json(value: Any) -> str:
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise UserError(
            f"'{path}' is read with pyarrow, which is not installed.",
            "pip install 'llava-tools[parquet]', or convert the file to .jsonl.",
        ) from error
    return pyarrow


def _damaged(path: Path, error: Exception) -> UserError:
    reason = str(error).rstrip(".")
    return UserError(f"'{path}' cannot be read: {reason}.", "Download or write the file again.")
