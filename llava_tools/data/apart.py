"""Whether the words of a text can be encoded by themselves, read from a tokenizer's parts.

A word is a stretch of text with the spaces in front of it. All parts must be known here, as a
pattern may cut texts anywhere, and a vocabulary have tokens of several words.
"""

from __future__ import annotations

import json
import re
from typing import Any

# Pre-tokenizers of byte-level vocabularies, as tokenizer files have them. None of these patterns
# matches a space behind anything but white space, or looks back.
_CASES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_CAPITALS = rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+"
_SMALL = rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*"
_SIGNS, _SPACES = r" ?[^\s\p{L}\p{N}]+", r"\s+(?!\S)|\s+"
_LINES = rf"\s*[\r\n]+|{_SPACES}"
PATTERNS = {
    "gpt2": rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+|{_SIGNS}|{_SPACES}",
    "llama3": rf"{_CASES}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_SIGNS}[\r\n]*|{_LINES}",
    "qwen2": rf"{_CASES}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_SIGNS}[\r\n]*|{_LINES}",
    "qwen3.5": rf"{_CASES}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_LINES}",
    "tekken": rf"{_CAPITALS}|{_SMALL}|\p{{N}}|{_SIGNS}[\r\n/]*|{_LINES}",
    "gpt4o": rf"{_CAPITALS}{_CASES}?|{_SMALL}{_CASES}?|\p{{N}}{{1,3}}|{_SIGNS}[\r\n/]*|{_LINES}",
}
BYTES = {f"<0x{byte:02X}>" for byte in range(256)}
JOINED = re.compile(r"[^\s▁][ ▁]")  # a word's end inside a token


def words_are_apart(backend: Any) -> bool:
    """Tell whether no token reaches from a word over the space behind it.

    Nor may what stands before a word change its ids. False is always safe.
    """
    model, tokens = backend.model, list(backend.get_added_tokens_decoder().values())
    if type(model).__name__ != "BPE" or model.dropout or not _tokens_are_apart(tokens):
        return False
    if model.continuing_subword_prefix or model.end_of_word_suffix:
        return False  # their bytes are counted as places of the text
    if model.unk_token is not None and model.token_to_id(model.unk_token) is None:
        return False  # texts with unknown characters are refused
    rules = _steps(backend.normalizer, "normalizers")
    steps = _steps(backend.pre_tokenizer, "pretokenizers")
    if all(rule["type"] == "NFC" for rule in rules):
        if rules and any(token.normalized for token in tokens):
            return False  # such a token may end with another character than its text does
        for step in steps:
            if _cuts(step):
                return True  # what the model or later steps do, they do to each piece by itself
            if step["type"] not in ("Digits", "Punctuation"):
                break
    marks = [rule for rule in rules if _writes_marks(rule)] + [s for s in steps if _marks(s)]
    plain = all(map(_keeps_words, rules)) and all(_marks(s) or _idle(s, rules) for s in steps)
    return bool(marks) and plain and _vocabulary_is_apart(backend)


def _steps(part: Any, members: str) -> list[dict[str, Any]]:
    """Return what a normalizer or pre-tokenizer does, one after the other."""
    if part is None:
        return []
    try:
        state = json.loads(part.__getstate__())
    except Exception:  # the library's own class: a part that was written in Python has no state
        return [{"type": "Custom"}]
    return list(state[members]) if state["type"] == "Sequence" else [state]


def _tokens_are_apart(tokens: list[Any]) -> bool:
    if any(token.single_word or JOINED.search(token.content) for token in tokens):
        return False
    # The library finds a token again in white space that one before it has swallowed.
    swallowing = any(token.rstrip for token in tokens)
    return not (swallowing and any(token.content[0].isspace() for token in tokens))


def _cuts(step: dict[str, Any]) -> bool:
    """Tell of a pre-tokenizer whether it cuts a text before every word."""
    if step["type"] == "ByteLevel":
        return bool(step["use_regex"])  # by GPT-2's pattern
    if step["type"] != "Split" or step["pattern"].get("Regex") not in PATTERNS.values():
        return False
    return (step["behavior"], step["invert"]) in (("Isolated", False), ("Removed", True))


def _keeps_words(rule: dict[str, Any]) -> bool:
    """Tell of a normalizer in SentencePiece's manner whether words stay by themselves."""
    return _writes_marks(rule) or rule == {"type": "Prepend", "prepend": "▁"}


def _writes_marks(rule: dict[str, Any]) -> bool:
    return rule == {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


def _marks(step: dict[str, Any]) -> bool:
    return (step["type"], step.get("replacement")) == ("Metaspace", "▁")


def _idle(step: dict[str, Any], rules: list[dict[str, Any]]) -> bool:
    """Tell of Gemma's pre-tokenizer that it finds nothing: all spaces have been replaced."""
    spaces = (step["type"], step.get("pattern"), step.get("invert"))
    return spaces == ("Split", {"String": " "}, False) and any(map(_writes_marks, rules))


def _vocabulary_is_apart(backend: Any) -> bool:
    """Tell of a vocabulary in SentencePiece's manner whether no piece goes on behind a word."""
    model, known = backend.model, backend.get_vocab(with_added_tokens=False)
    # Characters without any token would vanish, and shift the places of what is behind them.
    whole = model.unk_token is not None or (model.byte_fallback and known.keys() >= BYTES)
    apart = "▁" in known and not any("▁" in piece.lstrip("▁") for piece in known)
    return whole and apart and not model.ignore_merges
