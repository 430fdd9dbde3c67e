"""The rows of one data file, by the way that suits it: tokenised now, when asked for, or before.

A file of at most UP_FRONT_BYTES is tokenised before the first step: lengths are exact, and every
skipped row is reported. A larger one gets an index, and the loader's workers tokenise its rows.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from llava_tools.config import DatasetSpec, Settings
from llava_tools.data.as_lines import as_lines
from llava_tools.data.codec import codec_of
from llava_tools.data.detect import AUTO, detect_format
from llava_tools.data.folders import is_single, suffix_of
from llava_tools.data.index_cache import open_index
from llava_tools.data.packed import Growing, PackedRows, token_type
from llava_tools.data.prepare import (
    MAX_PROCESSES,
    UNLIMITED,
    Limits,
    Plan,
    Prepared,
    choose_processes,
    count_cpus,
    file_size,
    first_blocks,
    prepare_blocks,
    prepare_row,
)
from llava_tools.data.progress import watched
from llava_tools.data.rows import MalformedRow, RawRow, read_rows
from llava_tools.data.sample import Skip
from llava_tools.data.scan import Array
from llava_tools.data.streamed import StreamedRows
from llava_tools.data.templates import fit_template
from llava_tools.data.tokenized import load_rows
from llava_tools.errors import UserError

WHOLE = 2**31 - 1  # the `max_length` of rows that are cut into chunks later: none
UP_FRONT_BYTES = 8 * 2**20  # tokenised in about two seconds


def make_plan(
    settings: Settings,
    spec: DatasetSpec,
    tokenizer: Any,
    limits: Limits = UNLIMITED,
    *,
    sees_images: bool,
) -> Plan:
    """Return how the rows of one data file are to be prepared. Raises UserError: its format."""
    largest_id = max(tokenizer.get_vocab().values())
    name = spec.format
    if name == AUTO and (Path(spec.data_path).exists() or not settings.tokenized_folder):
        name = detect_format(spec.data_path)
    template = fit_template(settings.prompt_template, tokenizer)
    wraps = template.instruction != "{input}" or template.from_tokenizer
    if name == "text" and wraps:
        raise UserError(
            f"'{spec.data_path}' holds whole texts, which the template '{template.name}' would "
            "wrap as answers to nothing.",
            "Set prompt_template = 'raw', or name the format of the rows.",
        )
    return Plan(
        path=spec.data_path,
        format=name,
        image_folder=spec.image_folder,
        follow_links=spec.follow_links,
        template=template,
        codec=codec_of(tokenizer),
        max_length=WHOLE if settings.chunks else settings.max_length,
        sees_images=sees_images,
        token_dtype=token_type(largest_id),
        limits=limits,
        train_on=spec.train_on or settings.train_on,
        fastchat_compat=settings.fastchat_compat,
        keep_system=spec.keep_system,
        first_round=spec.first_round,
        max_tokens=spec.max_tokens,
    )


def row_generator(settings: Settings, which: int) -> np.random.Generator:
    """Return what draws the rows of the data file `which`, where `max_rows` asks for it."""
    return np.random.default_rng([settings.seed, which])


def open_rows(
    settings: Settings, which: int, plan: Plan
) -> Prepared[PackedRows] | Prepared[StreamedRows]:
    """Return the rows of a data file, streamed when it is large. Raises UserError."""
    if settings.tokenized_folder:
        return load_rows(settings, which, plan)
    if file_size(plan.path) > UP_FRONT_BYTES and _may_stream(settings, which):
        # All processors: the other ranks of this machine wait for the index.
        processes = min(count_cpus(), MAX_PROCESSES) if settings.num_workers else 1
        plain = is_single(plan.path) and suffix_of(plan.path) in (".json", ".jsonl")
        path = plan.path if plain else as_lines(plan.path)
        index = open_index(path, processes) if path else None
        if index is not None and len(index):
            max_rows = settings.datasets[which].max_rows
            places = _draw(len(index), max_rows, row_generator(settings, which))
            return Prepared(StreamedRows.over(plan, index, places), [], Counter(), len(places))
    return tokenise(settings, which, plan)


def _may_stream(settings: Settings, which: int) -> bool:
    """Return whether rows need not be tokenised to know which of them are trained on."""
    spec = settings.datasets[which]
    held_out = settings.eval_share or settings.eval_rows
    return not (settings.chunks or held_out or spec.first_rows or spec.max_tokens)


def tokenise(settings: Settings, which: int, plan: Plan) -> Prepared[PackedRows]:
    """Read and tokenise the rows of a data file. Raises UserError."""
    spec = settings.datasets[which]
    rows = sampled_rows(spec, row_generator(settings, which))
    processes = choose_processes(spec.data_path, settings.num_workers)
    growing = Growing(plan.token_dtype)
    skips: list[Skip] = []
    mended: Counter[str] = Counter()
    seen = 0
    if spec.first_rows is None:
        blocks = prepare_blocks(plan, rows, processes)
    else:
        blocks = first_blocks(plan, rows, spec.first_rows)
    for block in _shown(blocks, spec):
        growing.add(block.rows)
        skips += block.skips
        mended += block.mended
        seen += block.seen
    return Prepared(growing.finish(), skips, mended, seen)


def sampled_rows(spec: DatasetSpec, rng: np.random.Generator) -> Iterator[RawRow]:
    """Yield the rows of a file, or `max_rows` of them drawn without replacement, in file order."""
    rows = read_rows(spec.data_path)
    if spec.max_rows is None:
        yield from rows
        return
    total = sum(1 for _ in read_rows(spec.data_path))
    chosen = np.zeros(total, dtype=bool)
    chosen[_draw(total, spec.max_rows, rng)] = True
    yield from (row for row, keep in zip(rows, chosen, strict=True) if keep)


def first_kept(plan: Plan, rows: Iterable[RawRow], count: int | None) -> Iterator[RawRow]:
    """Yield raw rows until `count` of them can be trained on (None: all), malformed ones too."""
    kept = 0
    for row in rows:
        yield row
        if count is None:
            continue
        with suppress(MalformedRow):
            kept += not isinstance(prepare_row(plan, row), Skip)
        if kept == count:
            return


def _draw(total: int, max_rows: int | None, rng: np.random.Generator) -> Array:
    """Return the places of the rows to train on, in file order."""
    if max_rows is None:
        return np.arange(total)
    return np.sort(rng.choice(total, min(max_rows, total), replace=False))


def _shown(blocks: Iterator[Any], spec: DatasetSpec) -> Iterator[Any]:
    if os.environ.get("RANK", "0") != "0":  # one rank's progress is enough
        return blocks
    return watched(blocks, spec.data_path, file_size(spec.data_path))
