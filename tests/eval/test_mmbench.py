"""MMBench prompts, letter for letter, and rows that cannot be asked."""

from __future__ import annotations

from typing import Any

import pytest

from llava_tools.errors import UserError
from llava_tools.eval.benchmark import BENCHMARKS, check_protocol, get_benchmark
from llava_tools.eval.mmbench import MMBENCH, question
from llava_tools.eval.pictures import Picture
from llava_tools.eval.tsv import Row

ENGLISH = "Answer with the option's letter from the given choices directly."


def row(pictures: int = 1, **cells: Any) -> Row:
    known = tuple(Picture(str(i), 0, 0, "") for i in range(pictures))
    return Row(7, {"question": "What?", "A": "one", "B": "two", **cells}, "'t.tsv', row 1", known)


PROMPTS = [
    (row(), f"<image>\nWhat?\nA. one\nB. two\n{ENGLISH}"),
    (row(hint="Look."), f"<image>\nLook.\nWhat?\nA. one\nB. two\n{ENGLISH}"),
    (row(C="3", E="5"), f"<image>\nWhat?\nA. one\nB. two\nC. 3\nE. 5\n{ENGLISH}"),
    (row(hint="两个\n行"), "<image>\n两个\n行\nWhat?\nA. one\nB. two\n请直接回答选项字母。"),
    (row(B="二"), "<image>\nWhat?\nA. one\nB. 二\n请直接回答选项字母。"),
    (row(B="かな、"), f"<image>\nWhat?\nA. one\nB. かな、\n{ENGLISH}"),
    (row(2), f"<image>\n<image>\nWhat?\nA. one\nB. two\n{ENGLISH}"),
    (row(question="What is <image>?"), f"<image>\nWhat is ?\nA. one\nB. two\n{ENGLISH}"),
    (row(AA="no option", a="no", hint=" spaces "),
     f"<image>\n spaces \nWhat?\nA. one\nB. two\n{ENGLISH}"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "prompt"), PROMPTS)
def test_prompt(given: Row, prompt: str) -> None:
    assert question(given).prompt == prompt


def test_fields() -> None:
    cells = {"answer": " B ", "category": "ocr", "l2-category": "coarse_perception", "split": "dev"}
    found = question(row(**cells))
    assert (found.index, found.answer, found.category) == (7, "B", "ocr")
    assert (found.l2_category, found.split) == ("coarse_perception", "dev")
    assert found.options == {"A": "one", "B": "two"}
    assert question(row()).answer is None


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"answer": "C"}, "row 1: the answer 'C' is none of its options A, B"),
        ({"answer": "a"}, "the answer 'a' is none"),
    ],
)
def test_bad_answers_are_named(cells: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        question(row(**cells))


def test_rows_without_question_or_options_are_named() -> None:
    with pytest.raises(UserError, match="row 1 has no question"):
        question(Row(1, {"A": "one"}, "'t.tsv', row 1"))
    with pytest.raises(UserError, match="row 1 has no options"):
        question(Row(1, {"question": "What?"}, "'t.tsv', row 1"))


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_every_benchmark_of_the_table_exists(name: str) -> None:
    assert get_benchmark(name).name == name
    assert get_benchmark(name.upper()) is get_benchmark(name)


def test_wrong_names_get_the_nearest_one() -> None:
    with pytest.raises(UserError, match="(?s)Unknown benchmark 'mmbnech'.*'mmbench'"):
        get_benchmark("mmbnech")
    with pytest.raises(UserError, match="(?s)not scored by a protocol 'vlmeval'.*'vlmevalkit'"):
        check_protocol(MMBENCH, "vlmeval")
