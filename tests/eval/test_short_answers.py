"""Short answers, normalised as each kit does, and TextVQA's score against all ten."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_tools.eval import short_answers as short

# text, then EvalAI (LLaVA, lmms-eval), VLMEvalKit 2024, VLMEvalKit 2026
TABLE = [
    ("Seven.", "7", "7", "7"),
    ("7.", "7", "7", "7."),
    ("2.75", "2.75", "2.75", "2.75"),
    ("12,500", "12500", "12500", "12500"),
    ("black,white", "blackwhite", "black white", "black white"),
    ("black, white", "black white", "black white", "black white"),
    ("The Old Mill", "old mill", "old mill", "old mill"),
    ("cant", "can't", "can't", "can't"),
    ("who's", "who 's", "who's", "who's"),
    ("$5.00", "$5.00", "$5.00", "$5.00"),
    ("1,000", "1000", "1000", "1000"),
    ("lets", "lets", "lets", "lets"),  # not in VQA's table
    ("couldnt've", "couldn't've", "couldn't've", "couldn't've"),
    ("somebody'd", "somebodyd", "somebodyd", "somebodyd"),  # the wrong way round there
    ("Im wed", "im wed", "im wed", "im wed"),  # its capitals are never met
    ("none of ten", "0 of 10", "0 of 10", "0 of 10"),
    ("x" + ". " * 33, "x .", "x .", "x"),  # 32 dots are dropped, where upstream passes a flag
    ("t-shirt", "t shirt", "t shirt", "t shirt"),
    ("stop !\n", "stop", "stop", "stop"),
    ("a.m", "am", "am", "am"),
    ("#1", "#1", "#1", "#1"),
    ("", "", "", ""),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: repr(row[0]))
def test_normalisers(row: tuple[str, str, str, str]) -> None:
    text, *wanted = row
    rules = short.normalise_evalai, short.normalise_vlmevalkit, short.normalise_vlmevalkit_2026
    assert [rule(text) for rule in rules] == wanted


def test_gqa() -> None:
    assert short.normalise_gqa("Yes...") == "yes" and short.normalise_gqa(" Yes") == " yes"
    assert short.normalise_lower(" Yes. ") == "yes."
    assert short.normalise_no_marks("Yes, it's (red)!") == "yes its red"


def plainly(said: str, answers: list[str]) -> float:
    """TextVQA's score as its paper words it: leave one annotator out, ten times."""
    scores = []
    for i in range(len(answers)):
        others = answers[:i] + answers[i + 1 :]
        scores.append(min(sum(other == said for other in others) / 3, 1))
    return sum(scores) / len(scores)


@given(st.lists(st.sampled_from("xyz"), min_size=10, max_size=10), st.sampled_from("xyzw"))
def test_score_leaves_each_annotator_out(answers: list[str], said: str) -> None:
    assert short.vqa_score(said, answers, str) == pytest.approx(plainly(said, answers), abs=1e-12)


def test_steps_of_the_score() -> None:
    steps = [short.vqa_score("x", ["x"] * n + ["y"] * (10 - n), str) for n in (0, 1, 2, 3, 4, 10)]
    assert steps == pytest.approx([0, 0.3, 0.6, 0.9, 1, 1])
