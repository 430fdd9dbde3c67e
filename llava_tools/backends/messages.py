"""Messages in the form of OpenAI's chat API: from there to turns and images.

`content` is a text, or a list of parts: `{"type": "text", "text"}` and `{"type": "image_url",
"image_url": {"url": "data:image/png;base64,..."}}`.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from llava_tools.constants import IMAGE_TOKEN
from llava_tools.data.images import decode_image
from llava_tools.data.paths import MAX_BYTES
from llava_tools.data.sample import Turn
from llava_tools.errors import UserError

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
Opener = Callable[[str, str], Image.Image]
Seen = Callable[[Image.Image], Any]


def _as_it_is(image: Image.Image) -> Image.Image:
    return image


def read_messages(
    messages: Sequence[Any], open_url: Opener | None = None, see: Seen = _as_it_is
) -> tuple[list[Turn], list[Any]]:
    """Return the turns, `<image>` in front of a text for each of its images, and the images.

    `open_url` gets (address, where) of images that are no data URLs; without it they are refused.
    `see` makes of each image what is returned for it, before the next one is decoded.

    Raises UserError naming the message: an unknown role, roles out of order, an unknown part, a
    text that says `<image>`, or an image that cannot be read. The last message is the user's.
    """
    turns: list[Turn] = []
    images: list[Any] = []
    for number, message in enumerate(messages, 1):
        where = f"message {number}"
        if not isinstance(message, Mapping):
            raise UserError(f"{where} is {message!r:.60}.", "Give objects with role and content.")
        role = ROLES.get(str(message.get("role")))
        text, seen = _content(message.get("content"), where, open_url, see)
        if role is None:
            raise UserError(
                f"The role of {where} is {message.get('role')!r:.60}.",
                f"Known: {', '.join(ROLES)}.",
            )
        if seen and role != "user":
            raise UserError(f"{where} has an image, but is no user's.", "Show images as the user.")
        _check_order(role, turns, where)
        turns.append(Turn(role, f"{IMAGE_TOKEN}\n" * len(seen) + text))
        images += seen
    if not turns or turns[-1].role != "user":
        raise UserError("The last message is not the user's.", "End with what is asked.")
    return turns, images


def _check_order(role: str, turns: Sequence[Turn], where: str) -> None:
    """Refuse what no template has a place for."""
    before = turns[-1].role if turns else None
    wanted = {None: ("system", "user"), "system": ("user",), "user": ("assistant",)}
    allowed = wanted.get(before, ("user",))
    if role not in allowed:
        raise UserError(
            f"{where} is {role}'s, after {before + chr(39) + 's' if before else 'nothing'}.",
            "Let user and assistant alternate, after at most one system message.",
        )


def _content(content: Any, where: str, open_url: Opener | None, see: Seen) -> tuple[str, list[Any]]:
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(isinstance(part, Mapping) for part in parts):
        raise UserError(
            f"The content of {where} is {content!r:.60}.", "Give a text, or a list of parts."
        )
    texts: list[str] = []
    images: list[Any] = []
    for part in parts:
        kind = part.get("type")
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image_url":
            images.append(see(_image(part.get("image_url"), where, open_url)))
        else:
            raise UserError(
                f"A part of {where} is {dict(part)!r:.60}.",
                "Parts are {'type': 'text', 'text': ...} and {'type': 'image_url', ...}.",
            )
    text = "\n".join(texts)
    if IMAGE_TOKEN in text:
        raise UserError(
            f"The text of {where} contains '{IMAGE_TOKEN}'.",
            "Images are parts of type image_url; leave the word out.",
        )
    return text, images


def _image(value: Any, where: str, open_url: Opener | None) -> Image.Image:
    url = value.get("url") if isinstance(value, Mapping) else value
    if not isinstance(url, str):
        raise UserError(f"An image of {where} has no url.", "Give {'url': 'data:image/...'}.")
    if url.startswith("data:"):
        return decode_image(_decoded(url, where), f"The image of {where}")
    if open_url is None:
        raise UserError(
            f"The image of {where} is '{url:.60}', which is not fetched.",
            "Give the image itself: data:image/png;base64,...",
        )
    return open_url(url, where)


def _decoded(url: str, where: str) -> bytes:
    head, _, body = url.partition(",")
    if not head.endswith(";base64") or len(body) > MAX_BYTES * 4 // 3 + 4:
        raise UserError(
            f"The image of {where} is no data URL in base64 of at most {MAX_BYTES:,} bytes.",
            "Give data:image/png;base64,...",
        )
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(
            f"The base64 of the image of {where} is damaged: {error}.", "Encode it again."
        ) from error


def count_images(messages: Sequence[Any]) -> int:
    """Return how many images messages have, without looking at them."""
    return len(_image_parts(messages))


def count_addresses(messages: Sequence[Any]) -> int:
    """Return how many images messages have by address, without looking at them."""
    images = [part.get("image_url") for part in _image_parts(messages)]
    urls = [image.get("url") if isinstance(image, Mapping) else image for image in images]
    return sum(isinstance(url, str) and not url.startswith("data:") for url in urls)


def _image_parts(messages: Sequence[Any]) -> list[Mapping[str, Any]]:
    contents = [m.get("content") for m in messages if isinstance(m, Mapping)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return [p for p in parts if isinstance(p, Mapping) and p.get("type") == "image_url"]


def image_part(image: Image.Image) -> dict[str, Any]:
    """Return an image as a part of a message (PNG: no pixel is lost)."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}
