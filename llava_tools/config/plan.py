"""How long a run is, computed from row counts alone."""

from __future__ import annotations

from llava_tools.config.settings import Settings


def iterations(settings: Settings, rows: int, world_size: int) -> tuple[int, int]:
    """Return (micro-batches, optimizer steps) of the whole run; the first is N of iter_N.pth.

    Each sampler hands every rank the same number of rows: `shuffle` rounds up to a row,
    `length_grouped` to a full accumulation window. The last window of an epoch may be short.
    """
    window = settings.batch_size * settings.accumulative_counts
    unit = window if settings.sampler == "length_grouped" else 1
    per_rank = _ceil(rows, world_size * unit) * unit
    micro_batches = _ceil(per_rank, settings.batch_size)
    steps = _ceil(micro_batches, settings.accumulative_counts)
    return settings.max_epochs * micro_batches, settings.max_epochs * steps


def planned_rows(settings: Settings) -> int | None:
    """Return the rows of one epoch by the published counts, or None when a count is missing."""
    total = 0
    for dataset in settings.datasets:
        counts = [n for n in (dataset.rows, dataset.max_rows) if n is not None]
        if dataset.rows is None:
            return None
        total += min(counts)
    return total


def _ceil(number: int, divisor: int) -> int:
    return -(-number // divisor)
