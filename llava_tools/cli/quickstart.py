"""`llava-tools quickstart`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option


def quickstart(
    work_dir: Annotated[Path, Option(help="Where to write.")] = Path("work_dirs/quickstart"),
) -> None:
    """Train, convert, chat with and evaluate a tiny LLaVA on handwritten digits, in minutes."""
    from llava_tools.quickstart.run import quickstart

    quickstart(work_dir)
