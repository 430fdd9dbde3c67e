"""ROUGE-L of the novelty rule against a table of dynamic programming, float for float."""

from __future__ import annotations

import random
import re

import pytest

from llava_tools.curate.instruct.rouge import BLOCK, Known, _Block, ascii_words, words


def lcs(a: list[str], b: list[str]) -> int:
    """Longest common subsequence, by the textbook."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b):
            before, row[j + 1] = row[j + 1], before + 1 if x == y else max(row[j + 1], row[j])
    return row[-1]


def f_measure(known: list[str], text: list[str]) -> float:
    """F as rouge_score rounds it."""
    common = lcs(known, text)
    if not common:
        return 0.0
    p, r = common / len(known), common / len(text)
    return 2 * p * r / (p + r)


def sentences(count: int, rng: random.Random, vocabulary: int = 12) -> list[str]:
    lengths = [rng.choice([0, 1, 2, 5, 9, 30, 160]) for _ in range(count)]
    return [" ".join(f"w{rng.randrange(vocabulary)}" for _ in range(n)) for n in lengths]


@pytest.mark.parametrize("count", [1, BLOCK, 2 * BLOCK + 3])
def test_equal_to_dynamic_programming(count: int) -> None:
    rng = random.Random(count)
    known, texts = Known(), sentences(count, rng)
    for text in texts:
        known.add(text)
    for text in sentences(25, rng) + texts[:3] + ["none of these"]:
        assert known.scores(text).tolist() == [f_measure(k.split(), text.split()) for k in texts]


def test_each_added_text_counts_from_then_on() -> None:
    known = Known()
    assert known.scores("a b").shape == (0,)
    for i, text in enumerate(sentences(BLOCK + 2, random.Random(1))):
        known.add(text)
        scores = known.scores("w1 w2 w3")
        assert len(scores) == i + 1
        assert scores[-1] == f_measure(text.split(), ["w1", "w2", "w3"])


def test_a_block_of_texts_is_compared_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that does not depend on the speed of a machine: one run of bits for 128 texts."""
    known = Known()
    for i in range(3 * BLOCK):
        known.add(f"say {i} words of it")
    runs, untouched = [], _Block.untouched
    monkeypatch.setattr(
        _Block, "untouched", lambda block, said: runs.append(said) or untouched(block, said)
    )
    assert known.scores("say nothing of it").argmax() == 0
    assert runs == [["say", "nothing", "of", "it"]] * 3


def test_the_boundary_is_decided_by_how_f_is_written() -> None:
    """Lengths for which 2pr / (p + r) and 2 lcs / (a + b) fall on different sides of 0.7."""
    found = 0
    for a in range(1, 80):
        for b in range(1, 80):
            common = next((n for n in range(1, min(a, b) + 1) if 20 * n == 7 * (a + b)), None)
            if common is None:
                continue
            p, r = common / a, common / b
            if (2 * p * r / (p + r) > 0.7) == (2 * common / (a + b) > 0.7):
                continue
            found += 1
            shared = [f"s{i}" for i in range(common)]
            known = Known()
            known.add(" ".join(shared + [f"k{i}" for i in range(a - common)]))
            score = known.scores(" ".join(shared + [f"t{i}" for i in range(b - common)]))[0]
            assert (score > 0.7) == (2 * p * r / (p + r) > 0.7)
    assert found > 10


def test_words_of_any_script() -> None:
    assert words("Don't re-use foo_bar 42x!") == ["don", "t", "re", "use", "foo", "bar", "42x"]
    assert words("Café Ärger naïve") == ["café", "ärger", "naïve"]
    assert words("我喜欢 tea 한국") == ["我", "喜", "欢", "tea", "한", "국"]
    assert words("हिंदी में") == ["हिंदी", "में"]  # vowel signs are part of the word
    assert words("Привет, мир") == ["привет", "мир"] and words("مرحبا بك") == ["مرحبا", "بك"]
    assert ascii_words("我喜欢 Café 9") == ["caf", "9"]


def test_english_has_the_tokens_of_rouge_score() -> None:
    rng = random.Random(3)
    for _ in range(300):
        text = "".join(chr(rng.randrange(32, 127)) for _ in range(60))
        theirs = re.sub(r"[^a-z0-9]+", " ", text.lower()).split()
        assert words(text) == ascii_words(text) == theirs


def test_non_latin_repetition_is_seen_only_outside_compat() -> None:
    text = "请写一首关于秋天的短诗"
    for tokenise, score in ((words, 1.0), (ascii_words, 0.0)):
        known = Known(tokenise)
        known.add(text)
        assert known.scores(text).tolist() == [score]
