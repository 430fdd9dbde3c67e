"""A tokenizer cut down to what rendering needs: small, fast, and cheap to send to processes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from llava_tools.constants import IMAGE_TOKEN
from llava_tools.data.escaping import Escaping, broken_up
from llava_tools.data.own_template import OwnTemplate
from llava_tools.data.pieces import Part
from llava_tools.data.spans import Located
from llava_tools.data.words import Words

CACHED = 4096  # constant pieces kept, such as separators


class Codec:
    """Encodes pieces of text without adding special tokens, as XTuner does piece by piece.

    A fast tokenizer is called through its Rust half, once a word: the same ids as
    `tokenizer.encode(text, add_special_tokens=False)`, and picklable without transformers.
    `token_ids` and `token_texts` are BOS and end token by the names that pieces have for them.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        self._slow: Any = tokenizer if self._backend is None else None
        self._made: Words | None = None
        self._escaping: Escaping | None = None
        self._known: dict[str, list[int]] = {}
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.bos: list[int] = [] if bos is None else [bos]
        self.eos: list[int] = [] if eos is None else [eos]
        self.token_ids = {"bos": self.bos, "eos": self.eos}
        self.token_texts = {k: getattr(tokenizer, f"{k}_token", None) or "" for k in self.token_ids}
        self._chat_template: Any = getattr(tokenizer, "chat_template", None)
        self._special: dict[str, Any] = dict(getattr(tokenizer, "special_tokens_map", {}))
        self.control_tokens = _control_tokens(tokenizer)
        self.control_ids = {*self.control_tokens.values()} - {
            getattr(tokenizer, "unk_token_id", None)
        }
        self._control = _pattern(self.control_tokens)

    def __getstate__(self) -> dict[str, Any]:
        # These are large, and made again where they are needed.
        return self.__dict__ | {"_made": None, "_escaping": None, "_known": {}}

    @property
    def own_template(self) -> OwnTemplate:
        """The tokenizer's chat template. Raises Refused when it has none."""
        return OwnTemplate(self._chat_template, self._special, self._control)

    @property
    def gives_spans(self) -> bool:
        """Whether the tokenizer can say which characters a token stands for."""
        return self._backend is not None

    def encode(self, text: str) -> list[int]:
        """Return the ids of a piece of text; control strings in it become control tokens."""
        if self._backend is None:
            return list(self._slow.encode(text, add_special_tokens=False))
        return self._words().encode(text)

    def encode_parts(self, parts: Sequence[Part]) -> list[int]:
        """Return the ids of a piece; what was said in it never becomes a control token."""
        if self._has_control(parts):
            if self._backend is None:
                return [i for text in broken_up(parts, self._control) for i in self.encode(text)]
            return self._escape().encode(parts).ids
        text = "".join([text for text, _ in parts])
        if any(said for _, said in parts):
            return self.encode(text)
        if text not in self._known:
            if len(self._known) >= CACHED:
                self._known.clear()
            self._known[text] = self.encode(text) if text else []
        return self._known[text]

    def encode_spans(self, parts: Sequence[Part]) -> Located:
        """Return the ids of a text with their places in it, as `encode_parts` gives them."""
        if self._has_control(parts):
            return self._escape().encode(parts)
        return self._words().spans("".join([text for text, _ in parts]))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some ids, special tokens written out."""
        if self._backend is None:
            options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
            return str(self._slow.decode(list(ids), **options))
        return str(self._backend.decode(list(ids), skip_special_tokens=False))

    def behind_a_cut(self, parts: Sequence[Part]) -> list[Part]:
        """Return the second half of a text, to be encoded by itself.

        Its first space goes where the tokenizer puts one in front of every text (SentencePiece).
        """
        (text, said), *others = parts
        spaced = str(self._backend.id_to_token(self.encode("a")[0])).startswith("▁")
        return [(text.removeprefix(" ") if spaced else text, said), *others]

    def _has_control(self, parts: Sequence[Part]) -> bool:
        search = self._control.search
        return any(said and search(text) is not None for text, said in parts)

    def _words(self) -> Words:
        if self._made is None:
            self._made = Words(self._backend)
        return self._made

    def _escape(self) -> Escaping:
        if self._escaping is None:
            self._escaping = Escaping(self._backend.to_str(), self.control_tokens)
        return self._escaping

    def identity(self) -> str:
        """Return a hash of all that decides the ids."""
        if self._backend is None:
            rules = repr(sorted(self._slow.get_vocab().items()))
        else:
            self._backend.no_truncation()  # an earlier call may have left it on
            self._backend.no_padding()
            rules = self._backend.to_str()
        return hashlib.sha256(f"{rules} {self.bos} {self.eos}".encode()).hexdigest()[:16]

    def control_string(self, text: str) -> str | None:
        """Return the first control token that is spelled out in a text, None when there is none."""
        found = self._control.search(text)
        return found[0] if found else None


# What chat templates mark turns with is a control token even where a tokenizer calls it a word.
_MARKS = re.compile(r"<\|[^<>|\s]+\|>|<(start|end)_of_turn>|\[/?(INST|SYSTEM_PROMPT)\]|<eo[ah]>")


def _control_tokens(tokenizer: Any) -> dict[str, int]:
    """Return the control tokens' ids by their strings, but `<image>`, which never reaches it."""
    added = tokenizer.added_tokens_decoder.items()
    known = {str(t): int(i) for i, t in added if t.special or _MARKS.fullmatch(str(t))}
    for text in set(tokenizer.all_special_tokens) - set(known):
        known[text] = int(tokenizer.convert_tokens_to_ids(text))
    return {text: number for text, number in known.items() if text and text != IMAGE_TOKEN}


def _pattern(strings: dict[str, int]) -> re.Pattern[str]:
    longest_first = sorted(strings, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


_CODECS: WeakKeyDictionary[Any, Codec] = WeakKeyDictionary()


def codec_of(tokenizer: Any) -> Codec:
    """Return the codec of a tokenizer, made once; a Codec is returned as it is.

    Tokens that are added to the tokenizer later are unknown to it.
    """
    if isinstance(tokenizer, Codec):
        return tokenizer
    if tokenizer not in _CODECS:
        _CODECS[tokenizer] = Codec(tokenizer)
    return _CODECS[tokenizer]
