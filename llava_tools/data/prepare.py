"""From raw rows to packed rows: parse, check the images, render, and say why a row is left out.

This runs in processes of its own for large files, so it imports neither torch nor transformers.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Generic, TypeVar

from llava_tools.constants import IMAGE_TOKEN_ID
from llava_tools.data.blocks import blocks_of, worked
from llava_tools.data.checks import check_rendered
from llava_tools.data.codec import Codec
from llava_tools.data.dialogue import first_round
from llava_tools.data.fastchat import masks_all
from llava_tools.data.folders import data_bytes
from llava_tools.data.formats import get_format
from llava_tools.data.own_template import Refused
from llava_tools.data.packed import PackedRows, RowData, TokenType
from llava_tools.data.paths import MissingImage, OutsideFolder, locate
from llava_tools.data.render import Rendered, render
from llava_tools.data.rows import RawRow, origin, parse_row
from llava_tools.data.sample import SKIP_REASONS, Sample, Skip
from llava_tools.data.templates import Template
from llava_tools.errors import UserError

PARALLEL_BYTES = 32 * 2**20  # below, starting processes costs more than it saves
MAX_PROCESSES = 16


@dataclass(frozen=True)
class Limits:
    """What the model sets: its positions (None: unknown), and how many of them an image takes.

    `max_length` is another matter: it counts an image as one token.
    """

    context: int | None = None
    image_positions: int = 1

    def positions(self, input_ids: Sequence[int]) -> int:
        """Return the number of positions of a row in the model."""
        return len(input_ids) + input_ids.count(IMAGE_TOKEN_ID) * (self.image_positions - 1)


UNLIMITED = Limits()


@dataclass(frozen=True)
class Plan:
    """All that decides how the rows of one data file are prepared."""

    path: str
    format: str
    image_folder: str
    follow_links: bool
    template: Template
    codec: Codec
    max_length: int
    sees_images: bool  # False in a run without a vision tower
    token_dtype: TokenType
    limits: Limits = UNLIMITED
    train_on: str = "all"
    fastchat_compat: bool = False
    keep_system: bool = True
    first_round: bool = False
    max_tokens: int | None = None


@dataclass(frozen=True)
class Block:
    """The outcome for some rows: those kept, those skipped, what was mended, the bytes read."""

    rows: PackedRows
    skips: list[Skip]
    mended: Counter[str]
    seen: int
    bytes_read: int


Rows = TypeVar("Rows", covariant=True)


@dataclass(frozen=True)
class Prepared(Generic[Rows]):
    """The rows of a data file to train on, and what is known of the others."""

    rows: Rows
    skips: list[Skip]
    mended: Counter[str]
    seen: int  # rows, the skipped ones included


@dataclass
class _Outcome:
    rows: list[RowData] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    mended: Counter[str] = field(default_factory=Counter)


def read_sample(plan: Plan, row: RawRow) -> Sample | Skip:
    """Return the sample of a row as the plan wants it. Raises UserError on broken JSON."""
    found = get_format(plan.format)(parse_row(plan.path, row), origin(plan.path, row.number))
    if isinstance(found, Skip):
        return found
    if not plan.keep_system:
        turns = tuple(turn for turn in found.turns if turn.role != "system")
        found = replace(found, turns=turns)
    return first_round(found) if plan.first_round else found


def prepare_row(plan: Plan, row: RawRow) -> tuple[Sample, Rendered] | Skip:
    """Return a row ready for training, or why it is left out. Raises UserError on broken JSON."""
    found = read_sample(plan, row)
    if isinstance(found, Skip):
        return found
    skip = _check_images(plan, found)
    if skip:
        return skip
    if plan.fastchat_compat and masks_all(found, plan.codec, plan.max_length):
        return Skip(found.origin, found.id, "fastchat_masks", f"max_length = {plan.max_length}")
    rendered = render(found.turns, plan.template, plan.codec, plan.max_length, plan.train_on)
    tokens = _too_long(plan, found, rendered)
    if tokens:
        return Skip(found.origin, found.id, "beyond_max_tokens", f"{tokens:,} tokens")
    for flag in rendered.flags:
        if flag in SKIP_REASONS:
            return Skip(found.origin, found.id, flag, _detail(flag, plan, found))
    positions, context = plan.limits.positions(rendered.input_ids), plan.limits.context
    if context and positions > context:
        detail = f"{positions:,} positions, the model has {context:,}"
        return Skip(found.origin, found.id, "beyond_context", detail)
    ids, labels = rendered.input_ids, rendered.labels
    flags = rendered.flags
    reason = check_rendered(
        found,
        ids,
        labels,
        plan.template,
        plan.codec,
        plan.max_length,
        flags=flags,
        train_on=plan.train_on,
    )
    if reason:
        return Skip(found.origin, found.id, reason, f"{len(ids):,} tokens")
    return found, rendered


def _too_long(plan: Plan, sample: Sample, rendered: Rendered) -> int:
    """Return the row's tokens if they are more than max_tokens, else 0."""
    if plan.max_tokens is None:
        return 0
    tokens = len(rendered.input_ids)
    if plan.max_length <= min(tokens, plan.max_tokens):  # it may have been cut
        tokens = len(render(sample.turns, plan.template, plan.codec).input_ids)
    return tokens if tokens > plan.max_tokens else 0


