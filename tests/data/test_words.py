"""Words encoded one by one give the library's own ids and places, for every kind of tokenizer."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from llava_tools.data import words as words_room
from llava_tools.data.apart import PATTERNS, words_are_apart
from llava_tools.data.escaping import Escaping
from llava_tools.data.spans import Spans
from llava_tools.data.words import Words
from tests.data.vocabularies import MAKERS, vocabulary

# What stands around spaces: white space of all kinds, marks, bytes, parts of control tokens.
BITS = [*" \n\t\r\x1c\x85\xa0\u3000▁>.,'0x9aé\u0301中😀\U000f0000"]
BITS += ["  ", " \n", " <|end|>", "<|user|>\n", "<s> ", "[INST] ", "'s "]
BITS += ["hello", "Hi there", "</s>", "<mask>", "end", "12345", "don't"]
TEXTS = st.lists(st.sampled_from(BITS) | st.characters(codec="utf-8"), max_size=25).map("".join)
LIGHT = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
APART = [kind for kind in MAKERS if kind != "unigram"]


def changed(kind: str, change: Callable[[Any], None] = lambda state: None) -> Tokenizer:
    """Return a toy tokenizer whose file was changed."""
    state = json.loads(vocabulary(kind).backend_tokenizer.to_str())
    change(state)
    return Tokenizer.from_str(json.dumps(state))


def greedy(kind: str) -> Tokenizer:
    """Add tokens that swallow white space, and one that is normalised."""
    made = changed(kind)
    made.add_tokens([AddedToken("<|user|>", rstrip=True), AddedToken("<mask>", lstrip=True)])
    made.add_tokens([AddedToken("end", normalized=True)])
    return made


def nfc(kind: str) -> Tokenizer:
    made = changed(kind)
    made.normalizer = normalizers.NFC()
    return made


def gemma() -> Tokenizer:
    made = changed("legacy")
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.add_tokens([AddedToken(space, normalized=False) for space in ("  ", "\n", "\n\n")])
    return made


def bytes_alone() -> Tokenizer:
    """Llama's as transformers makes it: unknown characters are bytes, and there is no other way."""
    made = changed("first")
    made.model.unk_token = None
    return made


def falcon() -> Tokenizer:
    """Cut at signs and digits. Places are without spaces: tokens of spaces are nowhere."""
    made = changed("bytes")
    made.post_processor = processors.ByteLevel(trim_offsets=True)
    cuts = [pre_tokenizers.Punctuation("contiguous"), pre_tokenizers.ByteLevel(True)]
    digits = [pre_tokenizers.Digits(False), pre_tokenizers.Split(Regex("[0-9][0-9]"), "isolated")]
    made.pre_tokenizer = pre_tokenizers.Sequence([*cuts, *digits])
    return made


