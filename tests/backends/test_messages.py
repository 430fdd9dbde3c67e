"""OpenAI's form of a dialogue, read into turns and images."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from PIL import Image

from llava_tools.backends.messages import count_addresses, image_part, read_messages
from llava_tools.data.sample import Turn
from llava_tools.errors import UserError

PICTURE = Image.new("RGB", (5, 3), (10, 20, 30))


def say(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def test_a_dialogue_with_images() -> None:
    content = [{"type": "text", "text": "What is"}, image_part(PICTURE), image_part(PICTURE)]
    content.append({"type": "text", "text": "this?"})
    turns, images = read_messages(
        [
            say("developer", "Be brief."),
            say("user", content),
            say("assistant", "A"),
            say("user", "B"),
        ]
    )
    assert turns == [
        Turn("system", "Be brief."),
        Turn("user", "<image>\n<image>\nWhat is\nthis?"),
        Turn("assistant", "A"),
        Turn("user", "B"),
    ]
    assert [image.tobytes() for image in images] == [PICTURE.tobytes()] * 2


def test_addresses_are_opened_only_by_who_allows_it() -> None:
    part = {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}}
    with pytest.raises(UserError, match="not fetched"):
        read_messages([say("user", [part])])
    seen = []

    def opener(url: str, where: str) -> Image.Image:
        seen.append((url, where))
        return PICTURE

    read_messages([say("user", [part])], opener)
    assert seen == [("https://example.org/cat.png", "message 1")]


def data(text: str) -> list[dict[str, Any]]:
    return [{"type": "image_url", "image_url": {"url": text}}]


GIF_BOMB = base64.b64encode(b"GIF89a" + b"\xff" * 20).decode()
WRONG: dict[str, tuple[list[Any], str]] = {
    "nothing": ([], "last message is not the user's"),
    "ends with an answer": ([say("user", "a"), say("assistant", "b")], "last message is not"),
    "no object": (["hello"], "message 1 is 'hello'"),
    "unknown role": ([say("tool", "x")], "role of message 1 is 'tool'"),
    "no role": ([{"content": "x"}], "role of message 1 is None"),
    "late system": ([say("user", "a"), say("system", "b")], "message 2 is system's, after user's"),
    "twice the user": ([say("user", "a"), say("user", "b")], "message 2 is user's, after user's"),
    "answer first": ([say("assistant", "a")], "message 1 is assistant's, after nothing"),
    "no content": ([{"role": "user"}], "content of message 1 is None"),
    "unknown part": ([say("user", [{"type": "audio"}])], "part of message 1 is"),
    "text is no text": ([say("user", [{"type": "text", "text": 5}])], "part of message 1 is"),
    "image token": ([say("user", "look at <image>")], "message 1 contains '<image>'"),
    "no url": ([say("user", [{"type": "image_url", "image_url": {}}])], "has no url"),
    "no base64": ([say("user", data("data:image/png,abc"))], "no data URL in base64"),
    "bad base64": ([say("user", data("data:image/png;base64,@@@"))], "base64 .* damaged"),
    "no image": ([say("user", data("data:image/png;base64,aGVsbG8="))], "image of message 1"),
    "broken image": (
        [say("user", data(f"data:image/gif;base64,{GIF_BOMB}"))],
        "image of message 1",
    ),
    "image of the assistant": (
        [say("user", "a"), say("assistant", [image_part(PICTURE)]), say("user", "b")],
        "message 2 has an image",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_read_is_said(case: str) -> None:
    messages, message = WRONG[case]
    with pytest.raises(UserError, match=message):
        read_messages(messages)


def test_images_by_address_are_counted_however_they_are_written() -> None:
    urls = ["https://a/b.png", {"url": "http://a/c.png"}, {"url": "data:image/png;base64,AA"}, None]
    parts = [{"type": "image_url", "image_url": url} for url in urls]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "http://"}]}, "?"]
    assert count_addresses(messages) == 2


def test_an_image_survives_its_part() -> None:
    url = image_part(PICTURE)["image_url"]["url"]
    assert (
        Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).tobytes() == PICTURE.tobytes()
    )
