"""`llava-tools quickstart`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option


def quickstart(
    work_dir: Annotated[
        Path, Option(help="Where to write; an unfinished quickstart there goes on.")
    ] = Path("work_dirs/quickstart"),
    seed: Annotated[int, Option(min=0, help="Seed of everything.")] = 0,
) -> int:
    """Train, convert, chat with and evaluate a tiny LLaVA on handwritten digits, in minutes."""
    from llava_tools.quickstart.run import quickstart

    return quickstart(work_dir, seed)
