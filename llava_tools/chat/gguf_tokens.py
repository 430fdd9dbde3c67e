"""The tokenizer in a GGUF file, by llama.cpp's own hands, for our templates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby
from typing import Any

from tokenizers import AddedToken

from llava_tools.data.codec import Codec
from llava_tools.data.pieces import Part
from llava_tools.data.spans import Spans

PIECE_BYTES = 512  # longer than any token


class GgufTokenizer(Codec):
    """What templates and streams ask of a tokenizer, answered by a `llama_cpp.Llama`.

    BOS is there if the file says that prompts begin with it (`add_bos_token`).
    """

    def __init__(self, llama: Any) -> None:
        import llama_cpp

        self._llama, self._cpp = llama, llama_cpp
        self._vocab = llama_cpp.llama_model_get_vocab(llama.model)
        self.piece = cache(self._piece)
        attributes = [
            llama_cpp.llama_vocab_get_attr(self._vocab, token) for token in range(llama.n_vocab())
        ]
        control = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL
        added = control | llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED
        byte = llama_cpp.LLAMA_TOKEN_ATTR_BYTE
        self._bytes = {token for token, kind in enumerate(attributes) if kind & byte}
        self.added_tokens_decoder = {
            token: AddedToken(self._text(token), special=bool(kind & control))
            for token, kind in enumerate(attributes)
            if kind & added
        }
        begins = llama_cpp.llama_vocab_get_add_bos(self._vocab)
        self.bos_token_id = self._or_none(llama.token_bos()) if begins else None
        self.eos_token_id = self._or_none(llama.token_eos())
        unknown = llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
        self.unk_token_id = next((t for t, kind in enumerate(attributes) if kind & unknown), None)
        self.bos_token = self._named(self.bos_token_id)
        self.eos_token = self._named(self.eos_token_id)
        self.chat_template = llama.metadata.get("tokenizer.chat_template")
        self.special_tokens_map = {
            name: text
            for name, text in (("bos_token", self.bos_token), ("eos_token", self.eos_token))
            if text
        }
        self.all_special_tokens = list(self.special_tokens_map.values())
        super().__init__(self)

    @property
    def gives_spans(self) -> bool:
        """Whether it can say which characters a token stands for."""
        return True

    def convert_tokens_to_ids(self, text: str) -> int:
        """Return the id of a special token."""
        [token] = self.encode(text)
        return token

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Return the ids of a text; control strings in it become control tokens."""
        return list(self._llama.tokenize(text.encode(), add_bos=False, special=True))

    def encode_parts(self, parts: Sequence[Part]) -> list[int]:
        """Return the ids of a piece; what was said in it never becomes a control token."""
        return self.encode_spans(parts).ids

    def encode_spans(self, parts: Sequence[Part]) -> Spans:
        """Return the ids of a text with their places in it, as `encode_parts` gives them."""
        spans = Spans([], [], [])
        begin = 0
        for text, control in self._stretches(parts):
            plain = self._llama.tokenize(text.encode(), add_bos=False, special=False)
            found = self.encode(text) if control else plain
            spans.ids.extend(found)
            for start, end in self._places(text, found):
                spans.starts.append(begin + start)
                spans.ends.append(begin + end)
            begin += len(text)
        return spans

    def _stretches(self, parts: Sequence[Part]) -> Iterator[tuple[str, bool]]:
        """Yield a text in stretches, and whether control strings in each are control tokens."""
        if not self._has_control(parts):
            yield "".join(text for text, _ in parts), True
            return
        held = ""
        for text, said in parts:
            end = 0
            for found in () if said else self._control.finditer(text):
                yield held + text[end : found.start()], False
                yield found[0], True
                held, end = "", found.end()
            held += text[end:]
        yield held, False

    def _places(self, text: str, ids: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Yield where each token of a text is; the spaces that SentencePiece adds are nowhere."""
        data, at = text.encode(), 0
        for token in ids:
            said = self.piece(token, True)
            if not data.startswith(said, at) and said.startswith(b" "):
                said = said[1:]
            start = max(data.find(said, at), at)  # behind white space that the last one took
            at = min(start + len(said), len(data))
            yield len(data[:start].decode(errors="ignore")), len(data[:at].decode(errors="ignore"))

    def behind_a_cut(self, parts: Sequence[Part]) -> list[Part]:
        """Return the second half of a text, without the space that goes in front of every text."""
        (text, said), *others = parts
        spaced = self.piece(self.encode("a")[0], True).startswith(b" ")
        return [(text.removeprefix(" ") if spaced else text, said), *others]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False, **options: Any) -> str:
        """Return the text of some ids; what is no UTF-8 becomes replacement characters."""
        texts = []
        for single, run in groupby(ids, self._bytes.__contains__):
            data = b"".join(self.piece(token, not skip_special_tokens) for token in run)
            texts.append(_byte_by_byte(data) if single else data.decode(errors="replace"))
        return "".join(texts)

    def get_vocab(self) -> Mapping[str, int]:
        """Return the ids by their texts."""
        return {self._text(token): token for token in range(self._llama.n_vocab())}

    def ends_answer(self, token: int) -> bool:
        """Whether the file says that an answer ends with this token."""
        return bool(self._cpp.llama_vocab_is_eog(self._vocab, token))

    def _or_none(self, token: int) -> int | None:
        return None if token == self._cpp.LLAMA_TOKEN_NULL else int(token)

    def _named(self, token: int | None) -> str | None:
        return None if token is None else self._text(token)

    def _text(self, token: int) -> str:
        return str(self._cpp.llama_vocab_get_text(self._vocab, token).decode(errors="replace"))

    def _piece(self, token: int, special: bool) -> bytes:
        buffer = bytes(PIECE_BYTES)
        size = self._cpp.llama_token_to_piece(self._vocab, token, buffer, PIECE_BYTES, 0, special)
        return buffer[: max(size, 0)]


def _byte_by_byte(data: bytes) -> str:
    """Return tokens of single bytes as tokenizers does: all of a run are characters, or none."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "\N{REPLACEMENT CHARACTER}" * len(data)