def split_by(pattern: str) -> Tokenizer:
    made = changed("bytes")
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    cut = pre_tokenizers.Split(Regex(pattern), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([cut, plain])
    return made


KINDS: dict[str, Callable[[], Tokenizer]] = {
    **{kind: lambda kind=kind: changed(kind) for kind in APART},  # type: ignore[misc]
    **{f"{kind} greedy": lambda kind=kind: greedy(kind) for kind in APART},  # type: ignore[misc]
    **{name: lambda rule=rule: split_by(rule) for name, rule in PATTERNS.items()},  # type: ignore[misc]
    "nfc": lambda: nfc("llama3"),
    "gemma": gemma,
    "bytes alone": bytes_alone,
    "falcon": falcon,
}
MADE: dict[str, tuple[Tokenizer, Words]] = {}


def made(kind: str) -> tuple[Tokenizer, Words]:
    """Return a tokenizer without trimming, and its words, which remember from text to text."""
    if kind not in MADE:
        tokenizer = KINDS[kind]()
        assert words_are_apart(tokenizer)
        MADE[kind] = tokenizer, Words(tokenizer)
    return MADE[kind]


@pytest.mark.parametrize("kind", KINDS)
@LIGHT
@given(text=TEXTS)
@example(text="a\n\n  b </s>  c  ")
@example(text=" <|user|> \n hello  <mask> end x\u0301 \u0301")
def test_ids_and_places_are_the_librarys(kind: str, text: str) -> None:
    tokenizer, words = made(kind)
    asked = tokenizer.encode(text, add_special_tokens=False)
    assert words.encode(text) == asked.ids
    assert words.encode(text) == asked.ids  # from memory
    plain = Tokenizer.from_str(tokenizer.to_str()) if tokenizer.post_processor else tokenizer
    plain.post_processor = None
    offsets = plain.encode(text, add_special_tokens=False).offsets
    expected = Spans(asked.ids, [a for a, _ in offsets], [b for _, b in offsets])
    spans = words.spans(text)
    assert spans.ids == asked.ids
    for place in range(len(text) + 1):
        assert (place, *spans.at(place)) == (place, *expected.at(place))
        assert (place, spans.before(place)) == (place, expected.before(place))


@pytest.mark.parametrize("kind", ["legacy", "llama3 greedy"])
def test_a_full_memory_is_emptied(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words_room, "KEPT", 20)
    monkeypatch.setattr(words_room, "PLACES_KEPT", 20)
    tokenizer = KINDS[kind]()
    words = Words(tokenizer)
    for number in range(60):
        text = f"w{number} one two w{number} " + " ".join(f"{number % 9}{k}" for k in range(9))
        assert words.encode(text) == tokenizer.encode(text, add_special_tokens=False).ids
        spans = words.spans(text)
        assert 0 < spans.before(1) < spans.at(len(f"w{number} one two w")).token < len(spans.ids)
        held = (words._later, words._first, words._first_places, words._later_places)
        assert all(len(memory) <= 20 for memory in held)


def test_long_words_are_not_kept() -> None:
    words = Words(KINDS["legacy"]())
    words.encode("中" * 400 + " " + "文" * 400)
    assert not words._later and not words._first


def crossing(state: Any) -> None:
    """Add a piece of two words."""
    state["model"]["vocab"]["a▁"] = len(state["model"]["vocab"]) + 900
    state["model"]["merges"].append(["a", "▁"])


def dropout(state: Any) -> None:
    state["model"]["dropout"] = 0.5


def alone(state: Any) -> None:
    state["added_tokens"][0]["single_word"] = True


def spaced(state: Any) -> None:
    state["added_tokens"][-1]["content"] = "two words"


def lower(state: Any) -> None:
    state["normalizer"] = {"type": "Lowercase"}


def added(state: Any, content: str, **flags: bool) -> None:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    number = max(token["id"] for token in state["added_tokens"]) + 1
    state["added_tokens"].append({"id": number, "content": content, **plain, **flags})


def swallowed(state: Any) -> None:
    """Add a token that swallows another, which the library finds nevertheless."""
    added(state, "<|user|>", rstrip=True)
    added(state, "\n")


def composed(state: Any) -> None:
    """Add a token that texts may spell with another last character."""
    state["normalizer"] = {"type": "NFC"}
    added(state, "é", normalized=True, rstrip=True)


def vanishing(state: Any) -> None:
    """Drop unknown characters, and shift the places of what is behind them."""
    state["model"] |= {"unk_token": None, "byte_fallback": False}


def no_unknown(state: Any) -> None:
    """Refuse unknown characters, the one that other words would be encoded behind among them."""
    state["model"] |= {"unk_token": "none", "merges": []}
    state["model"]["vocab"].pop("x")


def suffixed(state: Any) -> None:
    state["model"]["end_of_word_suffix"] = "x"


def unknown_cut(state: Any) -> None:
    cut = {"type": "Split", "pattern": {"Regex": ".{7}"}, "behavior": "Isolated", "invert": False}
    state["pre_tokenizer"] = cut


JOINING = [
    (kind, change)
    for kind in ("legacy", "bytes", "first")
    for change in (crossing, dropout, alone, spaced, lower, unknown_cut, swallowed, suffixed)
    if (kind, change) != ("bytes", crossing)  # cut before its vocabulary is asked
]
JOINING += [("bytes", composed), ("bytes", no_unknown), ("legacy", vanishing), ("first", vanishing)]


@pytest.mark.parametrize(("kind", "change"), JOINING)
def test_tokenizers_that_join_words_are_asked_for_the_whole_text(
    kind: str, change: Callable[[Any], None]
) -> None:
    tokenizer = changed(kind, change)
    assert words_are_apart(changed(kind)) and not words_are_apart(tokenizer)
    words = Words(tokenizer)
    for text in ("a a hello two words a  ", "Hello there a b", "<|user|> \n e\u0301  a"):
        if change is not dropout:
            assert words.encode(text) == tokenizer.encode(text, add_special_tokens=False).ids


def test_other_models_are_asked_for_the_whole_text() -> None:
    assert not words_are_apart(changed("unigram"))
    refusing = Tokenizer(models.WordLevel({"a": 0}, unk_token="none"))
    assert not words_are_apart(refusing) and Words(refusing).encode("a") == [0]
    assert not words_are_apart(Tokenizer(models.BPE()))


@pytest.mark.parametrize("model", ["qwen2", "qwen3_5"])
def test_patterns_are_those_of_transformers(model: str) -> None:
    room = importlib.import_module(f"transformers.models.{model}.tokenization_{model}")
    assert room.PRETOKENIZE_REGEX in PATTERNS.values()


def test_parts_written_in_python_are_not_looked_into() -> None:
    class Nothing:
        def pre_tokenize(self, _text: Any) -> None:
            """Cut nowhere."""

    tokenizer = changed("bytes")
    tokenizer.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(Nothing())
    assert Words(tokenizer).encode("a b") == tokenizer.encode("a b", add_special_tokens=False).ids


@pytest.mark.parametrize("kind", ["bytes", "unigram"])
def test_control_tokens_are_found_after_a_call_that_split_them(kind: str) -> None:
    tokenizer = changed(kind)
    expected = tokenizer.encode("a </s> b", add_special_tokens=False).ids
    words = Words(tokenizer)
    tokenizer.encode_special_tokens = True
    assert words.encode("a </s> b") == expected
    tokenizer.encode_special_tokens = True
    assert words.spans("a </s> b").ids == expected


def test_other_threads_never_see_a_half_made_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    words = Words(falcon())
    seen: list[Any] = []

    class Copy:
        def __setattr__(self, name: str, value: object) -> None:
            seen.append((name, value, words._untrimmed))

    monkeypatch.setattr("tokenizers.Tokenizer.from_str", lambda state: Copy())
    assert isinstance(words._without_trimming(), Copy)
    assert seen == [("post_processor", None, None)]


def test_a_control_token_may_be_a_part_of_other_pieces() -> None:
    tokenizer = changed("legacy")
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    part = next(left for left, right in merges if "▁" not in left and left.isalpha())
    number, said = tokenizer.get_vocab()[part], [(part, False), (f" {part}", True)]
    ids = Escaping(tokenizer.to_str(), {part: number}).encode(said).ids
    assert ids.count(number) == 1 and len(ids) > 2


def test_ids_of_a_vocabulary_with_gaps_are_not_the_copys() -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 2, "c": 4, "d": 6}, []))
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.add_special_tokens(["c"])
    tokenizer.add_tokens(["</s>", "<s>"])
    asked = tokenizer.encode("a</s>b<s>c").ids
    assert Tokenizer.from_str(tokenizer.to_str()).encode("a</s>b<s>c").ids != asked
    assert Words(tokenizer).spans("a</s>b<s>c").ids == asked
