"""The formats of text data sets: golden rows, how a format is told, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava_tools.data.detect import detect_format
from llava_tools.data.formats import get_format
from llava_tools.data.sample import Sample, Skip
from llava_tools.errors import UserError

U, A, S = "user", "assistant", "system"
PLAIN = [(U, "Hi"), (A, "Yo")]

GOLDEN: list[tuple[str, dict[str, Any], list[tuple[str, str]]]] = [
    (
        "llava",
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]},
        PLAIN,
    ),
    (
        "llava",
        {"conversations": [{"role": "User", "content": "Hi"}, {"role": "bard", "content": "Yo"}]},
        PLAIN,
    ),
    (
        "llava",
        {
            "system": "Be kind.",
            "conversations": [{"from": "human", "value": "Hi"}, {"from": "bing", "value": "Yo"}],
        },
        [(S, "Be kind."), *PLAIN],
    ),
    (
        "messages",
        {
            "messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
                {"role": "assistant", "content": "Yo"},
            ]
        },
        [(S, "Be kind."), *PLAIN],
    ),
    ("alpaca", {"instruction": "Hi", "input": "", "output": "Yo"}, PLAIN),
    (
        "dolphin",
        {"instruction": "", "input": "Hi", "output": "Yo"},
        PLAIN,
    ),
    (
        "platypus",
        {"instruction": "Hi", "input": "no", "output": "Yo", "data_source": "x"},
        PLAIN,
    ),
    (
        "airoboros",
        {"instruction": "Hi", "response": "Yo", "system": "A chat."},
        [(S, "A chat."), *PLAIN],
    ),
    (
        "openorca",
        {"system_prompt": "Be kind.", "question": "Hi", "response": "Yo"},
        [(S, "Be kind."), *PLAIN],
    ),
    (
        "guanaco",
        {"text": "### Human: Hi### Assistant: Yo### Human: More?### Assistant: No."},
        [*PLAIN, (U, "More?"), (A, "No.")],
    ),
    ("pairs", {"prompt": "Hi", "completion": "Yo"}, PLAIN),
    ("pairs", {"prompt": "Hi", "response": "Yo"}, PLAIN),
    ("text", {"text": " A page.\n"}, [(U, ""), (A, " A page.\n")]),
]


@pytest.mark.parametrize(("name", "row", "turns"), GOLDEN)
def test_a_golden_row_is_told_and_read(
    tmp_path: Path, name: str, row: dict[str, Any], turns: list[tuple[str, str]]
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"id": 5, **row}))
    assert detect_format(str(file)) == name
    sample = get_format(name)({"id": 5, **row}, "x, row 1")
    assert isinstance(sample, Sample) and sample.id == "5"
    assert [(turn.role, turn.text) for turn in sample.turns] == turns


def test_alpacas_input_stands_below_its_instruction() -> None:
    for given, question in (("7 8", "Add.\nInput:\n7 8"), (" 7 ", "Add.")):  # FastChat's rule
        row = {"instruction": "Add.", "input": given, "output": "15"}
        sample = get_format("alpaca")(row, "x")
        assert isinstance(sample, Sample) and sample.turns[0].text == question


def test_alpacas_history_comes_first() -> None:
    row = {"instruction": "And 1?", "output": "9", "history": [["7?", "7"], ["8?", "8"]]}
    sample = get_format("alpaca")({**row, "system": "Add."}, "x")
    assert isinstance(sample, Sample)
    assert [t.text for t in sample.turns] == ["Add.", "7?", "7", "8?", "8", "And 1?", "9"]
    for broken in ("q", [["q"]], [["q", 1]], {"q": "a"}):
        found = get_format("alpaca")({**row, "history": broken}, "x")
        assert isinstance(found, Skip) and found.reason == "missing_text"
        assert found.detail.startswith("`history` has ")


def test_dolphins_instruction_is_the_system_text() -> None:
    row = {"instruction": "Be brief.", "input": "Hi", "output": "Yo"}
    sample = get_format("dolphin")(row, "x")
    assert isinstance(sample, Sample)
    assert [turn.role for turn in sample.turns] == [S, U, A]


def test_messages_name_local_images() -> None:
    parts = [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": "file:///a.png"}},
    ]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "A cat."}]
    sample = get_format("messages")({"messages": turns}, "x")
    assert isinstance(sample, Sample) and sample.images == ("/a.png",)
    assert sample.turns[0].text == "<image>\nWhat is it?"


def said(content: Any, role: str = "user", **more: Any) -> dict[str, Any]:
    answer = {"role": "assistant", "content": "Yo"}
    return {"messages": [{"role": role, "content": content, **more}, answer]}


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("messages", {"messages": []}, "no_messages"),
        ("messages", said(None), "bad_message"),
        ("messages", said([{"type": "audio"}]), "bad_message"),
        ("messages", said("x", "tool"), "tool_turn"),
        ("messages", said("x", tool_calls=[{}]), "tool_turn"),
        ("messages", said("x", "narrator"), "unknown_role"),
        ("messages", said("x", "assistant", weight=0), "weighted_answer"),
        ("messages", said([{"type": "image", "image": "https://a/b.png"}]), "remote_image"),
        ("messages", said([{"type": "image", "image": 5}]), "bad_image_field"),
        ("alpaca", {"instruction": "Hi"}, "missing_text"),
        ("alpaca", {"instruction": "Hi", "output": " "}, "no_answer"),
        ("guanaco", {"text": "Nothing"}, "no_markers"),
        ("text", {"text": " "}, "no_answer"),
        ("pairs", 5, "not_an_object"),
    ],
)
def test_an_unusable_row_says_why(name: str, row: Any, reason: str) -> None:
    found = get_format(name)(row, "x, row 9")
    assert isinstance(found, Skip) and found.reason == reason


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"a": 1}], "no known format: the keys of the first are a"),
        ([{"instruction": "a", "input": "b", "output": "c"}], "2 formats: alpaca and dolphin"),
        ([{"prompt": "a", "response": "b"}, {"text": "c"}], "row 1 is pairs; row 2 is text"),
        ([{"sents": "a", "bbox": [1, 2, 3, 4]}], "inverse_refcoco and refcoco"),
    ],
)
def test_what_could_be_wrong_is_never_guessed(
    tmp_path: Path, rows: list[Any], message: str
) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows))
    with pytest.raises(UserError, match=message) as caught:
        detect_format(str(file))
    assert "format" in str(caught.value.hint)