def _check_images(plan: Plan, sample: Sample) -> Skip | None:
    if sample.images and not plan.sees_images:
        detail = f"image '{sample.images[0]:.80}'"
        return Skip(sample.origin, sample.id, "image_without_tower", detail)
    for path in sample.images:
        try:
            _locate_once(path, plan.image_folder, plan.follow_links)
        except UserError as error:
            return Skip(sample.origin, sample.id, image_reason(error), error.message)
    return None


@lru_cache(maxsize=2**17)
def _locate_once(path: str, folder: str, follow_links: bool) -> None:
    """Look at each file once: several rows often share an image."""
    locate(path, folder, follow_links=follow_links)


def image_reason(error: UserError) -> str:
    """Return the key of SKIP_REASONS for what `open_image` raised."""
    reasons = {OutsideFolder: "outside_folder", MissingImage: "missing_image"}
    return reasons.get(type(error), "broken_image")


def _detail(flag: str, plan: Plan, sample: Sample) -> str:
    if flag == "template_refused":
        return _refusal(plan, sample)
    if flag == "several_captions":
        return f"{len(sample.turns) // 2} answers"
    return f"max_length = {plan.max_length}"


def _refusal(plan: Plan, sample: Sample) -> str:
    try:
        list(plan.codec.own_template.walk(sample.turns))
    except Refused as reason:
        return str(reason)[:200]
    return ""


def prepare_block(plan: Plan, raw: Sequence[RawRow]) -> Block:
    """Prepare some rows of a file and pack those that are kept."""
    outcome = _Outcome()
    for row in raw:
        result = prepare_row(plan, row)
        if isinstance(result, Skip):
            outcome.skips.append(result)
            continue
        sample, rendered = result
        outcome.mended.update({*sample.mended, *rendered.flags})
        outcome.rows.append(
            RowData(row.number, sample.id, sample.images, rendered.input_ids, rendered.labels)
        )
    return Block(
        PackedRows.pack(outcome.rows, plan.token_dtype),
        outcome.skips,
        outcome.mended,
        len(raw),
        sum(len(row.data) for row in raw),
    )


def prepare_blocks(plan: Plan, rows: Iterable[RawRow], processes: int) -> Iterator[Block]:
    """Prepare the rows of a file block by block, in their order, in parallel if asked to."""
    _locate_once.cache_clear()  # files may have changed since an earlier run in this process
    return worked(prepare_block, plan, rows, processes)


def first_blocks(plan: Plan, rows: Iterable[RawRow], count: int) -> Iterator[Block]:
    """Prepare rows until `count` of them are kept, and read no further."""
    for raw in blocks_of(rows):
        block = prepare_block(plan, raw)
        if len(block.rows) >= count:
            last = block.rows.number(count - 1)
            yield prepare_block(plan, [row for row in raw if row.number <= last])
            return
        count -= len(block.rows)
        yield block


def choose_processes(path: str, wanted: int) -> int:
    """Return how many processes prepare a file: none besides this one for small files."""
    if not wanted or file_size(path) < PARALLEL_BYTES:
        return 1
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(count_cpus() // ranks_here, MAX_PROCESSES))


def file_size(path: str) -> int:
    """Return about how many bytes of JSON a data path has, 0 if there is nothing."""
    return data_bytes(path)


def count_cpus() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux: what this process may use, also in a container
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
