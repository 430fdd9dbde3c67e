"""Circular and vanilla accuracy, against cases by hand and a slow second implementation."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_tools.errors import UserError
from llava_tools.eval.benchmark import Question
from llava_tools.eval.scores import COPY_STEP, circular_scores
from tests.eval import tables

OPTIONS = ("red", "green", "blue", "grey")
REPLIES = ["A", "B", "C", "D", "none", "A B", "red", "(B)", None]


def reference(rows: list[dict[str, Any]], replies: dict[int, str | None]) -> dict[str, Any]:
    """Score in the words of the rule, question after question, with nothing shared."""
    circular, vanilla, undecided = {}, {}, 0
    for row in rows:
        base = row["index"]
        if base >= 1_000_000:
            continue
        right = True
        for copy in rows:
            if copy["index"] % 1_000_000 == base:
                letter = decide(replies[copy["index"]], copy)
                right = right and letter == copy["answer"]
        circular[base] = right
        vanilla[base] = decide(replies[base], row) == row["answer"]
    for row in rows:
        reply = replies[row["index"]]
        undecided += reply is not None and decide(reply, row) is None
    categories = {row["index"]: row["category"] for row in rows if row["index"] in circular}
    return {
        "circular": sum(circular.values()) / len(circular),
        "vanilla": sum(vanilla.values()) / len(vanilla),
        "undecided": undecided,
        "category": {
            name: sum(circular[i] for i in circular if categories[i] == name)
            / sum(categories[i] == name for i in circular)
            for name in set(categories.values())
        },
    }


def decide(reply: str | None, row: dict[str, Any]) -> str | None:
    """Return the letter of one of REPLIES, the colours being the options."""
    letters = {k: row[k] for k in "ABCD" if k in row}
    if reply in (None, "none", "A B"):
        return None
    if reply == "red":
        return next((k for k, v in letters.items() if v == "red"), None)
    letter = reply.strip("()")
    return letter if letter in letters else None


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[dict[str, Any]], dict[int, str | None]]:
    rows = []
    for i in draw(st.lists(st.integers(0, 999_999), min_size=1, max_size=12, unique=True)):
        options = OPTIONS[: draw(st.integers(2, 4))]
        right = draw(st.integers(0, len(options) - 1))
        cells = {"category": draw(st.sampled_from("xyz")), "split": draw(st.sampled_from("ab"))}
        group = tables.copies(i, options, right, image="none", **cells)
        rows += group[: draw(st.integers(1, len(group)))]
        for copy in group[1:]:  # a copy's own category does not count
            copy["category"] = draw(st.sampled_from("xyz"))
    likely = st.sampled_from(["right"] * 8 + REPLIES)
    replies = {}
    for row in rows:
        reply = draw(likely)
        replies[row["index"]] = row["answer"] if reply == "right" else reply
    return draw(st.permutations(rows)), replies


@settings(max_examples=200, deadline=None)
@given(cases())
def test_equals_the_slow_reference(
    case: tuple[list[dict[str, Any]], dict[int, str | None]],
) -> None:
    rows, replies = case
    questions = tables.as_questions(rows)
    answers = {index: reply for index, reply in replies.items() if reply is not None}
    scores = circular_scores(questions, answers, "vlmevalkit")
    wanted = reference(rows, replies)
    assert scores.all.overall["circular"] == pytest.approx(wanted["circular"])
    assert scores.all.overall["vanilla"] == pytest.approx(wanted["vanilla"])
    found = {k: v["circular"] for k, v in scores.all.groups["category"].items()}
    assert found == pytest.approx(wanted["category"])
    assert scores.counts["undecided"] == wanted["undecided"]
    assert scores.counts["missing"] == len(rows) - len(answers)
    for part in (scores.all, *scores.splits.values()):  # groups add up to the whole
        total = sum(g["questions"] * g["circular"] for g in part.groups["category"].values())
        assert total / part.overall["questions"] == pytest.approx(part.overall["circular"])


def five_rows() -> tuple[list[Question], dict[Any, str]]:
    """Question 1 with 2 copies and question 2 with 3: one copy of the second is wrong."""
    rows = tables.copies(1, OPTIONS[:2], image="x") + tables.copies(2, OPTIONS[:3], image="x")
    questions = tables.as_questions(rows)
    answers = {q.index: str(q.answer) for q in questions}
    answers[2 + 2 * COPY_STEP] = "A" if answers[2 + 2 * COPY_STEP] != "A" else "B"
    return questions, answers


def test_five_rows_by_hand() -> None:
    questions, answers = five_rows()
    scores = circular_scores(questions, answers, "vlmevalkit")
    assert scores.all.overall == {
        "circular": 0.5,
        "vanilla": 1.0,
        "vanilla_all": 0.8,
        "questions": 2,
    }
    assert scores.counts["undecided"] == scores.counts["missing"] == 0


@pytest.mark.parametrize("reply", ["who knows", None])
def test_an_undecided_or_missing_copy_loses_the_question(reply: str | None) -> None:
    questions, answers = five_rows()
    del answers[2 + 2 * COPY_STEP], answers[1 + COPY_STEP]
    if reply is not None:
        answers |= {2 + 2 * COPY_STEP: reply, 1 + COPY_STEP: reply}
    scores = circular_scores(questions, answers, "vlmevalkit")
    assert scores.all.overall["circular"] == 0.0
    assert scores.all.overall["vanilla"] == 1.0
    assert scores.counts["undecided"] == (2 if reply else 0)
    assert scores.counts["missing"] == (0 if reply else 2)
    assert scores.verdicts[1 + COPY_STEP].choice is None


def test_the_protocol_decides() -> None:
    questions, answers = five_rows()
    spoken = {index: f"Answer: {letter}" for index, letter in answers.items()}
    assert circular_scores(questions, spoken, "vlmevalkit").all.overall["circular"] == 0.5
    letters = [q.answer for q in questions]
    xtuner = circular_scores(questions, spoken, "xtuner").all.overall
    assert xtuner["vanilla_all"] == letters.count("A") / 5  # the A of "Answer" is taken


def test_groups_splits_and_their_short_names() -> None:
    l2 = {"l2-category": "finegrained_perception (cross-instance)", "category": "ocr"}
    rows = tables.copies(1, OPTIONS[:2], image="x", **l2, split="dev")
    rows += tables.copies(2, OPTIONS[:2], image="x", **{**l2, "split": "test"})
    rows += tables.copies(3, OPTIONS[:2], image="x", **{"l2-category": "new", "split": "test"})
    answers = {row["index"]: row["answer"] for row in rows if row["index"] % COPY_STEP != 2}
    scores = circular_scores(tables.as_questions(rows), answers, "vlmevalkit")
    assert {k: v["circular"] for k, v in scores.all.groups["l2_category"].items()} == {
        "FP-C": 0.5,
        "new": 1.0,
    }
    assert list(scores.all.groups["category"]) == ["ocr"]
    assert {k: v.overall["circular"] for k, v in scores.splits.items()} == {"dev": 1.0, "test": 0.5}
    assert scores.splits["test"].groups["l2_category"]["FP-C"]["questions"] == 1


def test_fewer_copies_than_options_are_counted() -> None:
    rows = tables.copies(1, OPTIONS, image="x")[:2] + tables.copies(2, OPTIONS, image="x")
    scores = circular_scores(tables.as_questions(rows), {}, "vlmevalkit")
    assert scores.counts["questions_without_all_copies"] == 1


def test_a_column_may_say_whose_copy_a_row_is() -> None:
    """VLMEvalKit's g_index; copies have any number then, even a smaller one than their question."""
    rows = tables.copies(7, OPTIONS[:2], image="x") + tables.copies(9, OPTIONS[:2], image="x")
    for row, index in zip(rows, (7, 3, 9, 2_000_009), strict=True):
        row |= {"g_index": f"{row['index'] % COPY_STEP}.0", "index": index}
    answers = {row["index"]: row["answer"] for row in rows} | {3: "none"}
    scores = circular_scores(tables.as_questions(rows), answers, "vlmevalkit-2026")
    assert scores.all.overall == {
        "circular": 0.5, "vanilla": 1.0, "vanilla_all": 0.75, "questions": 2,
    }  # fmt: skip
    rows[1]["g_index"] = "seven"
    with pytest.raises(UserError, match="row 2: g_index is 'seven', which is no whole number"):
        circular_scores(tables.as_questions(rows), answers, "vlmevalkit-2026")
    rows[1]["g_index"] = "8"
    with pytest.raises(UserError, match="row 2 is a copy of question 8, which is in no row"):
        circular_scores(tables.as_questions(rows), answers, "vlmevalkit-2026")


def test_copies_without_their_question_and_odd_indices_are_named() -> None:
    rows = tables.copies(1, OPTIONS, image="x")[1:]
    with pytest.raises(UserError, match="row 1 is a copy of question 1, which is in no row"):
        circular_scores(tables.as_questions(rows), {}, "vlmevalkit")
    rows = [{**tables.copies(1, OPTIONS, image="x")[0], "index": "x_1"}]
    with pytest.raises(UserError, match="row 1: the index is no whole number"):
        circular_scores(tables.as_questions(rows), {}, "vlmevalkit")


def test_fourteen_thousand_rows_take_less_than_two_seconds() -> None:
    rows = [row for i in range(3558) for row in tables.copies(i, OPTIONS, image="x", category="c")]
    questions = tables.as_questions(rows)
    assert len(questions) == 14_232
    pick = random.Random(0)
    answers = {q.index: pick.choice(["The answer is B.", "red", "C", "??"]) for q in questions}
    start = time.process_time()
    circular_scores(questions, answers, "vlmevalkit")
    assert time.process_time() - start < 2.0
