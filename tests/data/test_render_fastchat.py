"""Labels are FastChat's on well-formed rows; what it masks or dies of is mended, or told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava_tools.config import Settings
from llava_tools.constants import IGNORE_ID
from llava_tools.data.audit import audit
from llava_tools.data.codec import codec_of
from llava_tools.data.fastchat import masks_all
from llava_tools.data.prepare import prepare_row
from llava_tools.data.render import render
from llava_tools.data.rows import RawRow
from llava_tools.data.sample import Sample, Skip, Turn
from llava_tools.data.sources import make_plan
from llava_tools.data.templates import get_template
from llava_tools.errors import UserError
from tests.data.vocabularies import vocabulary

MAX = 400
PREAMBLE = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
WORDS = [
    "hello",
    "Hi there.",
    "one two",
    "USER: is",
    "ASSISTANT",
    "it's",
    "42",
    "über",
    "two\nlines",
]
# No space at either end: the one known difference is told below.
TEXT = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)
Messages = list[tuple[str, str]]


def oracle(messages: Messages, tokenizer: Any, length: int) -> tuple[list[int], list[int]]:
    """FastChat's algorithm, step by step as published, for a legacy tokenizer; padded to length.

    Raises KeyError, IndexError and AssertionError where FastChat does.
    """
    roles = {"human": "USER", "gpt": "ASSISTANT"}
    if roles[messages[0][0]] != "USER":
        messages = messages[1:]
    text = PREAMBLE + " "
    for k, (role, said) in enumerate(messages):
        assert roles[role] == ("USER", "ASSISTANT")[k % 2]
        text += f"{roles[role]}: {said}{(' ', '</s>')[k % 2]}" if said else f"{roles[role]}:"
    pad = tokenizer.unk_token_id

    def tokens(text: str) -> list[int]:
        return [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]

    ids = tokens(text)[:length]
    ids += [pad] * (length - len(ids))
    total = sum(i != pad for i in ids)
    target = list(ids)
    cursor = 1
    target[:cursor] = [IGNORE_ID] * cursor
    for turn in text.split("</s>"):
        if turn == "":
            break
        turn_length = len(tokens(turn))
        parts = turn.split(" ASSISTANT: ")
        if len(parts) != 2:
            break
        instruction = len(tokens(parts[0] + " ASSISTANT: ")) - 2
        end = min(cursor + instruction, length)
        target[cursor:end] = [IGNORE_ID] * (end - cursor)
        cursor += turn_length
    target[cursor:] = [IGNORE_ID] * len(target[cursor:])
    if cursor < length and cursor != total:
        target = [IGNORE_ID] * length
    return ids, target


def ours(messages: Messages, tokenizer: Any, length: int) -> tuple[list[int], list[int]]:
    turns = [Turn({"human": "user", "gpt": "assistant"}[role], said) for role, said in messages]
    made = render(turns, get_template("vicuna_v1.1"), tokenizer, length)
    rest = length - len(made.input_ids)
    return made.input_ids + [tokenizer.unk_token_id] * rest, made.labels + [IGNORE_ID] * rest


def talk(*texts: str) -> Messages:
    return [(("human", "gpt")[k % 2], text) for k, text in enumerate(texts)]


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(texts=st.lists(TEXT, min_size=2, max_size=8), length=st.sampled_from([60, 90, MAX]))
def test_labels_are_those_of_fastchat(texts: list[str], length: int) -> None:
    messages = talk(*texts[: len(texts) // 2 * 2])
    tokenizer = vocabulary("legacy")
    wanted = oracle(messages, tokenizer, length)
    assert ours(messages, tokenizer, length) == wanted
    if length == MAX:
        assert any(label != IGNORE_ID for label in wanted[1])


@pytest.mark.parametrize("answer", [" led by a space", "\nled by a line", "  two"])
def test_answers_led_by_white_space_are_fastchats_too(answer: str) -> None:
    tokenizer, messages = vocabulary("legacy"), talk("hello", answer)
    assert ours(messages, tokenizer, MAX) == oracle(messages, tokenizer, MAX)


# Every row of the table: the messages, what FastChat does, what we do, what we do to be alike.
MASKED, TRAINED, DIES = "masked", "trained", "dies"
LONG = "one two " * 60
TABLE: dict[str, tuple[Messages, str, str, str]] = {
    "normal": (talk("a", "b", "c", "d"), TRAINED, "", ""),
    "starts with gpt": ([("gpt", "x"), *talk("a", "b")], TRAINED, "answer_first", ""),
    "two leading gpt": ([("gpt", "x")] * 2 + talk("a", "b"), DIES, "answer_first", ""),
    "two humans": ([("human", "x"), *talk("a", "b")], DIES, "questions_merged", ""),
    "empty": ([], DIES, "no_conversations", ""),
    "role system": ([("system", "S"), *talk("a", "b")], DIES, "", ""),
    "role user": ([("user", "a"), ("gpt", "b")], DIES, "", ""),
    "role assistant": ([("human", "a"), ("assistant", "b")], DIES, "", ""),
    "ends with human": (talk("a", "b", "c"), MASKED, "question_unanswered", "fastchat_masks"),
    "only human": (talk("a"), MASKED, "no_answer", "no_answer"),
    "only gpt": ([("gpt", "b")], MASKED, "no_answer", "no_answer"),
    "empty answer": (talk("a", ""), MASKED, "no_answer", "no_answer"),
    "empty question": (talk("", "b"), MASKED, "empty_question", "fastchat_masks"),
    "an answer twice": (talk("a", "b") + talk("", "c")[1:], DIES, "answer_repeated", ""),
    "empty answer last": (talk("a", "b", "c", ""), MASKED, "question_unanswered", "fastchat_masks"),
    "empty answer between": (talk("a", "", "c", "d"), TRAINED, "empty_pair", "empty_pair"),
    "empty question between": (talk("a", "b", "", "d"), MASKED, "empty_question", "fastchat_masks"),
    "the marker": (talk("say ASSISTANT: x", "b"), MASKED, "", "fastchat_masks"),
    "an end token": (talk("say </s> x", "b"), MASKED, "control_text_escaped", "fastchat_masks"),
    "an unknown token": (talk("<unk> x", "b"), MASKED, "control_text_escaped", "fastchat_masks"),
    "a BOS": (talk("say <s> x", "b"), TRAINED, "control_text_escaped", "control_text_escaped"),
    "too long": (talk("a", LONG), TRAINED, "answer_cut", "answer_cut"),
    "too long, no answer": (talk("a", LONG, "c"), TRAINED, "question_unanswered", ""),
    "a line first": (talk("a", "\nb"), TRAINED, "", ""),
}  # fmt: skip


def fastchat(messages: Messages, length: int) -> str:
    try:
        _, labels = oracle(messages, vocabulary("legacy"), length)
    except (KeyError, IndexError, AssertionError):
        return DIES
    return TRAINED if any(label != IGNORE_ID for label in labels) else MASKED


def outcome(make_settings: Callable[..., Settings], messages: Messages, **changes: Any) -> Any:
    row = {"id": "r", "conversations": [{"from": r, "value": t} for r, t in messages]}
    made = make_settings(
        [row], prompt_template="vicuna_v1.1", image_folder="", max_length=100, **changes
    )
    plan = make_plan(made, made.datasets[0], vocabulary("legacy"), sees_images=False)
    return made, prepare_row(plan, RawRow(1, json.dumps(row).encode()))


@pytest.mark.parametrize("case", TABLE)
def test_what_fastchat_masks_is_mended_or_told(
    case: str, make_settings: Callable[..., Settings]
) -> None:
    messages, theirs, reason, alike = TABLE[case]
    assert fastchat(messages, 100) == theirs
    made, found = outcome(make_settings, messages)
    report = audit(made, vocabulary("legacy"))
    if isinstance(found, Skip):
        assert found.reason == reason
    else:
        sample, rendered = found
        assert any(label != IGNORE_ID for label in rendered.labels)
        said = {*sample.mended, *rendered.flags}
        assert said >= ({reason} if reason else set())
        assert said <= {reason, "answer_cut"}
        assert not report.faults
    _, found = outcome(make_settings, messages, fastchat_compat=True)
    dropped = isinstance(found, Skip)
    assert dropped == (theirs == MASKED or reason in ("no_answer", "no_conversations"))
    if dropped and theirs == MASKED:
        assert found.reason == alike


ANY = st.lists(st.sampled_from([*WORDS, "", "x ASSISTANT: y", "</s>", "<unk>", "<s>"]), max_size=3)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(texts=st.lists(ANY.map(" ".join), min_size=2, max_size=6))
def test_fastchat_compat_knows_what_is_masked(texts: list[str]) -> None:
    messages = talk(*texts[: len(texts) // 2 * 2])
    turns = [Turn({"human": "user", "gpt": "assistant"}[role], said) for role, said in messages]
    codec = codec_of(vocabulary("legacy"))
    for length in (45, 60, MAX):
        masked = masks_all(Sample("r", tuple(turns), (), ""), codec, length)
        wanted = fastchat(messages, length) == MASKED
        cut = length < MAX and not masked  # cut before the first answer: nothing is left either way
        assert masked == wanted or (cut and wanted)


def test_fastchat_compat_leaves_out_what_is_masked_and_nothing_else(
    make_settings: Callable[..., Settings],
) -> None:
    said = [(role, text) for role in ("human", "gpt") for text in ("a", "")]
    plain = make_settings([], prompt_template="vicuna_v1.1", image_folder="", max_length=100)
    plans = [
        make_plan(made, made.datasets[0], vocabulary("legacy"), sees_images=False)
        for made in (plain, replace(plain, fastchat_compat=True))
    ]
    for messages in (list(some) for n in range(5) for some in product(said, repeat=n)):
        row = {"conversations": [{"from": role, "value": text} for role, text in messages]}
        raw = RawRow(1, json.dumps(row).encode())
        always, alike = (isinstance(prepare_row(plan, raw), Skip) for plan in plans)
        assert alike == (always or fastchat(messages, 100) == MASKED), messages


def test_fastchat_compat_needs_its_template(make_settings: Callable[..., Settings]) -> None:
    from llava_tools.config.check import Origin, settings_from

    values = {
        "llm_name_or_path": "m",
        "prompt_template": "vicuna",
        "datasets": [{"data_path": "d"}],
    }
    with pytest.raises(UserError, match="'fastchat_compat' knows what FastChat does with Vicuna's"):
        settings_from(values | {"fastchat_compat": True}, Origin("c.py"))
    settings_from(values | {"fastchat_compat": True, "prompt_template": "vicuna_v1.1"}, Origin("c"))
    with pytest.raises(UserError, match="'train_on' must be one of 'all', 'last', 'full'"):
        settings_from(values | {"train_on": "answers"}, Origin("c.py"))
