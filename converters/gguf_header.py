"""The header of a GGUF file: metadata, and where each tensor lies (ggml's docs/gguf.md, version 3).

The gguf package's reader makes several arrays of every token: a gigabyte and many seconds for the
vocabulary of Llama 3. This one is for checking what was written.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from llava_tools.errors import UserError

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
_STRING, _ARRAY = 8, 9
# struct's codes of the value types, by their numbers in the file
_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
# What impossible numbers end in; arrays may hold arrays, as deep as a file says.
_WRONG = (struct.error, ValueError, KeyError, MemoryError, OverflowError, RecursionError)


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: shape in torch's order, ggml's type number, first byte."""

    shape: tuple[int, ...]
    kind: int
    start: int


def is_gguf(path: str | Path) -> bool:
    """Tell whether this is a GGUF file, or a folder with some and no other model."""
    folder = Path(path).expanduser()
    if folder.is_file():
        return folder.suffix == ".gguf"
    return not (folder / "config.json").is_file() and any(folder.glob("*.gguf"))


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, Entry]]:
    """Return metadata and tensors. Raises UserError for a file that is cut off or no GGUF."""
    try:
        with path.open("rb") as file:
            return _header(file)
    except _WRONG as error:
        raise UserError(
            f"'{path}' is no GGUF file that can be read: {error}.", "Convert or copy it again."
        ) from error


def _header(file: BinaryIO) -> tuple[dict[str, Any], dict[str, Entry]]:
    if file.read(4) != MAGIC or _number(file, "I") != VERSION:
        raise ValueError("it does not begin as version 3 does")
    tensors, keys = _number(file, "Q"), _number(file, "Q")
    metadata = {}
    for _ in range(keys):
        name = _text(file)
        metadata[name] = _value(file, _number(file, "I"))
    found = {}
    for _ in range(tensors):
        name, dims = _text(file), _number(file, "I")
        shape = tuple(_number(file, "Q") for _ in range(dims))[::-1]
        found[name] = (shape, _number(file, "I"), _number(file, "Q"))
    start = math.ceil(file.tell() / ALIGNMENT) * ALIGNMENT
    return metadata, {k: Entry(shape, kind, start + at) for k, (shape, kind, at) in found.items()}


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _text(file)
    if kind != _ARRAY:
        return _number(file, _SCALARS[kind])
    inner, count = _number(file, "I"), _number(file, "Q")
    if inner in _SCALARS:
        code = f"<{count}{_SCALARS[inner]}"
        return list(struct.unpack(code, file.read(struct.calcsize(code))))
    return [_value(file, inner) for _ in range(count)]


def _text(file: BinaryIO) -> str:
    size = _number(file, "Q")
    data = file.read(size)
    if len(data) != size:
        raise ValueError("it ends too early")
    return data.decode("utf-8")


def _number(file: BinaryIO, code: str) -> Any:
    code = f"<{code}"
    return struct.unpack(code, file.read(struct.calcsize(code)))[0]
