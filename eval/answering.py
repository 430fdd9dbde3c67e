"""A model's answers to questions: rows of one picture together, long rows first, in batches."""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch
from PIL import Image

from llava_tools.constants import IMAGE_TOKEN_ID
from llava_tools.data.images import decode_image
from llava_tools.data.render import render_prompt
from llava_tools.data.sample import Turn
from llava_tools.errors import UserError
from llava_tools.eval.answer_log import Answer
from llava_tools.eval.benchmark import Question
from llava_tools.eval.pictures import Picture
from llava_tools.eval.tsv import Table
from llava_tools.model.allocator import keep_freed_blocks
from llava_tools.model.generate import GenerationSettings, answer_text
from llava_tools.model.shared_prefix import generate_groups

if TYPE_CHECKING:
    from llava_tools.model.load import Assistant

log = logging.getLogger(__name__)

GREY = (128, 128, 128)

Prompt = list[int]


def answer_all(
    assistant: Assistant,
    table: Table,
    questions: Sequence[Question],
    settings: GenerationSettings,
    *,
    batch_size: int,
    blank_images: bool = False,
) -> Iterator[list[Answer]]:
    """Yield the answers batch by batch; every distinct picture is encoded once.

    The order is that of speed, not of the table. With `blank_images` every picture is replaced by
    a grey one of its size. Raises UserError for a picture that cannot be decoded.
    """
    if assistant.model.device.type == "cpu":  # batch after batch takes blocks of the same sizes
        keep_freed_blocks(2**28, 2**30)
    turns = [[Turn("user", question.prompt)] for question in questions]
    prompts = [render_prompt(t, assistant.template, assistant.tokenizer) for t in turns]
    _warn_of_long_rows(assistant, questions, prompts, settings.max_new_tokens)
    batches = plan(questions, [len(prompt) for prompt in prompts], batch_size)
    planned = [[questions[i] for i in batch] for batch in batches]
    with Features(assistant, table, planned, blank_images) as features:
        for batch, members in zip(batches, planned, strict=True):
            features.encode(members)
            given = [features.of(question) for question in members]
            ids = _generate(assistant, [prompts[i] for i in batch], members, given, settings)
            features.release(members)
            yield [
                Answer(question.index, answer_text(assistant, row, settings), len(row))
                for question, row in zip(members, ids, strict=True)
            ]


def _warn_of_long_rows(
    assistant: Assistant, questions: Sequence[Question], prompts: Sequence[Prompt], new_tokens: int
) -> None:
    """Name the rows that the model was not made for: it answers them, but hardly well."""
    limit = getattr(assistant.model.llm.config, "max_position_embeddings", None)
    more = assistant.model.num_patches - 1  # places that an image takes besides its own token
    lengths = [len(p) + p.count(IMAGE_TOKEN_ID) * more + new_tokens for p in prompts]
    long = [q for q, length in zip(questions, lengths, strict=True) if limit and length > limit]
    if long:
        log.warning(
            "%d of %d rows are longer, answers included, than the model's context of %d tokens, "
            "for example %s.",
            len(long),
            len(questions),
            limit,
            long[0].row.where,
        )


def plan(questions: Sequence[Question], lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Return batches of positions: rows of the same pictures together, the longest ones first.

    Rows in a batch have similar lengths, so that little is spent on padding; a batch that does
    not fit into memory is the first one. Rows of the same pictures share what goes before their
    questions, so they are spread over no more batches than they need.
    """
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for position, question in enumerate(questions):
        groups[_picture_keys(question)].append(position)
    batches: list[list[int]] = []
    for group in sorted(groups.values(), key=lambda group: -max(lengths[i] for i in group)):
        rows = sorted(group, key=lambda i: -lengths[i])
        for start in range(0, len(rows), batch_size):
            piece = rows[start : start + batch_size]
            if batches and len(batches[-1]) + len(piece) <= batch_size:
                batches[-1] += piece
            else:
                batches.append(piece)
    return batches


def _generate(
    assistant: Assistant,
    prompts: list[Prompt],
    questions: list[Question],
    features: list[torch.Tensor | None],
    settings: GenerationSettings,
) -> list[list[int]]:
    seen = [_picture_keys(question) for question in questions]
    groups = list(accumulate((a != b for a, b in pairwise(seen)), initial=0))
    try:
        return generate_groups(assistant, prompts, groups, features, settings)
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(
            f"A batch of {len(prompts)} rows does not fit into the GPU's memory.",
            "Lower --batch-size and run the same command again: it goes on where it stopped.",
        ) from error


class Features:
    """The projected features of pictures: decoded ahead in threads, kept until their last use."""

    def __init__(
        self,
        assistant: Assistant,
        table: Table,
        batches: Sequence[Sequence[Question]],
        blank_images: bool,
    ) -> None:
        self.assistant = assistant
        self.table = table
        self.blank_images = blank_images
        self.uses = Counter(p.key for batch in batches for q in batch for p in q.pictures)
        self.ready: dict[str, torch.Tensor] = {}  # key -> [P, D]
        self.pixels: dict[str, Future[torch.Tensor]] = {}  # key -> [3, H, W]
        self.requested: set[str] = set()
        self.ahead = iter(batches)
        self.pool = ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1))

    def __enter__(self) -> Features:
        self._prefetch()
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def _prefetch(self) -> None:
        for picture in _pictures(next(self.ahead, ())):
            if picture.key not in self.requested:
                self.requested.add(picture.key)
                self.pixels[picture.key] = self.pool.submit(self._load, picture)

    def _load(self, picture: Picture) -> torch.Tensor:
        image = decode_image(self.table.picture_bytes(picture), picture.where)
        if self.blank_images:
            image = Image.new("RGB", image.size, GREY)
        pixels: torch.Tensor = self.assistant.pixels([image])[0]
        return pixels

    def encode(self, batch: Sequence[Question]) -> None:
        """Encode the pictures of a batch that are new, while the next batch's are decoded."""
        keys = dict.fromkeys(picture.key for picture in _pictures(batch))
        new = [key for key in keys if key not in self.ready]
        loaded = [self.pixels.pop(key).result() for key in new]
        self._prefetch()
        if loaded:
            encoded = self.assistant.encode(torch.stack(loaded))
            self.ready |= dict(zip(new, encoded.unbind(), strict=True))

    def of(self, question: Question) -> torch.Tensor | None:
        """Return the features [k, P, D] of a question's pictures, None when it has none."""
        found = [self.ready[picture.key] for picture in question.pictures]
        return torch.stack(found) if found else None

    def release(self, batch: Sequence[Question]) -> None:
        """Forget the pictures that no later batch uses."""
        for picture in _pictures(batch):
            self.uses[picture.key] -= 1
            if not self.uses[picture.key]:
                self.ready.pop(picture.key, None)


def _picture_keys(question: Question) -> tuple[str, ...]:
    return tuple(picture.key for picture in question.pictures)


def _pictures(batch: Sequence[Question]) -> list[Picture]:
    return [picture for question in batch for picture in question.pictures]
