"""From turns to token ids, with the loss mask built in the same pass.

One walk over the turns serves training, chat and evaluation, so that a prompt holds exactly the
ids that the model was trained on. XTuner's formats are encoded piece by piece: the question, cut at
its images; the answer with its suffix; the separator. The others are encoded as one text, cut at
its images, and a token is trained if it holds a part of an answer or of its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llava_tools.constants import IGNORE_ID, IMAGE_TOKEN, IMAGE_TOKEN_ID
from llava_tools.data.codec import Codec, codec_of
from llava_tools.data.own_template import Refused
from llava_tools.data.pieces import Part, Piece, walk
from llava_tools.data.sample import Turn
from llava_tools.data.template_rows import Template
from llava_tools.errors import UserError


@dataclass(frozen=True)
class Rendered:
    """Ids (IMAGE_TOKEN_ID once an image) and labels (the id, or IGNORE_ID) of equal length.

    `flags` holds keys of SKIP_REASONS, for which the row should not be trained on, and of
    MENDED_REASONS.
    """

    input_ids: list[int]
    labels: list[int]
    flags: tuple[str, ...] = ()


Stretches = list[tuple[int, int]]  # from and to, in ids: one an answer


def render(
    turns: Sequence[Turn],
    template: Template,
    tokenizer: Any,
    max_length: int | None = None,
    train_on: str = "all",
) -> Rendered:
    """Return the training stream of a dialogue that ends with an answer, cut to max_length.

    Answers are trained on, with their suffix or end token: `all`, or the `last` one. With `full`
    everything is but images and the first BOS. `tokenizer` is a Hugging Face tokenizer or a Codec.
    """
    codec = codec_of(tokenizer)
    try:
        ids, answers = _encode(_pieces(turns, template, codec), template, codec)
    except Refused:
        return Rendered([], [], ("template_refused",))
    labels = _labels(ids, answers, train_on, codec)
    flags = _flags(turns, template, codec, ids[max_length:] if max_length else [])
    if max_length and len(ids) > max_length:
        flags += ["answer_cut"] if any(i != IGNORE_ID for i in labels[max_length:]) else []
        ids, labels = ids[:max_length], labels[:max_length]
    flags += [] if any(i != IGNORE_ID for i in labels) else ["nothing_supervised"]
    return Rendered(ids, labels, tuple(flags))


def render_prompt(turns: Sequence[Turn], template: Template, tokenizer: Any) -> list[int]:
    """Return the ids up to where the assistant starts; the last turn is the user's.

    They equal the head of the stream that `render` gives for the same turns and an answer.
    Raises UserError where the tokenizer's own chat template does not take the dialogue.
    """
    if not turns or turns[-1].role != "user":
        raise ValueError("a prompt ends with a user turn")
    codec = codec_of(tokenizer)
    if template.from_tokenizer:
        pieces = _own_prompt(turns, codec)
    else:
        pieces = list(walk([*turns, Turn("assistant", "")], template))
        last = max(piece.answer for piece in pieces if piece.answer is not None)
        pieces = pieces[: next(k for k, piece in enumerate(pieces) if piece.answer == last)]
    return _encode(pieces, template, codec)[0]


def _own_prompt(turns: Sequence[Turn], codec: Codec) -> list[Piece]:
    try:
        return list(codec.own_template.prompt(turns))
    except Refused as reason:
        raise UserError(
            f"The tokenizer's chat template does not take this conversation: {reason}.",
            "Leave out the system text if there is one, or choose another --prompt-template.",
        ) from reason


def _pieces(turns: Sequence[Turn], template: Template, codec: Codec) -> list[Piece]:
    return list(
        codec.own_template.walk(turns) if template.from_tokenizer else walk(turns, template)
    )


def _labels(ids: list[int], answers: Stretches, train_on: str, codec: Codec) -> list[int]:
    if train_on == "full":
        begin = len(codec.bos) if ids[: len(codec.bos)] == codec.bos else 0
        learned = [IGNORE_ID if i == IMAGE_TOKEN_ID else i for i in ids[begin:]]
        return [IGNORE_ID] * begin + learned
    labels = [IGNORE_ID] * len(ids)
    for start, end in answers if train_on == "all" else answers[-1:]:
        labels[start:end] = ids[start:end]
    return labels


def _encode(
    pieces: Sequence[Piece], template: Template, codec: Codec
) -> tuple[list[int], Stretches]:
    """Return the ids of all pieces, and where its answers are."""
    if template.whole:
        return _encode_whole(pieces, codec, [] if template.from_tokenizer else codec.bos)
    return _encode_piecewise(pieces, codec)


def _encode_piecewise(pieces: Sequence[Piece], codec: Codec) -> tuple[list[int], Stretches]:
    ids = list(codec.bos)
    answers: Stretches = []
    for piece in pieces:
        start = len(ids)
        if piece.token:
            ids += codec.token_ids[piece.token]
        elif piece.answer is not None:  # never cut: `<image>` in an answer is no image
            ids += codec.encode_parts(piece.parts)
        else:
            for number, chunk in enumerate(_cut_at_images(piece.parts)):
                ids += [IMAGE_TOKEN_ID] if number else []
                ids += codec.encode_parts(chunk)
        if piece.answer == len(answers):
            answers.append((start, len(ids)))
        elif piece.answer is not None:
            answers[-1] = answers[-1][0], len(ids)
    return ids, answers


def _cut_at_images(parts: Sequence[Part]) -> Iterator[tuple[Part, ...]]:
    """Yield what stands before, between and behind the images."""
    if not any(IMAGE_TOKEN in text for text, _ in parts):
        yield tuple(parts)
        return
    held: list[Part] = []
    for text, said in parts:
        first, *others = text.split(IMAGE_TOKEN)
        held.append((first, said))
        for other in others:
            yield tuple(held)
            held = [(other, said)]
    yield tuple(held)


def _encode_whole(
    pieces: Sequence[Piece], codec: Codec, bos: list[int]
) -> tuple[list[int], Stretches]:
    """Encode all pieces as one text, cut only at images and where no token may reach over."""
    ids = list(bos)
    answers: Stretches = []
    chunk: list[Part] = []
    places: list[tuple[int, int, int]] = []  # of answers in the chunk's text, and which they are
    length = 0

    def finish() -> None:
        nonlocal length
        _encode_chunk(chunk, places, codec, ids, answers)
        chunk.clear()
        places.clear()
        length = 0

    for piece in pieces:
        parts = ((codec.token_texts[piece.token], False),) if piece.token else piece.parts
        images = piece.answer is None
        for number, some in enumerate(_cut_at_images(parts) if images else (parts,)):
            if number:
                finish()
                ids.append(IMAGE_TOKEN_ID)
            chunk += some
            size = sum([len(text) for text, _ in some])
            if piece.answer is not None:
                if places and places[-1][2] == piece.answer:
                    places[-1] = places[-1][0], length + size, piece.answer
                else:
                    places.append((length, length + size, piece.answer))
            length += size
    finish()
    return ids, answers


def _encode_chunk(
    parts: Sequence[Part],
    places: Sequence[tuple[int, int, int]],
    codec: Codec,
    ids: list[int],
    answers: Stretches,
) -> None:
    """Add the ids of a text, and where in them its answers are.

    Where a token would reach from a prompt into its answer, the text is cut there: a prompt must
    have the ids it was trained with.
    """
    found = codec.encode_spans(parts)
    base = len(ids)
    firsts = [found.at(start) for start, _, _ in places]
    for number, (start, _, _) in enumerate(places):
        if start > 0 and firsts[number].reaches_over:
            head, tail = _cut(parts, start)
            kept = codec.behind_a_cut(tail)
            start += sum(len(text) for text, _ in tail) - sum(len(text) for text, _ in kept)
            _encode_chunk(head, places[:number], codec, ids, answers)
            moved = [(max(0, a - start), b - start, k) for a, b, k in places[number:]]
            _encode_chunk(kept, moved, codec, ids, answers)
            return
    for first, (_, stop, _) in zip(firsts, places, strict=True):
        answers.append((base + first.token, base + found.before(stop)))
    ids += found.ids


def _cut(parts: Sequence[Part], place: int) -> tuple[list[Part], list[Part]]:
    """Cut a text in two."""
    head: list[Part] = []
    tail: list[Part] = []
    for text, said in parts:
        inside = min(max(place, 0), len(text))
        if inside:
            head.append((text[:inside], said))
        if inside < len(text):
            tail.append((text[inside:], said))
        place -= len(text)
    return head, tail


def _flags(
    turns: Sequence[Turn], template: Template, codec: Codec, cut: Sequence[int]
) -> list[str]:
    """Return what is to be said of the row: escaped control strings, images in the part cut off."""
    used = [t for t in turns if t.role == "assistant" or not template.image_only]
    answers = sum(turn.role == "assistant" for turn in turns)
    found = {
        "control_text_escaped": any(codec.control_string(turn.text) for turn in used),
        "several_captions": template.image_only and answers > 1,
        "image_cut": IMAGE_TOKEN_ID in cut,
    }
    return [flag for flag, holds in found.items() if holds]
