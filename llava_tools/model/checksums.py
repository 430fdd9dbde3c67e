"""The checksums that torch writes beside a checkpoint's values, compared where that is asked for.

Nothing reads them otherwise, torch neither: it would mean to read all of a file once more.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from llava_tools.errors import UserError
from llava_tools.model.archive import Entries
from llava_tools.model.lazy import LazyTensor

log = logging.getLogger(__name__)

_compared: ContextVar[set[Path] | None] = ContextVar("compared", default=None)


@contextmanager
def comparing_checksums(wanted: bool = True) -> Iterator[None]:
    """Compare the checksums of every checkpoint that is opened within this block, once."""
    token = _compared.set(set() if wanted else None)
    try:
        yield
    finally:
        _compared.reset(token)


def compare_checksums(
    entries: Entries, tensors: Sequence[tuple[LazyTensor, str]], found: Any
) -> None:
    """Compare all records that tensors lie in, where that is asked for; `found` names the tensors.

    Raises UserError naming the file and a tensor of the first record that differs.
    """
    done = _compared.get()
    if done is None or entries.path in done:
        return
    done.add(entries.path)
    log.info("Comparing the checksums in '%s' ...", entries.path)
    for key in dict.fromkeys(key for _, key in tensors):
        start, size = entries.span(key)
        value = 0
        for block in entries.bytes.blocks(start, size):
            value = zlib.crc32(block, value)
        wanted = entries.crc(key)
        if wanted and value != wanted:  # torch writes 0 where it is told to write none
            held = [tensor for tensor, record in tensors if record == key]
            name = _name(found, held) or f"data/{key}"
            raise UserError(
                f"'{entries.path}' is damaged: the values of {name} have changed since they were "
                "saved.",
                "Copy it again; if it is the only copy, take an earlier checkpoint.",
            )


def _name(value: Any, tensors: Sequence[LazyTensor], depth: int = 0) -> str | None:
    """Return the name under which a checkpoint holds the first of these tensors."""
    items: Mapping[Any, Any] = value if isinstance(value, dict) else {}
    if isinstance(value, (list, tuple)):
        items = dict(enumerate(value))
    for key, item in items.items() if depth < 6 else ():
        if any(item is tensor for tensor in tensors):
            return str(key)
        if (inner := _name(item, tensors, depth + 1)) is not None:
            return f"{key}[{inner}]" if inner.isdigit() else inner
    return None
