"""Show rows as they are trained on: which tokens carry loss, where the images go.

`llava-tools data show CONFIG` prints them coloured, `--json` one object a row.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import orjson

from llava_tools.config import Settings
from llava_tools.constants import IGNORE_ID, IMAGE_TOKEN, IMAGE_TOKEN_ID
from llava_tools.data.prepare import UNLIMITED, Limits, prepare_row
from llava_tools.data.rows import MalformedRow
from llava_tools.data.sample import Skip
from llava_tools.data.sources import first_kept, make_plan, row_generator, sampled_rows

log = logging.getLogger(__name__)

TRAINED, MASKED, IMAGE = "trained", "masked", "image"
STYLES = {TRAINED: "green", MASKED: "dim", IMAGE: "bold cyan"}
SKIPS_LOGGED = 10
MARKS = {TRAINED: ("⟦", "⟧"), MASKED: ("", ""), IMAGE: ("", "")}  # where colours are not shown


@dataclass(frozen=True)
class ShownRow:
    """A row as the model gets it."""

    id: str
    origin: str
    images: tuple[str, ...]
    input_ids: list[int]
    labels: list[int]


def shown_rows(
    settings: Settings,
    tokenizer: Any,
    limits: Limits = UNLIMITED,
    *,
    pass_over_malformed: bool = False,
) -> Iterator[ShownRow | Skip]:
    """Yield every row of a run, in file order, as training prepares it. Raises UserError."""
    sees_images = settings.visual_encoder_name_or_path is not None
    for i, spec in enumerate(settings.datasets):
        plan = make_plan(settings, spec, tokenizer, limits, sees_images=sees_images)
        rows = sampled_rows(spec, row_generator(settings, i))
        for raw in first_kept(plan, rows, spec.first_rows):
            try:
                result = prepare_row(plan, raw)
            except MalformedRow:
                if pass_over_malformed:
                    continue
                raise
            if isinstance(result, Skip):
                yield result
            else:
                sample, made = result
                head = sample.id, sample.origin, sample.images
                yield ShownRow(*head, made.input_ids, made.labels)


def show(
    settings: Settings,
    tokenizer: Any,
    rows: int | None = None,
    limits: Limits = UNLIMITED,
    *,
    as_json: bool = False,
) -> None:
    """Print the first rows (or all) to stdout; rows that training would skip are logged.

    As JSON: one object a line with id, input_ids, labels, images.
    """
    none = True
    for row in islice(_kept(shown_rows(settings, tokenizer, limits)), rows):
        none = False
        if as_json:
            sys.stdout.write(to_json(row) + "\n")
        else:
            _print(row, tokenizer)
    if none:
        log.warning("There is no row to train on.")


def _kept(rows: Iterator[ShownRow | Skip]) -> Iterator[ShownRow]:
    skips = 0
    try:
        for row in rows:
            if not isinstance(row, Skip):
                yield row
                continue
            skips += 1
            if skips <= SKIPS_LOGGED:
                log.warning("Skipped %s", row)
    finally:
        if skips > SKIPS_LOGGED:
            log.warning("Skipped %d more rows.", skips - SKIPS_LOGGED)


def to_json(row: ShownRow) -> str:
    """Return a row as one line of JSON."""
    keys = ("id", "input_ids", "labels", "images")
    return orjson.dumps({key: getattr(row, key) for key in keys}).decode()


def _print(row: ShownRow, tokenizer: Any) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    trained = sum(label != IGNORE_ID for label in row.labels)
    name = f"{row.id}  " if row.id != row.origin else ""  # rows without an id go by their place
    head = f"{name}{row.origin}  {len(row.input_ids)} tokens, {trained} trained"
    coloured = console.color_system is not None
    text = Text()
    text.append(f"{head}  {' '.join(row.images)}".rstrip() + "\n", style="bold")
    for kind, piece in segments(row.input_ids, row.labels, tokenizer):
        before, after = ("", "") if coloured else MARKS[kind]
        text.append(f"{before}{piece}{after}", style=STYLES[kind])
    console.print(text, end="\n\n")


def segments(
    input_ids: Sequence[int], labels: Sequence[int], tokenizer: Any
) -> Iterator[tuple[str, str]]:
    """Yield (kind, text) of the stretches of a row; the kinds are the keys of STYLES."""
    kinds = [
        IMAGE if i == IMAGE_TOKEN_ID else MASKED if label == IGNORE_ID else TRAINED
        for i, label in zip(input_ids, labels, strict=True)
    ]
    before: list[int] = []  # decoded along, as the first space of a text is dropped in decoding
    position = 0
    for kind, run in groupby(kinds):
        ids = list(input_ids[position : (position := position + len(list(run)))])
        if kind == IMAGE:
            before = []
            yield IMAGE, IMAGE_TOKEN * len(ids)
        else:
            known = len(tokenizer.decode(before))
            before += ids
            yield kind, tokenizer.decode(before)[known:]
