"""Rows that turn out to be unreadable while training: listed, counted, an error when too many."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llava_tools.data.collate import Batch
from llava_tools.data.dataset import append_skipped
from llava_tools.errors import UserError

if TYPE_CHECKING:
    from llava_tools.train.loop import Run

log = logging.getLogger(__name__)

FILE = "skipped.jsonl"


def note_skips(run: Run, window: Sequence[Batch]) -> int:
    """List the rows of a window that could not be read; return how many are new to this rank.

    Such a row is in the batch with all its labels masked: it takes part in nothing.
    """
    skips = [skip for batch in window for skip in batch.skips]
    new = {(skip.origin, skip.id): skip for skip in skips}
    new = {key: skip for key, skip in new.items() if key not in run.skipped_rows}
    if new:
        run.skipped_rows |= set(new)
        append_skipped(run.work_dir / FILE, list(new.values()))
        for skip in new.values():
            log.warning("Skipped %s", skip)
    return len(new)


def check_skips(run: Run) -> None:
    """Raise UserError when more rows were skipped, here and before the start, than allowed."""
    total = run.skipped + len(run.dataset.skipped)
    rows = len(run.dataset) + len(run.dataset.skipped)
    if total > run.settings.max_skipped * rows:
        raise UserError(
            f"{total} of {rows} rows were skipped, more than max_skipped = "
            f"{run.settings.max_skipped:g} allows; they are listed in '{run.work_dir / FILE}'.",
            "Mend the data, or raise max_skipped, and continue with --resume.",
        )
