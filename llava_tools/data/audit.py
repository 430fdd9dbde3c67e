"""Check every row of every data file of a config by the rules of training, and more.

Rows stream through; what grows with the file is 24 bytes a row, to find duplicates.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np

from llava_tools.config import DatasetSpec, Settings
from llava_tools.data.blocks import worked
from llava_tools.data.checks import check_rendered
from llava_tools.data.images import open_image
from llava_tools.data.prepare import (
    MAX_PROCESSES,
    UNLIMITED,
    Limits,
    Plan,
    count_cpus,
    file_size,
    image_reason,
    prepare_row,
)
from llava_tools.data.progress import watched
from llava_tools.data.rows import MalformedRow, RawRow, origin
from llava_tools.data.sample import ASKED_FOR, SKIP_REASONS, Sample, Skip
from llava_tools.data.sources import first_kept, make_plan, row_generator, sampled_rows
from llava_tools.errors import UserError

PARALLEL_BYTES = 2**20  # an audit decodes the images, too


@dataclass(frozen=True)
class Finding:
    """One thing found in one row; `reason` is a key of the three tables in `sample.py`."""

    reason: str
    origin: str
    id: str
    detail: str


@dataclass
class Report:
    """What was found: counts and examples by reason. `faults` rows are not trained on."""

    seen: int = 0
    faults: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Finding]] = field(default_factory=dict)

    def add(self, finding: Finding, keep: int) -> None:
        """Count a finding, and keep it if there are few of its kind."""
        self.counts[finding.reason] += 1
        self.faults += finding.reason in SKIP_REASONS and finding.reason not in ASKED_FOR
        kept = self.examples.setdefault(finding.reason, [])
        if len(kept) < keep:
            kept.append(finding)

    @property
    def trained(self) -> int:
        """The number of rows that are left to train on."""
        return self.seen - self.faults - sum(self.counts[reason] for reason in ASKED_FOR)


@dataclass(frozen=True)
class Checked:
    """The outcome for some rows: findings, and (row, hash of the id, hash of the content) each."""

    findings: list[Finding]
    hashes: np.ndarray[Any, np.dtype[np.uint64]]
    seen: int
    bytes_read: int


def audit(
    settings: Settings, tokenizer: Any, limits: Limits = UNLIMITED, examples: int = 10
) -> Report:
    """Check all rows of a run. A row that is no JSON is a fault as others are.

    Raises UserError for a file that is no list of rows, whose rows cannot be told apart.
    """
    report = Report()
    for i, spec in enumerate(settings.datasets):
        sees_images = settings.visual_encoder_name_or_path is not None
        plan = make_plan(settings, spec, tokenizer, limits, sees_images=sees_images)
        raw = first_kept(plan, sampled_rows(spec, row_generator(settings, i)), spec.first_rows)
        _audit_file(plan, spec, raw, settings.num_workers, report, examples)
    return report


def _audit_file(
    plan: Plan,
    spec: DatasetSpec,
    raw: Iterable[RawRow],
    workers: int,
    report: Report,
    examples: int,
) -> None:
    size = file_size(spec.data_path)
    many = workers and size > PARALLEL_BYTES
    processes = min(count_cpus(), MAX_PROCESSES) if many else 1
    hashes = []
    for block in watched(_checked_blocks(plan, raw, processes), spec.data_path, size):
        report.seen += block.seen
        hashes.append(block.hashes)
        for finding in block.findings:
            report.add(finding, examples)
    table = np.concatenate(hashes) if hashes else np.zeros((0, 3), np.uint64)
    for column, reason in ((1, "duplicate_id"), (2, "duplicate_row")):
        for number, first in _repeated(table[:, 0], table[:, column]):
            where = origin(spec.data_path, number)
            detail = f"as {origin(spec.data_path, first).rpartition(', ')[2]}"
            report.add(Finding(reason, where, "", detail), examples)


def _repeated(numbers: Any, hashes: Any) -> Iterator[tuple[int, int]]:
    """Yield (row, the first row with its hash) of the rows that repeat one, in file order."""
    _, firsts, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    first = firsts[inverse]
    for k in np.flatnonzero(first != np.arange(len(hashes))):
        yield int(numbers[k]), int(numbers[first[k]])


def check_row(plan: Plan, row: RawRow) -> tuple[list[Finding], Sample | None]:
    """Return what is found in one row, and its sample where there is one."""
    try:
        made = prepare_row(plan, row)
    except MalformedRow as error:
        where = origin(plan.path, row.number)
        detail = error.message.removeprefix(f"{where}: ")
        return [Finding("malformed_json", where, where, detail)], None
    if isinstance(made, Skip):
        return [Finding(made.reason, made.origin, made.id, made.detail)], None
    sample, rendered = made
    reason, detail = None, ""
    for path in sample.images:
        reason, detail = _decoded(path, plan.image_folder, plan.follow_links)
        if reason:
            break
    reason = reason or check_rendered(
        sample,
        rendered.input_ids,
        rendered.labels,
        plan.template,
        plan.codec,
        plan.max_length,
        flags=rendered.flags,
        exact=True,
        train_on=plan.train_on,
    )
    if reason in SKIP_REASONS:
        return [Finding(reason, sample.origin, sample.id, detail)], sample
    notes = [*sorted({*sample.mended, *rendered.flags}), *_notes(sample, row)]
    notes += [reason] if reason else []
    return [Finding(note, sample.origin, sample.id, "") for note in notes], sample


def _notes(sample: Sample, row: RawRow) -> Iterator[str]:
    if any(turn.role == "assistant" and not turn.text.strip() for turn in sample.turns):
        yield "empty_answer"
    twice = False

    def look(pairs: list[tuple[str, Any]]) -> None:
        nonlocal twice
        twice = twice or len({key for key, _ in pairs}) < len(pairs)

    with suppress(RecursionError):  # nested deeper than Python's reader goes
        json.loads(row.data, object_pairs_hook=look)
    if twice:
        yield "duplicate_key"


@lru_cache(maxsize=2**17)
def _decoded(path: str, folder: str, follow_links: bool) -> tuple[str | None, str]:
    """Decode an image once; return why it cannot be used, if so."""
    try:
        open_image(path, folder, follow_links=follow_links)
    except UserError as error:
        return image_reason(error), error.message
    return None, ""


def check_block(plan: Plan, raw: Sequence[RawRow]) -> Checked:
    """Check some rows of a file."""
    findings: list[Finding] = []
    hashes = np.zeros((len(raw), 3), np.uint64)
    for k, row in enumerate(raw):
        found, sample = check_row(plan, row)
        findings += found
        name = sample.id if sample else found[0].id
        content = repr((sample.turns, sample.images)).encode() if sample else row.data
        hashes[k] = row.number, _hash(name.encode()), _hash(content)
    return Checked(findings, hashes, len(raw), sum(len(row.data) for row in raw))


def _hash(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


def _checked_blocks(plan: Plan, raw: Iterable[RawRow], processes: int) -> Iterator[Checked]:
    _decoded.cache_clear()  # files may have changed since
    return worked(check_block, plan, raw, processes)
