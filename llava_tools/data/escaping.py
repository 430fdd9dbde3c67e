"""Control strings in what people write, encoded as the plain text that they are.

A message about prompts may well say `</s>`. The tokenizer is copied without its control tokens,
so that nothing spelled out can become one, and gets stand-ins for them: characters that no text
has. A format's own control strings are written as stand-ins; all else stays as it is, to the
white space that some control tokens swallow.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from llava_tools.data.pieces import Part
from llava_tools.data.spans import Located, Place
from llava_tools.data.words import Words

FIRST, LAST = 0xF0000, 0x10FFFD  # characters that Unicode leaves to private use


class Escaped:
    """Ids of a text that was written with stand-ins, and which of them is where in it.

    `places` says where each character that was written stands in the text, and where it ends.
    """

    def __init__(self, ids: list[int], written: Located, places: list[int]) -> None:
        self.ids, self._written, self._places = ids, written, places

    def at(self, place: int) -> Place:
        """Return the token at a character, the number of tokens behind the last."""
        return self._written.at(bisect_left(self._places, place))

    def before(self, place: int) -> int:
        """Return how many tokens start before a character."""
        return self._written.before(bisect_left(self._places, place))


class Escaping:
    """Encodes parts so that the control tokens come from what the template says alone."""

    def __init__(self, state: str, control: Mapping[str, int]) -> None:
        self._state = state
        self._control = dict(control)
        self._made: dict[int, tuple[Words, dict[int, int]]] = {}
        longest_first = sorted(control, key=lambda text: (-len(text), text))
        self._pattern = re.compile("|".join(map(re.escape, longest_first)))
        self._numbers = {text: number for number, text in enumerate(control)}

    def encode(self, parts: Sequence[Part]) -> Escaped:
        """Return the ids of the parts as one text."""
        base = self._unused("".join(text for text, _ in parts))
        words, ids = self._tokenizer(base)
        written, origins = [], [0]
        for text, said in parts:
            for piece, number in [(text, None)] if said else self._cut(text):
                written.append(piece if number is None else chr(base + number))
                width = 1 if number is None else len(piece)
                origins += [width] * len(written[-1])
        found = words.spans("".join(written))
        return Escaped([ids.get(i, i) for i in found.ids], found, list(accumulate(origins)))

    def _cut(self, text: str) -> Iterator[tuple[str, int | None]]:
        """Yield the pieces of a template's text, with the numbers of its control tokens."""
        end = 0
        for found in self._pattern.finditer(text):
            yield text[end : found.start()], None
            yield found[0], self._numbers[found[0]]
            end = found.end()
        yield text[end:], None

    def _unused(self, text: str) -> int:
        """Return the first of a stretch of private characters that the text does not use."""
        count = max(1, len(self._control))
        used = {ord(c) for c in set(text) if ord(c) >= FIRST}
        bases = range(FIRST, LAST - count, count)
        return next(base for base in bases if used.isdisjoint(range(base, base + count)))

    def _tokenizer(self, base: int) -> tuple[Words, dict[int, int]]:
        if base not in self._made:
            self._made[base] = self._make(base)
        return self._made[base]

    def _make(self, base: int) -> tuple[Words, dict[int, int]]:
        """Return the tokenizer with stand-ins from `base` on, and whose ids theirs stand for."""
        from tokenizers import AddedToken, Tokenizer

        state = json.loads(self._state)
        flags = {t["content"]: t for t in state["added_tokens"]}
        kept = [t for t in state["added_tokens"] if t["content"] not in self._control]
        state |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
        _hide(state["model"], self._control)
        tokenizer = Tokenizer.from_str(json.dumps(state))
        ids: dict[int, int] = {}
        stand_ins = {text: chr(base + number) for text, number in self._numbers.items()}
        wanted = [(t["content"], t["id"], t) for t in kept]
        wanted += [(stand_ins[t], i, flags.get(t, {})) for t, i in self._control.items()]
        names = ("single_word", "lstrip", "rstrip")  # never normalised, which might hide it
        for text, number, known in wanted:
            options = {name: bool(known.get(name)) for name in names}
            token = AddedToken(text, special=False, normalized=False, **options)
            tokenizer.add_tokens([token])
            made = tokenizer.token_to_id(text)
            assert made is not None
            ids[made] = number
        return Words(tokenizer), ids


def _hide(model: dict[str, Any], control: Mapping[str, int]) -> None:
    """Rename control tokens among a model's words: a text would find them there, too."""
    hidden = {text: f"\N{NULL}{text}\N{NULL}" for text in control}
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        model["vocab"] = {hidden.get(text, text): number for text, number in vocab.items()}
    elif isinstance(vocab, list):
        model["vocab"] = [[hidden.get(word[0], word[0]), *word[1:]] for word in vocab]
    if model.get("unk_token") in hidden:
        model["unk_token"] = hidden[model["unk_token"]]
    if "merges" in model:
        pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
        model["merges"] = [[*p] for p in pairs if control.keys().isdisjoint((*p, p[0] + p[1]))]


def broken_up(parts: Sequence[Part], control: re.Pattern[str]) -> Iterator[str]:
    """Yield the text of parts in pieces that spell out no control token that was said.

    For tokenizers that cannot be copied; the pieces are to be encoded one by one.
    """
    held = ""
    for text, said in parts:
        end = 0
        for found in control.finditer(text) if said else ():
            yield held + text[end : found.start() + 1]
            held, end = "", found.start() + 1
        held += text[end:]
    yield held
