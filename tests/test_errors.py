"""What errors are made of."""

from __future__ import annotations

from llava_tools.errors import first_line


def test_the_first_line_of_an_error() -> None:
    assert first_line(ValueError("\n  one\ntwo")) == "one"
    assert first_line(ValueError(" ")) == "ValueError"
