"""Token ids of a text, and where in it the tokens are: what a mask is made from."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate, chain
from typing import NamedTuple, Protocol


class Place(NamedTuple):
    """The first token that starts at a character or ends behind it; whether it began before."""

    token: int
    reaches_over: bool


class Located(Protocol):
    """Ids, and which token is where. Both questions are about places that run from 0."""

    @property
    def ids(self) -> list[int]:
        """The ids of the whole text."""

    def at(self, place: int) -> Place:
        """Return the token at a character, the number of tokens behind the last."""

    def before(self, place: int) -> int:
        """Return how many tokens start before a character."""


class Spans:
    """Ids, and which characters of the text each of them stands for."""

    def __init__(self, ids: list[int], starts: list[int], ends: list[int]) -> None:
        self.ids, self.starts, self.ends = ids, starts, ends

    def at(self, place: int) -> Place:
        """Return the token at a character, the number of tokens behind the last."""
        token = min(bisect_right(self.ends, place), bisect_left(self.starts, place))
        return Place(token, token < len(self.ids) and self.starts[token] < place)

    def before(self, place: int) -> int:
        """Return how many tokens start before a character."""
        return bisect_left(self.starts, place)


class WordSpans:
    """The same of a text that is known word by word.

    No token reaches from one word into the next, so that only a word with a place inside it is
    looked at closer, by `inside(word, whether it is the first)`.
    """

    def __init__(
        self,
        words: Sequence[str],
        found: Sequence[Sequence[int]],
        inside: Callable[[str, bool], Spans],
    ) -> None:
        self._words, self._found, self._inside = words, found, inside

    @cached_property
    def ids(self) -> list[int]:
        """The ids of the whole text."""
        return list(chain.from_iterable(self._found))

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(map(len, self._words)))

    @cached_property
    def _tokens(self) -> list[int]:
        return list(accumulate(map(len, self._found), initial=0))

    def at(self, place: int) -> Place:
        """Return the token at a character, the number of tokens behind the last."""
        word, inner = self._word(place)
        token, over = self._look(word).at(inner) if inner else (0, False)
        return Place(self._tokens[word] + token, over)

    def before(self, place: int) -> int:
        """Return how many tokens start before a character."""
        word, inner = self._word(place)
        return self._tokens[word] + (self._look(word).before(inner) if inner else 0)

    def _look(self, word: int) -> Spans:
        return self._inside(self._words[word], word == 0)

    def _word(self, place: int) -> tuple[int, int]:
        """Return the word that holds a character, and how far inside it is.

        Behind the text is the start of one more word.
        """
        word = bisect_right(self._ends, place)
        inside = word < len(self._words)
        return word, place - (self._ends[word - 1] if word else 0) if inside else 0
