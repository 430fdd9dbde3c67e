"""Progress appears for long work only: a bar on a terminal, lines elsewhere, never on stdout."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from llava_tools.data import progress
from llava_tools.data.packed import PackedRows
from llava_tools.data.prepare import Block


def blocks() -> Iterator[Block]:
    for _ in range(4):
        yield Block(PackedRows.pack([], np.uint16), [], Counter(), 10, 25)


def ticking(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    now = iter(range(10_000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now) * seconds)


def test_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ticking(monkeypatch, 6.0)
    with caplog.at_level(logging.INFO):
        assert len(list(progress.watched(blocks(), "x.json", 100))) == 4
    # At 12 s: 20 of 40 rows, half of the bytes; the other half takes as long again.
    assert caplog.messages == [
        "x.json: 20 rows, 2 a second, ETA 12 s",
        "x.json: 40 rows, 2 a second, ETA 0 s",
    ]


def test_short_work_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        list(progress.watched(blocks(), "x.json", 100))
    assert not caplog.messages


@pytest.mark.parametrize(("seconds", "shown"), [(1.0, True), (0.01, False)])
def test_a_bar_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    seconds: float,
    shown: bool,
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    ticking(monkeypatch, seconds)
    assert len(list(progress.watched(blocks(), "x.json", 100))) == 4
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("x.json: " in captured.err) == shown
