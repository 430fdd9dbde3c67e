"""What all formats share: roles in our words, messages in pairs, images at their places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llava_tools.constants import IMAGE_TOKEN
from llava_tools.data.sample import Sample, Turn

ROLES = {
    "human": "user",
    "gpt": "assistant",
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    # as collections of dialogues call them
    "developer": "system",
    "prompter": "user",
    "bing": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "claude": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
TOOLS = frozenset(
    ("tool", "function", "tool_call", "function_call", "tool_response", "observation", "ipython")
)


class Unusable(Exception):
    """A row that must be skipped: a key of SKIP_REASONS, and what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def role_of(speaker: str, number: int) -> str:
    """Return the role of a speaker, whatever its case. Raises Unusable, naming the turn."""
    role = ROLES.get(speaker) or ROLES.get(speaker.strip().lower())
    if role is None:
        reason = "tool_turn" if speaker.strip().lower() in TOOLS else "unknown_role"
        raise Unusable(reason, f"turn {number} is from '{speaker:.40}'")
    return role


def check_weight(fields: Mapping[str, Any], role: str, number: int) -> None:
    """Raise Unusable for an answer that is to be trained on less than others, or not at all."""
    weight = fields.get("weight")
    if role == "assistant" and weight is not None and weight != 1:
        raise Unusable("weighted_answer", f"turn {number} has weight {weight!r:.20}")


def make_sample(
    name: str, turns: list[Turn], images: tuple[str, ...], where: str, system: Any = None
) -> Sample:
    """Return the sample of some messages, mended where that can be. Raises Unusable.

    `system` is a system text that stands beside the messages; one among them goes before it.
    """
    twice = False
    if isinstance(system, str) and system.strip() and turns:
        first = turns[0]
        twice = first.role == "system" and first.text.strip() != system.strip()
        turns = turns if first.role == "system" else [Turn("system", system), *turns]
    paired, mended = pair(turns)
    mended += ["second_system"] if twice else []
    check_images(paired, images)
    return Sample(name, tuple(paired), images, where, tuple(mended))


def pair(messages: list[Turn]) -> tuple[list[Turn], list[str]]:
    """Bring the messages into the order system, (user, assistant)...; return what was mended.

    XTuner's rules: answers before the first question are dropped, consecutive questions joined,
    a last question without an answer dropped. A pair whose answer is empty is dropped, too, unless
    it brings an image: it would teach to say nothing.
    """
    turns: list[Turn] = []
    mended: list[str] = []
    question: str | None = None
    asked = False
    for i, message in enumerate(messages):
        if message.role == "system":
            if i > 0:
                raise Unusable("misplaced_system", f"turn {i + 1}")
            turns.append(message)
        elif message.role == "user":
            text = image_first(message.text)
            mended += ["questions_merged"] if question is not None else []
            question = text if question is None else question + text
            asked = True
        elif not asked:
            mended.append("answer_first")
        else:
            mended += ["answer_repeated"] if question is None else []
            if message.text.strip() or IMAGE_TOKEN in (question or ""):
                if question is not None and not question.strip():
                    mended.append("empty_question")
                turns += [Turn("user", question or ""), message]
            else:
                last = i == len(messages) - 1 and not message.text
                mended.append("question_unanswered" if last else "empty_pair")
            question = None
    mended += ["question_unanswered"] if question is not None else []
    if not turns or turns[-1].role != "assistant":
        raise Unusable("no_answer", f"messages: {len(messages)}")
    return turns, mended


def image_first(text: str) -> str:
    """Return a message with its image tokens in front, each on a line of its own, and stripped.

    A message without images is returned as it is.
    """
    count = text.count(IMAGE_TOKEN)
    if not count:
        return text
    return (f"{IMAGE_TOKEN}\n" * count + text.replace(IMAGE_TOKEN, "").strip()).strip()


def first_round(sample: Sample) -> Sample:
    """Return a sample with its first question and answer alone, the images of these with it."""
    end = 1 + next(i for i, turn in enumerate(sample.turns) if turn.role == "assistant")
    turns = sample.turns[:end]
    shown = sum(turn.text.count(IMAGE_TOKEN) for turn in turns)
    return replace(sample, turns=turns, images=sample.images[:shown])


def check_images(turns: list[Turn], images: tuple[str, ...]) -> None:
    """Raise Unusable unless there are as many `<image>` in the questions as images."""
    counts = {"user": 0, "assistant": 0, "system": 0}
    for turn in turns:
        counts[turn.role] += turn.text.count(IMAGE_TOKEN)
    tokens = counts["user"]
    if counts["assistant"] or counts["system"]:
        raise Unusable("misplaced_image_token", f"{counts['assistant'] + counts['system']} times")
    if images and not tokens:
        raise Unusable("image_without_token", f"image '{images[0]:.80}'")
    if tokens and not images:
        raise Unusable("token_without_image", f"{tokens} times {IMAGE_TOKEN}")
    if tokens != len(images):
        raise Unusable("image_count", f"{tokens} {IMAGE_TOKEN} for {len(images)} images")
