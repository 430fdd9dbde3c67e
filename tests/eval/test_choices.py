"""Which option an answer chooses, by each protocol: a table of made-up answers."""

from __future__ import annotations

import pytest

from llava_tools.eval.choices import (
    CHOOSERS,
    choose_llava_scienceqa,
    choose_lmms_mmmu,
    choose_mmmu,
)

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


@pytest.mark.parametrize("rule", ["vlmevalkit", "vlmevalkit-2026"])
def test_vlmevalkits_marks_and_refusals(rule: str) -> None:
    choose = CHOOSERS[rule]
    for mark in ".()[],:;!*#{}":
        assert choose(f"see{mark}B{mark}", OPTIONS) == "B", mark
    for mark in "。（）、，：-/\"'?":
        assert choose(f"see{mark}B{mark}", OPTIONS) is None, mark
    for refusal in (
        "Sorry, I can't help with images of people yet.",
        "I can't process this file.",
        "I'm sorry, but without the image provided",
        "Cannot determine the answer",
    ):
        assert choose(f"{refusal} B", OPTIONS) == "Z"


def test_vlmevalkit_of_2026_reads_no_texts_in_long_answers() -> None:
    choose = CHOOSERS["vlmevalkit-2026"]
    assert choose("it is the dog!", OPTIONS) == "B"  # 14 characters; the options have 10
    assert choose("it is surely the dog!", OPTIONS) is None
    assert CHOOSERS["vlmevalkit"]("it is surely the dog!", OPTIONS) == "B"


def test_lmms_evals_letters_with_marks_around() -> None:
    choose = CHOOSERS["lmms-eval"]
    for form in "B (B) (B). B. B, B: B) B). :B :B, :B. :B) :B).".split():
        assert choose(f"see {form}", OPTIONS) == "B", form
    for form in "[B] *B* B; (B, .B b".split():
        assert choose(f"see {form}", OPTIONS) is None, form
    assert choose("not (B) but C.", OPTIONS) == "C"  # the dot is looked for before brackets
    assert choose("A dog it is", OPTIONS) == "B"  # an A among more than three words is an article
    assert choose("A dog is", OPTIONS) == "A"
    assert choose("Failed to obtain answer via API. B", OPTIONS) is None


def test_mmmus_texts_count_in_more_than_five_words_and_the_last_one_wins() -> None:
    options = {"A": "red", "B": "blue"}
    for choose in (choose_mmmu, choose_lmms_mmmu):
        assert choose("it is first red, then blue", options) == "B"
        assert choose("first red and then blue", options) is None
        assert choose("(A) may be but it is (B) or (A)", options) == "A"
    assert choose_mmmu("A is wrong so B is right", options) == "B"


def test_two_answers_are_none_in_llavas_scienceqa() -> None:
    assert choose_llava_scienceqa("So. The answer is B. I say.", {}) == "B"
    assert choose_llava_scienceqa("The answer is B. The answer is C.", {}) is None
    assert choose_llava_scienceqa("A. ", {}) == "A" and choose_llava_scienceqa("F", {}) is None


def test_only_options_that_exist_can_be_chosen() -> None:
    seven = {letter: f"option text {letter.lower() * 3}" for letter in "ABCDEFG"}
    assert CHOOSERS["vlmevalkit"]("G.", seven) == "G"
    assert CHOOSERS["vlmevalkit"]("C.", {"A": "left", "B": "right"}) is None


def test_numbers_as_options() -> None:
    options = {"A": "1", "B": "12"}
    assert CHOOSERS["vlmevalkit"]("There are 1", options) == "A"
    assert CHOOSERS["vlmevalkit"]("There are 12", options) is None  # both texts occur
