"""The training set: all rows of a run, tokenised up front, their images opened on demand."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import torch
from torch.utils.data import Dataset

from llava_tools.config import DatasetSpec, Settings
from llava_tools.constants import IGNORE_ID
from llava_tools.data.codec import codec_of
from llava_tools.data.collate import Example
from llava_tools.data.images import ImageProcessor, open_image
from llava_tools.data.packed import Growing, PackedRows, token_type
from llava_tools.data.prepare import (
    UNLIMITED,
    Limits,
    Plan,
    choose_processes,
    file_size,
    image_reason,
    prepare_blocks,
)
from llava_tools.data.progress import watched
from llava_tools.data.rows import RawRow, origin, read_rows
from llava_tools.data.sample import MENDED_REASONS, SKIP_REASONS, Skip
from llava_tools.data.templates import get_template
from llava_tools.errors import UserError

EXAMPLES_SHOWN = 3


class TooManySkipped(UserError):
    """No row is left, or more are skipped than the settings allow; `skips` has them all."""

    def __init__(self, message: str, hint: str, skips: Sequence[Skip]) -> None:
        super().__init__(message, hint)
        self.skips = skips


@dataclass(frozen=True)
class Part:
    """The rows of one data file that are trained on."""

    spec: DatasetSpec
    rows: PackedRows


@dataclass(frozen=True)
class Summary:
    """What a training set consists of. Tokens count an image as one."""

    seen: int
    rows: int
    text_rows: int
    tokens: int
    trained_tokens: int
    skipped: dict[str, int]  # by reason
    mended: dict[str, int]  # by reason; these rows are trained on

    def lines(self) -> list[str]:
        """Return the summary as lines of text: the totals, then one line a reason."""
        kept = f"{self.rows:,} of {self.seen:,} rows ({self.text_rows:,} without image), "
        kept += f"{self.tokens:,} tokens, {self.trained_tokens:,} of them trained on"
        skipped = [f"skipped {n:,}: {SKIP_REASONS[k]}" for k, n in self.skipped.items()]
        mended = [f"mended {n:,}: {MENDED_REASONS[k]}" for k, n in self.mended.items()]
        return [kept, *skipped, *mended]


class TrainDataset(Dataset[Example]):
    """Rows by index, over all data files. Indexing opens the row's images.

    `lengths` are the numbers of tokens (an image is one), negative for rows without images.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        image_processor: ImageProcessor | None,
        skipped: Sequence[Skip] = (),
        mended: Counter[str] | None = None,
        seen: int = 0,
    ) -> None:
        self.parts = list(parts)
        self.image_processor = image_processor
        self.skipped = list(skipped)
        self.mended = mended or Counter()
        self.seen = seen
        self.lengths: npt.NDArray[np.int32] = np.concatenate(
            [part.rows.signed_lengths() for part in parts]
        )
        self._ends = list(accumulate(len(part.rows) for part in parts))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Example:
        part, row = self._find(index)
        ids, labels = part.rows.ids_and_labels(row)
        paths = part.rows.images(row)
        skip = None
        try:
            pixels = self._pixels(part.spec, paths)
        except UserError as error:
            # The row stays, so that every rank has its batch, but it trains nothing.
            skip = Skip(self.origin(index), part.rows.id(row), image_reason(error), error.message)
            pixels = torch.zeros(len(paths), *self._pixel_shape)
            labels = np.full_like(labels, IGNORE_ID)
        return Example(torch.from_numpy(ids), torch.from_numpy(labels), pixels, index, skip)

    def _find(self, index: int) -> tuple[Part, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        which = bisect_right(self._ends, index)
        return self.parts[which], index - (self._ends[which - 1] if which else 0)

    def _pixels(self, spec: DatasetSpec, paths: Sequence[str]) -> torch.Tensor:
        processor = self.image_processor
        if not paths or processor is None:
            return torch.zeros(0, *self._pixel_shape)
        folder, links = spec.image_folder, spec.follow_links
        images = [open_image(path, folder, follow_links=links) for path in paths]
        return torch.stack([processor(image, spec.pad_image_to_square) for image in images])

    @property
    def _pixel_shape(self) -> tuple[int, int, int]:
        side = self.image_processor.size if self.image_processor else 0
        return 3, side, side

    def origin(self, index: int) -> str:
        """Return where a row was written: "train.json, row 12"."""
        part, row = self._find(index)
        return origin(part.spec.data_path, int(part.rows.numbers[row]))

    def summary(self) -> Summary:
        """Count rows, tokens, skips and mended rows."""
        return Summary(
            seen=self.seen,
            rows=len(self),
            text_rows=int((self.lengths < 0).sum()),
            tokens=int(np.abs(self.lengths.astype(np.int64)).sum()),
            trained_tokens=sum(part.rows.count_trained() for part in self.parts),
            skipped=count_reasons(self.skipped),
            mended=dict(self.mended.most_common()),
        )


def build_dataset(
    settings: Settings,
    tokenizer: Any,
    image_processor: ImageProcessor | None,
    limits: Limits = UNLIMITED,
) -> TrainDataset:
    """Read and tokenise all data files of a run; `limits` are those of the model.

    Raises UserError for an unreadable file, when no row is left, or when the share of skipped
    rows exceeds `max_skipped`.
    """
    parts: list[Part] = []
    skipped: list[Skip] = []
    mended: Counter[str] = Counter()
    seen = 0
    for i, spec in enumerate(settings.datasets):
        sees_images = image_processor is not None
        plan = make_plan(settings, spec, tokenizer, limits, sees_images=sees_images)
        processes = choose_processes(spec.data_path, settings.num_workers)
        rows = sampled_rows(spec, np.random.default_rng([settings.seed, i]))
        growing = Growing(plan.token_dtype)
        for block in _shown(prepare_blocks(plan, rows, processes), spec):
            growing.add(block.rows)
            skipped += block.skips
            mended += block.mended
            seen += block.seen
        parts.append(Part(spec, growing.finish()))
    if not seen:
        paths = ", ".join(spec.data_path for spec in settings.datasets)
        raise UserError(f"The training data is empty: {paths}.", "Check `data_path`.")
    check_skipped(skipped, seen, settings.max_skipped)
    return TrainDataset(parts, image_processor, skipped, mended, seen)


def make_plan(
    settings: Settings,
    spec: DatasetSpec,
    tokenizer: Any,
    limits: Limits = UNLIMITED,
    *,
    sees_images: bool,
) -> Plan:
    """Return how the rows of one data file are to be prepared."""
    largest_id = max(tokenizer.get_vocab().values())
    return Plan(
        path=spec.data_path,
        format=spec.format,
        image_folder=spec.image_folder,
        follow_links=spec.follow_links,
        template=get_template(settings.prompt_template),
        codec=codec_of(tokenizer),
        max_length=settings.max_length,
        sees_images=sees_images,
        token_dtype=token_type(largest_id),
        limits=limits,
    )


def sampled_rows(spec: DatasetSpec, rng: np.random.Generator) -> Iterator[RawRow]:
    """Yield the rows of a file, or `max_rows` of them drawn without replacement, in file order."""
    rows = read_rows(spec.data_path)
    if spec.max_rows is None:
        yield from rows
        return
    total = sum(1 for _ in read_rows(spec.data_path))
    chosen = np.zeros(total, dtype=bool)
    chosen[rng.choice(total, min(spec.max_rows, total), replace=False)] = True
    yield from (row for row, keep in zip(rows, chosen, strict=True) if keep)


def _shown(blocks: Iterator[Any], spec: DatasetSpec) -> Iterator[Any]:
    if os.environ.get("RANK", "0") != "0":  # one rank's progress is enough
        return blocks
    return watched(blocks, spec.data_path, file_size(spec.data_path))


def count_reasons(skips: Sequence[Skip]) -> dict[str, int]:
    """Return how many rows were skipped for each reason, the most frequent first."""
    return dict(Counter(skip.reason for skip in skips).most_common())


def check_skipped(skips: Sequence[Skip], rows: int, max_skipped: float) -> None:
    """Raise UserError when no row is left or the share of skipped rows exceeds `max_skipped`.

    The message has the counts by reason, the hint the first examples.
    """
    if len(skips) < rows and len(skips) <= max_skipped * rows:
        return
    counts = [f"{n:,} x {SKIP_REASONS[k]}" for k, n in count_reasons(skips).items()]
    found = "; ".join(counts)
    examples = " ".join(f"{skip}." for skip in skips[:EXAMPLES_SHOWN])
    if len(skips) >= rows:
        message = f"No row can be trained on, all {rows:,} are skipped: {found}."
        raise TooManySkipped(message, examples, skips)
    raise TooManySkipped(
        f"{len(skips):,} of {rows:,} rows are skipped, more than max_skipped = {max_skipped:g} "
        f"allows: {found}.",
        f"Mend the data, or raise max_skipped. {examples}",
        skips,
    )


def read_skipped(path: str | Path) -> dict[tuple[str, str], Skip]:
    """Return the skipped rows of a file by (origin, id); no file, none."""
    if not Path(path).is_file():
        return {}
    found = [Skip(**orjson.loads(line)) for line in Path(path).read_bytes().splitlines()]
    return {(skip.origin, skip.id): skip for skip in found}


def write_skipped(path: str | Path, skips: Sequence[Skip]) -> None:
    """Write the skipped rows as JSON lines: origin, id, reason, detail."""
    Path(path).write_bytes(_as_lines(skips))


def append_skipped(path: str | Path, skips: Sequence[Skip]) -> None:
    """Add skipped rows to the file, in one write: several ranks may do so at a time."""
    with Path(path).open("ab", buffering=0) as file:
        file.write(_as_lines(skips))


def _as_lines(skips: Sequence[Skip]) -> bytes:
    return b"".join(orjson.dumps(skip) + b"\n" for skip in skips)
