"""Text encoded word by word, each word once: a fast tokenizer's own ids, several times as fast.

Most tokenizers never join what stands before a space to what comes behind it, so that the words of
a text can be encoded by themselves and remembered. Others are asked for the whole text (`apart`).

A word is a stretch with the spaces in front of it. It ends before a space, behind a character that
is no white space and ends no added token: those may swallow spaces, and what follows them is like
the beginning of a text.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate, chain, pairwise
from typing import Any, Generic, TypeVar, cast

from llava_tools.data.apart import words_are_apart
from llava_tools.data.spans import Located, Spans, WordSpans

Found = TypeVar("Found")
Ids = tuple[int, ...]  # no lists, which the garbage collector would visit again and again
KEPT = 1 << 17  # words remembered, some 30 MB; then all are forgotten
PLACES_KEPT = 1 << 14  # words whose places are remembered, 10 MB
LONGEST = 48  # characters of a word to remember


class Words:
    """Encodes texts without adding special tokens. Tokens added to `backend` later are unseen."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._untrimmed: Any = None
        post = backend.post_processor
        self._trims = post is not None and b'"trim_offsets":true' in post.__getstate__()
        ends = {token.content[-1:] for token in backend.get_added_tokens_decoder().values()} | {"▁"}
        # A word that is not the first is encoded behind this one.
        self._lead = next((mark for mark in "x.0" if mark not in ends), "")
        self._cut: Callable[[str], list[str]] | None = None
        self._skipped = 0
        if self._lead and words_are_apart(backend):
            held = "".join(map(re.escape, sorted(ends)))
            self._cut = re.compile(rf" *[^ ]+(?:(?<=[\s{held}]) +[^ ]*)*| +").findall
            self._skipped = len(self._ask(self._lead))
        self._later = _Remembered(self._ask_later, KEPT)
        self._first = _Remembered(lambda word: tuple(self._ask(word)), KEPT)
        self._first_places = _Remembered(self._places, PLACES_KEPT)
        self._later_places = _Remembered(self._places_later, PLACES_KEPT)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; control strings in it become control tokens."""
        if self._cut is None:
            return self._ask(text)
        return list(chain.from_iterable(self._found(self._cut(text))))

    def spans(self, text: str) -> Located:
        """Return the ids of a text with their places in it."""
        if self._cut is None:
            return self._places(text)
        words = self._cut(text)
        return WordSpans(words, self._found(words), self._word_places)

    def _found(self, words: list[str]) -> list[Ids]:
        """Return the ids of each word."""
        found = list(map(self._later.get, words))
        found[:1] = map(self._first.__getitem__, words[:1])
        missing = [number for number, ids in enumerate(found) if ids is None]
        if missing:
            learned = self._learn([words[number] for number in missing])
            for number in missing:
                found[number] = learned[words[number]]
        return cast(list[Ids], found)

    def _learn(self, words: list[str]) -> dict[str, Ids]:
        """Return the ids of unknown words, in their order in a text, and remember them."""
        unknown = list(dict.fromkeys(words))
        ask = self._ask_each if self._trims else self._ask_joined
        learned = dict(zip(unknown, ask(unknown), strict=True))
        self._later.keep(learned)
        return learned

    def _ask_joined(self, words: list[str]) -> Iterator[Ids]:
        """Yield the ids of words, asked for as one text: they are apart in that, too."""
        encoding = self._encoding(self._backend, self._lead + "".join(words))
        ids, starts = encoding.ids, [start for start, _ in encoding.offsets]
        ends = accumulate(map(len, words), initial=len(self._lead))
        for start, stop in pairwise([bisect_left(starts, end) for end in ends]):
            yield tuple(ids[start:stop])

    def _ask_each(self, words: list[str]) -> Iterator[Ids]:
        """Return the ids of words where trimmed places do not tell whose a token of spaces is."""
        return map(self._ask_later, words)

    def _ask_later(self, word: str) -> Ids:
        return tuple(self._ask(self._lead + word)[self._skipped :])

    def _word_places(self, word: str, first: bool) -> Spans:
        return (self._first_places if first else self._later_places)[word]

    def _places_later(self, word: str) -> Spans:
        spans, lead = self._places(self._lead + word), len(self._lead)
        kept = [some[self._skipped :] for some in (spans.ids, spans.starts, spans.ends)]
        return Spans(kept[0], [k - lead for k in kept[1]], [k - lead for k in kept[2]])

    def _ask(self, text: str) -> list[int]:
        return list(self._encoding(self._backend, text).ids)

    def _encoding(self, backend: Any, text: str) -> Any:
        # An earlier call of the tokenizer may have left these on.
        if backend.truncation is not None or backend.padding is not None:
            backend.no_truncation()
            backend.no_padding()
        if backend.encode_special_tokens:
            backend.encode_special_tokens = False
        return backend.encode(text, add_special_tokens=False)

    def _places(self, text: str) -> Spans:
        plain = self._without_trimming()
        encoding = self._encoding(plain, text)
        # A copy of a vocabulary whose ids have gaps may number its added tokens in another way.
        ids = encoding.ids if plain is self._backend else self._ask(text)
        places = encoding.offsets
        return Spans(ids, [start for start, _ in places], [end for _, end in places])

    def _without_trimming(self) -> Any:
        """Return the tokenizer with the places of its tokens as they are, spaces included."""
        if not self._trims:
            return self._backend
        if self._untrimmed is None:
            from tokenizers import Tokenizer

            untrimmed = Tokenizer.from_str(self._backend.to_str())
            untrimmed.post_processor = None
            self._untrimmed = untrimmed  # finished, as another thread may ask for it
        return self._untrimmed


class _Remembered(dict[str, Found], Generic[Found]):
    """What is known of words, asked for once."""

    def __init__(self, ask: Callable[[str], Found], kept: int) -> None:
        super().__init__()
        self._ask, self._kept = ask, kept

    def __missing__(self, word: str) -> Found:
        found = self._ask(word)
        self.keep({word: found})
        return found

    def keep(self, found: Mapping[str, Found]) -> None:
        """Remember what was found of some words, all but the long ones."""
        if len(self) + len(found) > self._kept:
            self.clear()
        self.update({word: known for word, known in found.items() if len(word) <= LONGEST})
