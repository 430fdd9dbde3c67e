"""Answers by a server that speaks OpenAI's API (vLLM, SGLang, ...), which sees text and images."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from llava_tools.backends.messages import image_part
from llava_tools.backends.request import Backend, Failure, Request
from llava_tools.constants import IMAGE_TOKEN
from llava_tools.data.images import decode_image
from llava_tools.eval.answer_log import Answer
from llava_tools.eval.benchmark import Question
from llava_tools.eval.tsv import Table

if TYPE_CHECKING:
    from llava_tools.model.generate import GenerationSettings

log = logging.getLogger(__name__)

GREY = (128, 128, 128)


def ask_all(
    server: Backend,
    table: Table,
    questions: Sequence[Question],
    settings: GenerationSettings,
    *,
    blank_images: bool = False,
) -> Iterator[list[Answer]]:
    """Yield answers as they come. Those that fail are left out, counted and asked the next time.

    Raises UserError for a picture that cannot be decoded and a server that is gone.
    """
    failures: Counter[str] = Counter()
    requests = (_request(table, q, settings, blank_images=blank_images) for q in questions)
    for position, result in server.answers(requests):
        if isinstance(result, Failure):
            failures[str(result)] += 1
        else:
            index = questions[position].index
            yield [Answer(index, result.text, result.completion_tokens)]
    for why, number in failures.most_common(3):
        log.warning("%d of %d questions have no answer: %s", number, len(questions), why)
    if failures:
        log.warning("Run the same command again to ask those anew.")


def _request(
    table: Table, question: Question, settings: GenerationSettings, *, blank_images: bool
) -> Request:
    images = []
    for picture in question.pictures:
        image = decode_image(table.picture_bytes(picture), picture.where)
        images.append(Image.new("RGB", image.size, GREY) if blank_images else image)
    message = {"role": "user", "content": content_of(question.prompt, images)}
    return Request(
        messages=(message,), max_tokens=settings.max_new_tokens, stop=tuple(settings.stop_words)
    )


def content_of(prompt: str, images: Sequence[Image.Image]) -> list[dict[str, Any]]:
    """Return a message's parts in order: its images where the prompt has an `<image>`, and text.

    The newline behind an image in front of all text belongs to `<image>` and is left out.
    """
    first, *others = prompt.split(IMAGE_TOKEN)
    parts = [{"type": "text", "text": first}] if first else []
    asked = bool(first)
    for image, text in zip(images, others, strict=True):
        text = text if asked else text.removeprefix("\n")
        asked = asked or bool(text)
        parts += [image_part(image), *([{"type": "text", "text": text}] if text else [])]
    return parts
