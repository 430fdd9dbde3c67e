"""What errors are made of."""

from __future__ import annotations

from llava_tools.errors import changes, first_line


def test_the_first_line_of_an_error() -> None:
    assert first_line(ValueError("\n  one\ntwo")) == "one"
    assert first_line(ValueError(" ")) == "ValueError"


def test_changes_are_told_by_name() -> None:
    before = {"a": [1, 2], "b": "x", "gone": 1}
    assert changes(before, {"a": (1, 2), "b": "x"}) == changes({"a": (1, 2)}, {"a": [1, 2]}) == ""
    told = "b was 'x' and is now 'y'; new was None and is now 3"
    assert changes(before, {"a": [1, 2], "b": "y", "new": 3}) == told
