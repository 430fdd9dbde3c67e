"""From a model's text to the option it chose, by the rules of each kit (a named protocol).

Every rule returns a letter, or None when it cannot decide. None is counted and never guessed.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping

Choose = Callable[[str, Mapping[str, str]], str | None]

# Decided, but always wrong: VLMEvalKit's label for "none of the options".
NONE_OF_THEM = "Z"

_API_FAILURE = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
# The marks that VLMEvalKit strips. Full-width ones are not among them, so `B、` stays undecided.
_TO_SPACES = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_XTUNER_LETTERS = re.compile("[A-D]+")
_VLMEVALKIT_ANSWER = re.compile(r"answer\s+is\s+\**([A-D])", re.IGNORECASE)
# What lmms-eval lets stand around a letter, in the order in which it looks.
_DECORATIONS = (("", ""), ("", "."), ("", ","), ("", ":"), ("", ")"), ("", ")."),
                ("(", ")"), ("(", ")."),
                (":", ""), (":", ","), (":", "."), (":", ")"), (":", ")."))  # fmt: skip
# The forms of a letter that lmms-eval of 2026 looks for; the higher the rank, the surer it is.
_RANKED_FORMS = (("({})", 6), ("{}.", 5), ("{}:", 4), ("{})", 3), ("{} ", 2))
_RANK_START, _RANK_END, _RANK_PHRASE, _RANK_ANYWHERE = 10, 9, 7, 0
_RANKED_NOUNS = ("answer", "correct answer", "best answer", "correct option", "best option",
                 "choice", "correct choice")  # fmt: skip
_RANKED_PHRASES = (
    *(f"{article}{noun} is" for noun in _RANKED_NOUNS for article in ("the ", "")),
    *("i choose", "i select", "i pick", "my answer is", "my choice is"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)
_SCIENCEQA_LETTERS = ("A", "B", "C", "D", "E")
_SCIENCEQA_ANSWER = re.compile("The answer is ([A-Z]).")
_NO_MARKS = str.maketrans("", "", string.punctuation)
_MMSTAR_MARKS = ("(", "option ", "the answer is ")


def choose_vlmevalkit(text: str, options: Mapping[str, str]) -> str | None:
    """Return the choice as VLMEvalKit of April 2024 infers it without a judge.

    A letter standing alone decides when it is the only one; otherwise the only option whose text
    occurs in the answer, in any case of letters.
    """
    if _API_FAILURE not in text:
        if any(refusal in text for refusal in _REFUSALS):
            return NONE_OF_THEM
        tokens = set(text.translate(_TO_SPACES).split())
        letters = [letter for letter in options if letter in tokens]
        if len(letters) == 1:
            return letters[0]
        if not letters and NONE_OF_THEM in tokens:
            return NONE_OF_THEM
    return _named(text.lower(), options)


def choose_xtuner(text: str, options: Mapping[str, str]) -> str | None:
    """Return the first run of capitals A to D anywhere in the text, as `xtuner mmbench` does.

    So "Answer: B" chooses A, "AB" can never be right, and options past D cannot be chosen.
    """
    found = _XTUNER_LETTERS.search(text)
    return found.group() if found else None


def choose_vlmevalkit_2026(text: str, options: Mapping[str, str]) -> str | None:
    """Return the choice as VLMEvalKit of August 2026 infers it without a judge.

    A letter counts if it occurs among the last four words and not before; then "answer is X" is
    looked for, in any case and with no regard to what follows; texts of options decide only in
    answers at most twice as long as all options together.
    """
    if _API_FAILURE not in text:
        if any(refusal in text for refusal in _REFUSALS):
            return NONE_OF_THEM
        tokens = text.translate(_TO_SPACES).split()
        letters = [letter for letter in options if letter in tokens]
        if len(letters) == 1 and tokens.index(letters[0]) > len(tokens) - 5:
            return letters[0]
        if not letters and NONE_OF_THEM in tokens:
            return NONE_OF_THEM
        found = _VLMEVALKIT_ANSWER.search(text)
        if found and found[1].upper() in options:
            return found[1].upper()
    if len(text) > 2 * sum(map(len, options.values())):
        return None
    return _named(text.lower(), options)


def choose_lmms_mmbench(text: str, options: Mapping[str, str]) -> str | None:
    """Return the choice by lmms-eval's rules for MMBench, before it would ask GPT."""
    words = text.split()
    for before, behind in () if _API_FAILURE in text else _DECORATIONS:
        found = [c for c in "ABCDE" if f"{before}{c}{behind}" in words]
        if len(found) == 1 and not (behind == before == "" and "A" in words and len(words) > 3):
            return found[0]
    return _named(text.lower(), options)


