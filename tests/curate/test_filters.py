"""Phrases and repeated rows."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest

from llava_tools.curate import duplicates
from llava_tools.curate.duplicates import Repeats
from llava_tools.curate.phrases import REFUSALS, Phrases, read_phrases
from llava_tools.curate.rows import Example
from llava_tools.data.sample import Turn
from llava_tools.errors import UserError


def test_phrases_are_found_in_any_case_and_counted() -> None:
    phrases = Phrases(["as an AI", "sorry", "niño"])
    texts = ["As an ai, I am sorry.", "SORRY!", "fine", "El NIÑO duerme", "Sorry, as an AI"]
    assert [phrases.found(text) for text in texts] == [True, True, False, True, True]
    assert phrases.hits == {"as an AI": 2, "sorry": 3, "niño": 1}


def test_whole_words_and_signs() -> None:
    assert Phrases(["art"]).found("a start") and not Phrases(["art"], words=True).found("a start")
    assert Phrases(["art"], words=True).found("Art.")
    assert Phrases(["c++ (", "I can't"], words=True).found("in C++ ( it")
    assert Phrases(["I can't"]).found("I can\u2019t do that")
    assert not Phrases(["a.c"]).found("abc")


def test_our_own_list_leaves_good_answers_alone() -> None:
    refusals = Phrases(read_phrases("refusals"), words=True)
    assert refusals.found("As a language model, I do not eat.")
    for answer in (
        "I cannot believe it!",
        "I am an engineer.",
        "She has an aide.",
        "I'm an actor.",
    ):
        assert not refusals.found(answer), answer
    assert len(set(REFUSALS)) == len(REFUSALS) and all(p == p.casefold() for p in REFUSALS)


def test_phrase_files(tmp_path: Path) -> None:
    path = tmp_path / "phrases.txt"
    path.write_text("\ufeff# ours\n  as an AI  \n\nsorry\nsorry\n", "utf-8")
    assert read_phrases(str(path)) == ("as an AI", "sorry")
    path.write_text("# nothing\n")
    with pytest.raises(UserError, match="holds no phrase"):
        read_phrases(str(path))
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match="cannot be read: it is not in UTF-8"):
        read_phrases(str(path))
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_phrases(str(tmp_path / "none"))


def example(question: str, answer: str = "yes", *images: str) -> Example:
    return Example((Turn("user", question), Turn("assistant", answer)), images)


def repeated(kind: str, rows: list[Example]) -> set[int]:
    found = Repeats(kind)
    for place, row in enumerate(rows):
        found.add(place, row)
    return found.places()


def test_the_same_row_again() -> None:
    rows = [
        example("a"),
        example("b"),
        example("a"),
        example("a", "no"),
        example("a", "yes", "x.png"),
    ]
    assert repeated("exact", rows) == {2}
    assert repeated("exact", []) == repeated("near", []) == set()


def run_sets(texts: list[str]) -> list[set[tuple[str, ...]]]:
    """The runs of words of each text, with the answer `yes`, taken slowly."""
    rows = [[*re.findall(r"\w+", text.lower()), "yes"] for text in texts]
    return [{tuple(row[i : i + 3]) for i in range(max(1, len(row) - 2))} for row in rows]


def slowly(texts: list[str]) -> set[int]:
    """Compare every row with every one that was kept: shared / all of both >= 4 / 5, in whole
    numbers."""
    sets = run_sets(texts)
    kept: list[int] = []
    for i, row in enumerate(sets):
        if not any(5 * len(row & sets[k]) >= 4 * len(row | sets[k]) for k in kept):
            kept.append(i)
    return set(range(len(texts))) - set(kept)


def edited(rng: random.Random, words: list[str], length: int, changes: int) -> list[str]:
    """150 texts, each a new one or an earlier one with some words changed, lost or added."""
    texts: list[list[str]] = []
    for _ in range(150):
        old = texts and rng.random() < 0.7
        text = list(rng.choice(texts)) if old else rng.choices(words, k=rng.randrange(3, length))
        for _ in range(rng.randrange(changes)):
            at = rng.randrange(len(text))
            text[at : at + rng.randrange(2)] = rng.choices(words, k=rng.randrange(2))
            text = text or ["w0"]
        texts.append(text)
    return [" ".join(text) for text in texts]


# How many different words, words of a text, changes: few words make runs that many rows share.
EDITS = [(300, 40, 6), (3, 30, 8), (6, 60, 4), (40, 12, 3), (2, 9, 4)]


@pytest.mark.parametrize(("words", "length", "changes"), EDITS)
def test_nearly_the_same_rows_are_all_found(words: int, length: int, changes: int) -> None:
    rng = random.Random(0)
    for _ in range(4):
        texts = edited(rng, [f"w{i}" for i in range(words)], length, changes)
        wanted = slowly(texts)
        assert repeated("near", [example(text) for text in texts]) == wanted
        assert 10 < len(wanted) < 149


def test_what_near_means() -> None:
    text = "List the planets of our solar system, please, in the order of size"
    rows = [
        example(text),
        example(text.upper() + "!!"),
        example(text, "yes", "a.png"),
        example("请列出太阳系的行星,并按大小排序。", "好的"),
        example("请列出太阳系的行星,并按大小排序!", "好的"),
        example("讲一个关于猫的故事给孩子们听吧", "好的"),
        example("?", "!"),
        example("?", "!"),
        example("?", "…"),
    ]
    assert repeated("near", rows) == {1, 4, 7}


def pairs_compared(texts: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[set[int], int]:
    compared, any_alike = [0], duplicates._any_alike

    def counting(size: int, marked: Any, others: list[Any]) -> bool:
        compared[0] += len(others)
        return any_alike(size, marked, others)

    monkeypatch.setattr(duplicates, "_any_alike", counting)
    return repeated("near", [example(text) for text in texts]), compared[0]


@pytest.mark.parametrize("own", [4, 8, 30])
def test_a_phrase_that_all_rows_share_makes_no_pair_a_candidate(
    own: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of a thousand such rows, a hidden pair is found all the same."""
    rng = random.Random(0)
    phrase = " ".join(f"p{i}" for i in range(22))
    texts = [
        f"{phrase} {' '.join(f'w{rng.randrange(90_000)}' for _ in range(own))}" for _ in range(1000)
    ]
    found, compared = pairs_compared([*texts, texts[997].upper()], monkeypatch)
    assert found == {1000} and compared < 20
