"""Files that appear whole or not at all: written beside their name, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from llava_tools.errors import UserError

HINT = "Make room, or choose another place."


@contextmanager
def beside(path: Path, hint: str = HINT) -> Iterator[Path]:
    """Give a path to write a file to, which takes the name `path` at the end.

    Its folder is made. Nothing is left of a failure, and what was there stays. Raises UserError
    where it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())  # or a crash could leave the name and nothing in it
        partial.replace(path)
    except OSError as error:
        raise UserError(f"Cannot write '{path}': {error.strerror or error}.", hint) from error
    finally:
        with suppress(OSError):  # the folder may be none
            partial.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes its name when it is complete. Raises UserError as `beside` does."""
    with beside(path) as partial, partial.open("wb") as file:
        yield file


def write_whole(path: Path, data: bytes, hint: str = HINT) -> Path:
    """Write a file and return its path. Raises UserError as `beside` does."""
    with beside(path, hint) as partial:
        partial.write_bytes(data)
    return path


def write_json(path: Path, value: Any) -> Path:
    """Write indented JSON and return its path. Raises UserError as `beside` does."""
    return write_whole(path, orjson.dumps(value, option=orjson.OPT_INDENT_2) + b"\n")
