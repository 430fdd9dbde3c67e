"""`data show` prints what training sees: the same ids, the trained tokens marked."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llava_tools.config import Settings
from llava_tools.constants import IGNORE_ID, IMAGE_TOKEN_ID
from llava_tools.data.audit import audit
from llava_tools.data.dataset import build_dataset
from llava_tools.data.images import ImageProcessor
from llava_tools.data.sample import Skip
from llava_tools.data.show import IMAGE, MASKED, TRAINED, segments, show, shown_rows
from tests import tiny

MakeSettings = Callable[..., Settings]


def test_json_has_what_the_dataset_has(
    make_settings: MakeSettings,
    tokenizers: dict[str, Any],
    parts: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = make_settings(max_rows=5)
    show(settings, tokenizers["phi3"], as_json=True)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    processor = ImageProcessor.from_folder(parts / "clip")
    dataset = build_dataset(settings, tokenizers["phi3"], processor)
    assert len(rows) == len(dataset) == 5
    for i, row in enumerate(rows):
        assert list(row) == ["id", "input_ids", "labels", "images"]
        example = dataset[i]
        assert row["input_ids"] == example.input_ids.tolist()
        assert row["labels"] == example.labels.tolist()
        assert len(row["images"]) == len(example.pixels)


def test_the_number_of_rows_is_that_of_good_ones(
    make_settings: MakeSettings,
    tokenizers: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = make_settings([{"id": "bad"}, *tiny.llava_rows(["0.png", "1.png"])])
    with caplog.at_level(logging.WARNING):
        show(settings, tokenizers["phi3"], 2, as_json=True)
    out = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["id"] for line in out] == ["0", "1"]
    assert "rows.json, row 1: `conversations` is missing" in caplog.text


def test_many_skips_are_summed_up(
    make_settings: MakeSettings,
    tokenizers: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        show(make_settings([{"id": "bad"}] * 14, format="llava"), tokenizers["phi3"])
    assert len(caplog.messages) == 12
    assert caplog.messages[-2:] == ["Skipped 4 more rows.", "There is no row to train on."]


def test_without_colours_the_trained_part_is_in_brackets(
    make_settings: MakeSettings, tokenizers: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    show(make_settings(tiny.llava_rows(["0.png"])), tokenizers["phi3"], 1)
    head, *text = capsys.readouterr().out.splitlines()
    assert head.startswith("0  ") and head.endswith(" trained  0.png")
    assert text[0] == "<s><|user|> "
    assert text[1] == "<image>"
    body = "\n".join(text)
    assert "⟦ A red square number 0.<|end|>⟧" in body
    assert "⟦ Two blue circles.<|end|>⟧" in body
    assert body.count("⟦") == 2


def test_on_a_terminal_the_trained_part_is_green(
    make_settings: MakeSettings,
    tokenizers: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    show(make_settings(tiny.llava_rows(["0.png"])), tokenizers["phi3"], 1)
    out = capsys.readouterr().out
    assert "\x1b[32m A red square number 0.<|end|>\x1b[0m" in out
    assert "\x1b[1;36m<image>\x1b[0m" in out
    assert "⟦" not in out


@pytest.mark.parametrize("family", ["phi3", "llama3", "vicuna"])
def test_segments_lose_no_text(tokenizers: dict[str, Any], family: str) -> None:
    tokenizer = tokenizers[family]

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    first, trained, last = encode("What is 漢?"), encode("A cat é."), encode("USER: one")
    ids = [IMAGE_TOKEN_ID, *first, *trained, *last, IMAGE_TOKEN_ID, IMAGE_TOKEN_ID]
    labels = [IGNORE_ID] * (1 + len(first)) + trained + [IGNORE_ID] * (len(last) + 2)
    found = list(segments(ids, labels, tokenizer))
    assert [kind for kind, _ in found] == [IMAGE, MASKED, TRAINED, MASKED, IMAGE]
    texts = [text.strip() for _, text in found]
    assert texts == ["<image>", "What is 漢?", "A cat é.", "USER: one", "<image><image>"]


def test_show_and_audit_read_as_far_as_training_does(
    make_settings: MakeSettings, tokenizers: dict[str, Any]
) -> None:
    rows = [{"id": "bad"}, *tiny.llava_rows(["0.png", "1.png"])]
    settings = make_settings(rows, first_rows=1, max_skipped=1.0)
    shown = list(shown_rows(settings, tokenizers["phi3"]))
    assert [isinstance(row, Skip) for row in shown] == [True, False]
    assert len(build_dataset(settings, tokenizers["phi3"], None)) == 1
    report = audit(settings, tokenizers["phi3"])
    assert (report.seen, report.faults) == (2, 1)