def choose_lmms_2026(text: str, options: Mapping[str, str]) -> str | None:
    """Return the choice by lmms-eval's extractor of 2026, which its tasks without a judge use.

    Of all letters found in any form, the one in the surest form, of those the last. Behind a phrase
    like "the answer is" every letter counts, so "The answer is B, not A." chooses A; and if there
    is no form of a letter at all, the last capital of any word that is one.
    """
    text = text.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    padded, bare = f" {text} ", text.strip()
    found = [
        (rank, padded.rfind(form.format(c)), c)
        for form, rank in _RANKED_FORMS
        for c in options
        if form.format(c) in padded
    ]
    for phrase in _RANKED_PHRASES:
        before, said, _ = padded.lower().partition(phrase)
        places = [(padded.find(c, len(before) + len(phrase)), c) for c in options if said]
        found += [(_RANK_PHRASE, place, c) for place, c in places if place >= 0]
    found += [(_RANK_START, 0, c) for c in options if bare[:1] == c and not bare[1:2].isalpha()]
    found += [(_RANK_END, 0, c) for c in options if bare[-1:] == c and not bare[-2:-1].isalpha()]
    found = found or [(_RANK_ANYWHERE, padded.rfind(c), c) for c in options if c in padded]
    return max(found, key=lambda one: one[:2])[2] if found else None


def choose_mmmu(text: str, options: Mapping[str, str]) -> str | None:
    """Return the choice by MMMU's own parser; None where it would draw one at random.

    Letters in brackets first, then letters between spaces, then (in answers of more than five
    words) texts of options; of several candidates, the one that occurs last.
    """
    for mark in ",.!?;:'":
        text = text.strip(mark)
    text = f" {text} "
    for form in ("({})", " {} "):
        places = {c: text.rfind(form.format(c)) for c in options if form.format(c) in text}
        if places:
            return max(places, key=lambda c: places[c])
    if len(text.split()) <= 5:
        return None
    lowered = text.lower()
    places = {c: lowered.rfind(t.lower()) for c, t in options.items() if t.lower() in lowered}
    return max(places, key=lambda c: places[c]) if places else None


def choose_lmms_mmmu(text: str, options: Mapping[str, str]) -> str | None:
    """Return the choice by lmms-eval's copy of MMMU's parser (2026), which took liberties.

    A letter needs a space behind it but none before it, so "DNA shows C" has an A; then a dot will
    do. Of several such letters the last that stands between spaces counts, else the first in order.
    """
    bare = text
    for mark in ",.!?;:'":
        bare = bare.strip(mark)
    padded = f" {bare} "
    bracketed = any(f"({c})" in padded for c in options)
    for form in () if bracketed else ("{} ", "{}."):
        found = [c for c in options if form.format(c) in padded]
        if found:
            return max(found, key=lambda c: padded.rfind(f" {c} "))
    return choose_mmmu(text, options)


def choose_llava_scienceqa(text: str, options: Mapping[str, str]) -> str | None:
    """Return the choice by LLaVA's rule for ScienceQA: a lone letter, "X. ...", "The answer is X".

    Behind that last X some character must follow, as upstream's pattern wants it.
    """
    if text in _SCIENCEQA_LETTERS:
        return text
    if len(text) >= 3 and text[0] in _SCIENCEQA_LETTERS and text[1:3] == ". ":
        return text[0]
    found = _SCIENCEQA_ANSWER.findall(text)
    return found[0] if len(found) == 1 else None


def choose_lmms_scienceqa(text: str, options: Mapping[str, str]) -> str | None:
    """Return the choice by lmms-eval's rule for ScienceQA: a lone letter, or one with a dot."""
    for letter in options:
        if text.strip().lower() == letter.lower() or text.startswith(f"{letter}."):
            return letter
    return None


def choose_lmms_seed(text: str, options: Mapping[str, str]) -> str | None:
    """Return the first character, as lmms-eval compares it for SEED-Bench."""
    first = text.strip()[:1].upper()
    return first if first in options else None


def choose_whole(text: str, options: Mapping[str, str]) -> str | None:
    """Return the answer itself where it is a letter and nothing else (LLaVA's SEED-Bench)."""
    return text if text in options else None


def choose_lmms_ai2d(text: str, options: Mapping[str, str]) -> str | None:
    """Return the choice by lmms-eval's rule for AI2D: "X. ..." is X; else case and marks aside."""
    found = re.match(r"\s*([A-Z])\.", text)
    bare = (found[1] if found else text).strip().translate(_NO_MARKS).upper()
    return bare if bare in options else None


def choose_mmstar(text: str, options: Mapping[str, str]) -> str | None:
    """Return the choice by the rule of MMStar's authors.

    The first character, or the one behind "(", "option " or "the answer is ", in any case.
    """
    lowered = text.lower().strip().replace("\n", " ")
    starts = [lowered, *(lowered[len(m) :] for m in _MMSTAR_MARKS if lowered.startswith(m))]
    for start in starts:
        letter = start[:1].upper()
        if letter in options:
            return letter
    return None


def _named(lowered: str, options: Mapping[str, str]) -> str | None:
    """Return the only option whose text occurs in an answer in lower case."""
    named = [letter for letter, option in options.items() if option.lower() in lowered]
    return named[0] if len(named) == 1 else None


CHOOSERS: dict[str, Choose] = {
    "vlmevalkit": choose_vlmevalkit,
    "vlmevalkit-2026": choose_vlmevalkit_2026,
    "xtuner": choose_xtuner,
    "lmms-eval": choose_lmms_mmbench,
    "lmms-eval-2026": choose_lmms_2026,
}
