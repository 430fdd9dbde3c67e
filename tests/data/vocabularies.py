"""Toy tokenizers of every kind that models have, all with all control tokens of all templates."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from llava_tools.data.templates import TEMPLATES
from tests.tiny import CORPUS

SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
CONTROL = sorted({text for row in TEMPLATES.values() for text in row.control}) + [
    "[INST]",
    "<|system|>",
]
# The last lines have pieces that would reach over the seams of a format if a vocabulary let them.
TEXTS = [*CORPUS, "ASSISTANT: hello\n\nhi there USER: ### Human: [INST] <|user|>\n" * 3]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _trained(tokenizer: Tokenizer, **options: Any) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=520, special_tokens=[*SPECIAL, *BYTES], show_progress=False, **options
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in SPECIAL]
    return Tokenizer.from_str(json.dumps(state))


def _pieces() -> Tokenizer:
    return Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))


def legacy() -> Tokenizer:
    """Llama-2's as transformers has it: no pre-tokenizer, a space in front of every text."""
    tokenizer = _pieces()
    space = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer = _trained(tokenizer)
    tokenizer.pre_tokenizer = None  # no piece has a space but in front, as in real vocabularies
    return tokenizer


def metaspace(scheme: str) -> Tokenizer:
    """SentencePiece's manner with a space in front of the `first` text alone, or of none."""
    tokenizer = _pieces()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme)
    return _trained(tokenizer)


def byte_level(pattern: str | None) -> Tokenizer:
    """GPT-2's manner, or Llama-3's, whose pieces may end with line breaks."""
    tokenizer = Tokenizer(models.BPE())
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    cut = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cut, plain])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=480, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def unigram() -> Tokenizer:
    """A unigram model, which finds `</s>` among its words unless it is hidden from it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        unk_token="<unk>",
        initial_alphabet=[chr(i) for i in range(32, 127)] + ["\n"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


MAKERS = {
    "legacy": legacy,
    "first": lambda: metaspace("first"),
    "never": lambda: metaspace("never"),
    "bytes": lambda: byte_level(None),
    "llama3": lambda: byte_level(LLAMA3),
    "unigram": unigram,
}


@cache
def vocabulary(kind: str) -> Any:
    """Return a tokenizer of a kind of MAKERS, made once."""
    tokenizer = MAKERS[kind]()
    tokenizer.decoder = (
        decoders.ByteLevel()
        if kind in ("bytes", "llama3")
        else decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
    )
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in CONTROL])
    special = dict(zip(("unk_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="</s>", **special)
