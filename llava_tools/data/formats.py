"""From the rows of a data file to samples: one function a format, all in one table.

LLaVA's row: `id`, optional `image` (a path or a list of paths, relative to `image_folder`), and
`conversations`, a list of `{"from": "human" | "gpt", "value": text}`. ShareGPT's and SlimOrca's are
the same without images; `role` and `content` do as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from llava_tools.constants import IMAGE_TOKEN
from llava_tools.data import formats_text
from llava_tools.data.dialogue import (
    ROLES,
    Unusable,
    check_weight,
    image_first,
    make_sample,
    role_of,
)
from llava_tools.data.formats_text import Dialogue
from llava_tools.data.refcoco import refcoco_row
from llava_tools.data.rows import origin, parse_row, read_rows
from llava_tools.data.sample import Sample, Skip, Turn
from llava_tools.errors import UserError, did_you_mean

__all__ = ["FORMATS", "get_format", "image_first", "llava_sample", "read_samples", "refcoco_sample"]


def read_samples(path: str | Path, format: str = "llava") -> Iterator[Sample | Skip]:  # noqa: A002
    """Yield a Sample, or the Skip that says why there is none, for every row of a data file.

    Raises UserError for an unreadable file, malformed JSON or an unknown format.
    """
    read = get_format(format)
    for row in read_rows(path):
        yield read(parse_row(path, row), origin(path, row.number))


def get_format(name: str) -> Callable[[Any, str], Sample | Skip]:
    """Return the function that reads one parsed row. Raises UserError for an unknown name."""
    if name not in FORMATS:
        raise UserError(f"Unknown data format '{name}'.", did_you_mean(name, FORMATS))
    return FORMATS[name]


def llava_sample(row: Any, where: str, *, add_image_token: bool = False) -> Sample | Skip:
    """Return the sample of a LLaVA row, or why it cannot be used.

    `<image>` moves to the front of its message; what else is mended, `dialogue.pair` says.
    With `add_image_token`, a row whose text nowhere says `<image>` gets its images in front of
    the first question (InternVL's rule), where it would be skipped otherwise.
    """
    name = _name(row, where)
    try:
        if not isinstance(row, dict):
            raise Unusable("not_an_object", f"found {type(row).__name__}")
        images = _images(row.get("image"))
        turns = _messages(row.get("conversations"))
        added = add_image_token and images and not any(IMAGE_TOKEN in t.text for t in turns)
        if added:
            turns = _with_images(turns, len(images))
        sample = make_sample(name, turns, images, where, row.get("system"))
    except Unusable as problem:
        return Skip(where, name, problem.reason, problem.detail)
    return replace(sample, mended=(*sample.mended, "image_token_added")) if added else sample


def text_sample(row: Any, where: str, *, read: Callable[[Any], Dialogue]) -> Sample | Skip:
    """Return the sample of a row whose messages `read` finds, or why it cannot be used."""
    name = _name(row, where)
    try:
        if not isinstance(row, dict):
            raise Unusable("not_an_object", f"found {type(row).__name__}")
        turns, images = read(row)
        return make_sample(name, turns, images, where, row.get("system"))
    except Unusable as problem:
        return Skip(where, name, problem.reason, problem.detail)


def _name(row: Any, where: str) -> str:
    return str(row.get("id", where)) if isinstance(row, dict) else where


def _images(value: Any) -> tuple[str, ...]:
    paths = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(path, str) and path and "\0" not in path for path in paths):
        raise Unusable("bad_image_field", f"found {value!r:.80}")
    return tuple(paths)


def _messages(value: Any) -> list[Turn]:
    """Return the messages as they stand, with their roles in our words."""
    if not isinstance(value, list) or not value:
        raise Unusable("no_conversations", f"found {value!r:.80}")
    turns = []
    for i, message in enumerate(value):
        fields = message if isinstance(message, dict) else {}
        speaker, text = fields.get("from"), fields.get("value")
        if speaker is None and text is None:
            speaker, text = fields.get("role"), fields.get("content")
        if not isinstance(speaker, str) or not isinstance(text, str):
            raise Unusable("bad_turn", f"turn {i + 1} is {message!r:.80}")
        role = ROLES.get(speaker) or role_of(speaker, i + 1)
        check_weight(fields, role, i + 1)
        turns.append(Turn(role, text))
    return turns


def _with_images(turns: list[Turn], count: int) -> list[Turn]:
    """Put `count` image tokens in front of the first question, if there is one."""
    for i, turn in enumerate(turns):
        if turn.role == "user":
            text = f"{IMAGE_TOKEN}\n" * count + turn.text
            return [*turns[:i], replace(turn, text=text), *turns[i + 1 :]]
    return turns


def refcoco_sample(row: Any, where: str, *, inverse: bool = False) -> Sample | Skip:
    """Return the sample of a RefCOCO row, or why it cannot be used (see `refcoco_row`)."""
    return llava_sample(refcoco_row(row, inverse=inverse), where)


FORMATS: dict[str, Callable[[Any, str], Sample | Skip]] = {
    "llava": llava_sample,
    # for files such as llava_instruct_150k_zh.jsonl, which name images and never say where
    "llava_add_image_token": partial(llava_sample, add_image_token=True),
    "sharegpt": llava_sample,
    "slimorca": llava_sample,
    "messages": partial(text_sample, read=formats_text.messages),
    "alpaca": partial(text_sample, read=formats_text.alpaca),
    "dolphin": partial(text_sample, read=formats_text.dolphin),
    "platypus": partial(text_sample, read=formats_text.platypus),
    "airoboros": partial(text_sample, read=formats_text.airoboros),
    "openorca": partial(text_sample, read=formats_text.openorca),
    "guanaco": partial(text_sample, read=formats_text.guanaco),
    "pairs": partial(text_sample, read=formats_text.pairs),
    "text": partial(text_sample, read=formats_text.whole_text),
    "refcoco": refcoco_sample,
    "inverse_refcoco": partial(refcoco_sample, inverse=True),
}
