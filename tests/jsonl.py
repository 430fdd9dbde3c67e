"""Files of one JSON value a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write(path: Path, *rows: Any) -> Path:
    """Write values, one a line; return the file's path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[Any]:
    """Return the values of a file's lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]
