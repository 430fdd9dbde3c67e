"""From turns to token ids, with the loss mask built in the same pass (XTuner's token streams).

One walk over the turns serves training, chat and evaluation, so that a prompt holds exactly the
ids that the model was trained on. Every piece is encoded by itself: the question, cut at its
images; the answer with its suffix; the separator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llava_tools.constants import IGNORE_ID, IMAGE_TOKEN, IMAGE_TOKEN_ID
from llava_tools.data.codec import Codec, codec_of
from llava_tools.data.sample import Turn
from llava_tools.data.templates import Template

Piece = tuple[list[int], bool]  # ids, and whether they are trained on


@dataclass(frozen=True)
class Rendered:
    """Ids (IMAGE_TOKEN_ID once an image) and labels (the id, or IGNORE_ID) of equal length.

    `flags` holds keys of SKIP_REASONS, for which the row should not be trained on, and of
    MENDED_REASONS.
    """

    input_ids: list[int]
    labels: list[int]
    flags: tuple[str, ...] = ()


def render(
    turns: Sequence[Turn], template: Template, tokenizer: Any, max_length: int | None = None
) -> Rendered:
    """Return the training stream of a dialogue that ends with an answer, cut to max_length.

    Every answer is trained on, with its suffix or end token; questions, BOS and separators are
    not. `tokenizer` is a Hugging Face tokenizer or a Codec of one.
    """
    codec = codec_of(tokenizer)
    ids: list[int] = []
    labels: list[int] = []
    for piece, trained in _pieces(turns, template, codec):
        ids += piece
        labels += piece if trained else [IGNORE_ID] * len(piece)
    flags = _flags(turns, template, codec, ids[max_length:] if max_length else [])
    if max_length:
        flags += ["answer_cut"] if any(i != IGNORE_ID for i in labels[max_length:]) else []
        del ids[max_length:], labels[max_length:]
    flags += [] if any(i != IGNORE_ID for i in labels) else ["nothing_supervised"]
    return Rendered(ids, labels, tuple(flags))


def render_prompt(turns: Sequence[Turn], template: Template, tokenizer: Any) -> list[int]:
    """Return the ids up to where the assistant starts; the last turn is the user's.

    They equal the head of the stream that `render` gives for the same turns and an answer.
    """
    if not turns or turns[-1].role != "user":
        raise ValueError("a prompt ends with a user turn")
    pieces = list(_pieces([*turns, Turn("assistant", "")], template, codec_of(tokenizer)))
    last_answer = max(i for i, (_, trained) in enumerate(pieces) if trained)
    return [i for piece, _ in pieces[:last_answer] for i in piece]


def _pieces(turns: Sequence[Turn], template: Template, codec: Codec) -> Iterator[Piece]:
    """Yield the stream piece by piece; there is exactly one trained piece an answer."""
    system, dialogue = _split_system(turns, template)
    end = [] if template.suffix_as_eos else codec.eos
    begin = codec.bos
    sep = codec.encode(template.sep) if template.sep else []
    for question, answer in zip(dialogue[::2], dialogue[1::2], strict=True):
        if (question.role, answer.role) != ("user", "assistant"):
            raise ValueError(f"expected user and assistant, not {question.role}, {answer.role}")
        text = _question_text(question.text, template)
        yield begin, False
        yield _encode_with_images(system + text, codec), False
        yield codec.encode(answer.text + template.suffix) + end, True
        yield sep, False
        # The end token ended a sequence: the next turn is a new one (XTuner's need_bos rule).
        begin = codec.bos if not template.suffix_as_eos else []
        system = ""


def _split_system(turns: Sequence[Turn], template: Template) -> tuple[str, Sequence[Turn]]:
    """Return the rendered system text, which opens the first question, and the other turns."""
    if turns and turns[0].role == "system":
        return template.system.format(system=turns[0].text), turns[1:]
    return "", turns


def _question_text(text: str, template: Template) -> str:
    if template.image_only:
        text = IMAGE_TOKEN * text.count(IMAGE_TOKEN)
    return template.instruction.format(input=text)


def _encode_with_images(text: str, codec: Codec) -> list[int]:
    """Encode the pieces around the images one by one and put an image id between them."""
    first, *others = text.split(IMAGE_TOKEN)
    ids = codec.encode(first) if first else []
    for piece in others:
        ids.append(IMAGE_TOKEN_ID)
        ids += codec.encode(piece) if piece else []
    return ids


def _flags(
    turns: Sequence[Turn], template: Template, codec: Codec, cut: Sequence[int]
) -> list[str]:
    """Return what makes the row unfit: control tokens in its texts, images in the part cut off."""
    used = [t for t in turns if t.role == "assistant" or not template.image_only]
    answers = sum(turn.role == "assistant" for turn in turns)
    found = {
        "control_token": any(codec.control_string(turn.text) for turn in used),
        "several_captions": template.image_only and answers > 1,
        "image_cut": IMAGE_TOKEN_ID in cut,
    }
    return [flag for flag, holds in found.items() if holds]
