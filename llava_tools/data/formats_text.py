"""The formats of text data sets: from a row's keys to messages, one small function each.

A row has the keys of the published data set of that name; other keys do not matter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from llava_tools.constants import IMAGE_TOKEN
from llava_tools.data.dialogue import Unusable, check_weight, role_of
from llava_tools.data.sample import Turn

Row = Mapping[str, Any]
_GUANACO = re.compile(r"###\s*(Human|Assistant):")


class Dialogue(NamedTuple):
    """Messages as they stand in a row, with their images in the order of their `<image>`."""

    turns: list[Turn]
    images: tuple[str, ...] = ()


def messages(row: Row) -> Dialogue:
    """Read OpenAI's `messages`: a content is a text, or a list of texts and image files."""
    listed = row.get("messages")
    if not isinstance(listed, list) or not listed:
        raise Unusable("no_messages", f"found {listed!r:.80}")
    turns: list[Turn] = []
    images: list[str] = []
    for i, message in enumerate(listed):
        fields = message if isinstance(message, dict) else {}
        speaker = fields.get("role", fields.get("from"))
        if not isinstance(speaker, str):
            raise Unusable("bad_message", f"message {i + 1} is {message!r:.80}")
        role = role_of(speaker, i + 1)
        check_weight(fields, role, i + 1)
        if fields.get("tool_calls") or fields.get("function_call"):
            raise Unusable("tool_turn", f"turn {i + 1} calls a tool")
        text, found = _content(fields.get("content", fields.get("value")), i + 1)
        turns.append(Turn(role, text))
        images += found
    return Dialogue(turns, tuple(images))


def _content(content: Any, number: int) -> tuple[str, list[str]]:
    """Return the text of a message's content, with `<image>` for each image, and the images."""
    if isinstance(content, str):
        return content, []
    if not isinstance(content, list):
        raise Unusable("bad_message", f"the content of message {number} is {content!r:.80}")
    texts, images = [], []
    for part in content:
        fields = part if isinstance(part, dict) else {}
        if fields.get("type") == "text" and isinstance(fields.get("text"), str):
            texts.append(fields["text"])
        elif fields.get("type") in ("image", "image_url"):
            images.append(_image(fields.get(fields["type"]), number))
            texts.append(IMAGE_TOKEN)
        else:
            raise Unusable("bad_message", f"message {number} has the part {part!r:.80}")
    return "".join(texts), images


def _image(value: Any, number: int) -> str:
    path = value.get("url") if isinstance(value, dict) else value
    if not isinstance(path, str) or not path or "\0" in path:
        raise Unusable("bad_image_field", f"message {number} has {value!r:.80}")
    if path.startswith("data:") or ("://" in path and not path.startswith("file://")):
        raise Unusable("remote_image", f"message {number} has '{path:.60}'")
    return path.removeprefix("file://")


def alpaca(row: Row) -> Dialogue:
    """Read `instruction`, `input` and `output` as FastChat's converter does, after `history`."""
    instruction, given = _text(row, "instruction"), _text(row, "input", needed=False)
    if len(given.strip()) > 1:
        instruction = f"{instruction}\nInput:\n{given}"
    question, answer = _exchange(instruction, _text(row, "output")).turns
    return Dialogue([*_history(row.get("history")), question, answer])


def _history(value: Any) -> list[Turn]:
    """Return LLaMA-Factory's earlier pairs of question and answer."""
    pairs = [] if value is None else value if isinstance(value, list) else [value]
    turns = []
    for pair in pairs:
        if not isinstance(pair, list) or [type(text) for text in pair] != [str, str]:
            raise Unusable("missing_text", f"`history` has {pair!r:.60}")
        turns += [Turn("user", pair[0]), Turn("assistant", pair[1])]
    return turns


def dolphin(row: Row) -> Dialogue:
    """Read `instruction`, which is the system text, `input`, the question, and `output`."""
    system = _text(row, "instruction", needed=False)
    return _exchange(_text(row, "input"), _text(row, "output"), system)


def platypus(row: Row) -> Dialogue:
    """Read Open-Platypus: `instruction` and `output`; its `input` says nothing."""
    return _exchange(_text(row, "instruction"), _text(row, "output"))


def airoboros(row: Row) -> Dialogue:
    """Read `instruction`, `response`, and `system` where there is one."""
    system = _text(row, "system", needed=False)
    return _exchange(_text(row, "instruction"), _text(row, "response"), system)


def openorca(row: Row) -> Dialogue:
    """Read `system_prompt`, `question` and `response`."""
    system = _text(row, "system_prompt", needed=False)
    return _exchange(_text(row, "question"), _text(row, "response"), system)


def pairs(row: Row) -> Dialogue:
    """Read `prompt` with `response` or `completion`, and `system` where there is one."""
    answer = "completion" if row.get("response") is None else "response"
    system = _text(row, "system", needed=False)
    return _exchange(_text(row, "prompt"), _text(row, answer), system)


def guanaco(row: Row) -> Dialogue:
    """Read `text`: any number of `### Human: ...### Assistant: ...`, one after the other."""
    before, *rest = _GUANACO.split(_text(row, "text"))
    if not rest:
        raise Unusable("no_markers", f"found '{before:.60}'")
    turns = [Turn("system", before.strip())] if before.strip() else []
    for marker, text in zip(rest[::2], rest[1::2], strict=True):
        turns.append(Turn("user" if marker == "Human" else "assistant", text.strip()))
    return Dialogue(turns)


def whole_text(row: Row) -> Dialogue:
    """Read `text` as one answer to nothing: every token of it is trained on."""
    text = _text(row, "text")
    if not text.strip():
        raise Unusable("no_answer", "`text` is empty")
    return Dialogue([Turn("user", ""), Turn("assistant", text)])


def _text(row: Row, key: str, *, needed: bool = True) -> str:
    value = row.get(key)
    if value is None and not needed:
        return ""
    if not isinstance(value, str):
        raise Unusable("missing_text", f"`{key}` is {value!r:.60}")
    return value


def _exchange(question: str, answer: str, system: str = "") -> Dialogue:
    turns = [Turn("system", system)] if system.strip() else []
    return Dialogue([*turns, Turn("user", question), Turn("assistant", answer)])
