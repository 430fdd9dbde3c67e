"""Which option an answer chooses, by each protocol: a table of made-up answers."""

from __future__ import annotations

import pytest

from llava_tools.eval.choices import CHOOSERS

OPTIONS = {"A": "cat", "B": "dog", "C": "bird"}

# answer, by vlmevalkit, by xtuner
TABLE = [
    ("C", "C", "C"),
    (" (C). ", "C", "C"),
    ("**B**", "B", "B"),
    ("{A}", "A", "A"),
    ("#B!", "B", "B"),
    ("B;", "B", "B"),
    ("My choice: B", "B", "B"),
    ("Answer: B", "B", "A"),
    ("Both: B", "B", "B"),
    ("Best is C", "C", "B"),
    ("A or B", None, "A"),
    ("A. cat, not B", "A", "A"),  # two letters, but one option's text
    ("AB", None, "AB"),
    ("BB", None, "BB"),
    ("B B B", "B", "B"),
    ("b", None, None),
    ("D", None, "D"),
    ("E", None, None),
    ("dog", "B", None),
    ("It is a DOG.", "B", "D"),
    ("a dog chases a cat", None, None),
    ("dogbird", None, None),
    ("a small dogfish", "B", None),
    ("A dog", "A", "A"),  # the article counts as the letter
    ("B、狗", None, "B"),
    ("选C", None, "C"),
    ("", None, None),
    ("Z", "Z", None),
    ("Z or B", "B", "B"),
    ("nothing of the kind", None, None),
    ("Cannot determine the answer. B", "Z", "C"),
    ("I can't process this file.", "Z", None),
    ("Failed to obtain answer via API. B", None, "A"),
    ("B\n\nExplanation: the animal barks", "B", "B"),
]


@pytest.mark.parametrize(("text", "vlmevalkit", "xtuner"), TABLE)
def test_choice_by_protocol(text: str, vlmevalkit: str | None, xtuner: str | None) -> None:
    assert CHOOSERS["vlmevalkit"](text, OPTIONS) == vlmevalkit
    assert CHOOSERS["xtuner"](text, OPTIONS) == xtuner


def test_only_options_that_exist_can_be_chosen() -> None:
    seven = {letter: f"option text {letter.lower() * 3}" for letter in "ABCDEFG"}
    assert CHOOSERS["vlmevalkit"]("G.", seven) == "G"
    assert CHOOSERS["vlmevalkit"]("C.", {"A": "left", "B": "right"}) is None


def test_numbers_as_options() -> None:
    options = {"A": "1", "B": "12"}
    assert CHOOSERS["vlmevalkit"]("There are 1", options) == "A"
    assert CHOOSERS["vlmevalkit"]("There are 12", options) is None  # both texts occur
