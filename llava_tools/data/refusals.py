"""When the rows of a run are refused: there are none, or too many of them are skipped."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llava_tools.config import Settings
from llava_tools.data.sample import ASKED_FOR, SKIP_REASONS, Skip
from llava_tools.data.streamed import StreamedRows
from llava_tools.data.summary import count_reasons
from llava_tools.errors import UserError

EXAMPLES_SHOWN = 3


class TooManySkipped(UserError):
    """No row is left, or more are skipped than the settings allow; `skips` has them all."""

    def __init__(self, message: str, hint: str, skips: Sequence[Skip]) -> None:
        super().__init__(message, hint)
        self.skips = skips


def check_rows(settings: Settings, skips: Sequence[Skip], seen: int) -> None:
    """Raise UserError when a run has no rows, or too many of them are skipped."""
    if not seen:
        paths = ", ".join(spec.data_path for spec in settings.datasets)
        raise UserError(f"The training data is empty: {paths}.", "Check `data_path`.")
    check_skipped(skips, seen, settings.max_skipped)


def check_sample(rows: StreamedRows, max_skipped: float) -> None:
    """Raise TooManySkipped when so many rows of a sample are skipped that chance cannot be why."""
    count, found = rows.check_sample()
    skips = [skip for skip in found if skip.reason not in ASKED_FOR]
    share = max_skipped + 4 * math.sqrt(max_skipped * (1 - max_skipped) / count)
    if len(skips) > share * count or len(skips) == count:
        raise TooManySkipped(
            f"{len(skips):,} of {count:,} rows drawn from '{rows.plan.path}' are skipped, which "
            f"max_skipped = {max_skipped:g} does not allow: {_counted(skips)}.",
            f"Mend the data or the config, or raise max_skipped. {_examples(skips)}",
            skips,
        )


def check_skipped(skips: Sequence[Skip], rows: int, max_skipped: float, of: str = "") -> None:
    """Raise UserError when no row is left or the share of skipped rows exceeds `max_skipped`.

    Rows that the user asked to leave out are no faults. The message has the counts by reason, the
    hint the first examples; `of` names the data file where it is one.
    """
    faults = [skip for skip in skips if skip.reason not in ASKED_FOR]
    if len(skips) < rows and len(faults) <= max_skipped * rows:
        return
    found, examples = _counted(skips), _examples(skips)
    if len(skips) >= rows:
        message = f"No row{of} can be trained on, all {rows:,} are skipped: {found}."
        raise TooManySkipped(message, f"Mend the data or the config. {examples}", skips)
    found, examples = _counted(faults), _examples(faults)
    raise TooManySkipped(
        f"{len(faults):,} of {rows:,} rows are skipped, more than max_skipped = {max_skipped:g} "
        f"allows: {found}.",
        f"Mend the data, or raise max_skipped. {examples}",
        skips,
    )


def _counted(skips: Sequence[Skip]) -> str:
    return "; ".join(f"{n:,} x {SKIP_REASONS[k]}" for k, n in count_reasons(skips).items())


def _examples(skips: Sequence[Skip]) -> str:
    return " ".join(f"{skip}." for skip in skips[:EXAMPLES_SHOWN])
