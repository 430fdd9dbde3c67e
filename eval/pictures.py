"""The `image` cell of a benchmark table: base64, a list of base64, or another row's index."""

from __future__ import annotations

import ast
import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO

from PIL import Image

from llava_tools.errors import UserError

Index = int | str

# VLMEvalKit takes up to 64 characters for a reference, XTuner up to 15; no picture is that short.
LONGEST_REFERENCE = 64
_DECIMAL = re.compile(r"\d+")


@dataclass(frozen=True)
class Picture:
    """One picture of a row, still on disk: the record at byte `offset`, its `part`-th picture.

    `key` is a hash of the cell's text, so equal pictures have equal keys wherever they stand. A
    picture that is a file of its own has its path as `file` and as `key`.
    """

    key: str
    offset: int
    part: int
    where: str
    file: str = ""


@dataclass(frozen=True)
class Reference:
    """An image cell that says "the same as in the row with this index"."""

    index: Index


def as_index(text: str) -> Index:
    """Return a row's index: a number where it is one, otherwise the text (HallusionBench)."""
    return int(text) if _DECIMAL.fullmatch(text) else text


def split_cell(text: str, where: str) -> list[str]:
    """Return the parts of an image cell: one, or those of a list written as text.

    The list is read as a literal and never evaluated. Raises UserError when it is no such list.
    """
    text = text.strip()
    if not text.startswith("["):
        return [text]
    try:
        parts = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise _broken(where, "is no list of base64 texts") from error
    if not parts or not all(isinstance(part, str) for part in parts):
        raise _broken(where, "is no list of base64 texts")
    return [part.strip() for part in parts]


def decode_part(text: str, where: str) -> bytes:
    """Return the bytes of one base64 part. Raises UserError when it is not base64."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _broken(where, f"is not base64 ({error})") from error


class CellScanner:
    """Checks the image cells of a table one after another; equal cells are looked at once."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def scan(self, cell: str, offset: int, where: str) -> Reference | tuple[Picture, ...]:
        """Return what an image cell holds. Raises UserError when it holds no picture."""
        text = cell.strip()
        if len(text) <= LONGEST_REFERENCE and not text.startswith("["):
            return Reference(as_index(text))
        pictures = []
        for part, encoded in enumerate(split_cell(text, where)):
            key = hashlib.blake2b(encoded.encode(), digest_size=16).hexdigest()
            if key not in self.seen:
                _check_header(decode_part(encoded, where), where)
                self.seen.add(key)
            pictures.append(Picture(key, offset, part, where))
        return tuple(pictures)


def _check_header(data: bytes, where: str) -> None:
    """Refuse what is no picture before the first answer, without decoding any pixels."""
    from llava_tools.data.images import FILE_FORMATS  # imports torch, which scoring does not need

    try:
        with Image.open(BytesIO(data), formats=FILE_FORMATS):
            pass
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        kind = (
            "is too large" if isinstance(error, Image.DecompressionBombError) else "is no picture"
        )
        raise _broken(where, f"{kind} after base64 decoding") from error


def _broken(where: str, problem: str) -> UserError:
    return UserError(
        f"{where}: the image cell {problem}.", "Mend the row, or fetch the file again."
    )


def follow(
    index: Index,
    cells: Mapping[Index, Reference | tuple[Picture, ...]],
    where: Mapping[Index, str],
) -> tuple[Picture, ...]:
    """Return the pictures of a row, following references over any number of hops.

    Raises UserError naming the row where a reference leads nowhere or back to itself.
    """
    path = {index: None}  # an ordered set
    cell = cells[index]
    while isinstance(cell, Reference):
        target = cell.index
        if target in path:
            chain = " -> ".join(str(step) for step in (*path, target))
            raise UserError(
                f"{where[index]}: its image refers to itself: {chain}.",
                "One row of such a chain must hold the picture.",
            )
        if target not in cells:
            raise UserError(
                f"{where[index]}: its image refers to index {target}, which is in no row.",
                "The file is incomplete: fetch it again, or put the row back.",
            )
        path[target] = None
        cell = cells[target]
    return cell
