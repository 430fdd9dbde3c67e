"""Short free answers: the normaliser of EvalAI and VQA, its variants, and the score of TextVQA.

The order of the steps, the slip in the pattern of dots and the table of contractions are those of
the VQA evaluation code as LLaVA and lmms-eval carry it; VLMEvalKit leaves steps out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

Normalise = Callable[[str], str]

MARKS = ';/[]"{}()=+\\_-><@`,?!'
NUMBERS = dict(zip("none zero one two three four five six seven eight nine ten".split(),
                   [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], strict=True))  # fmt: skip
ARTICLES = {"a", "an", "the"}
MAX_DOTS = 32  # upstream passes a flag of 32 where the count of replacements belongs
_DOT = re.compile(r"(?!<=\d)(\.)(?!\d)")  # as upstream writes it: only a digit behind keeps a dot
_DOT_MENDED = re.compile(r"(?<!\d)\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"(\d)(\,)(\d)")


def normalise_evalai(text: str) -> str:
    """Return an answer as LLaVA's and lmms-eval's EvalAI processor leaves it."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _words(_marks(_one_line(text), _without_dots))


def normalise_vlmevalkit(text: str) -> str:
    """Return an answer as VLMEvalKit of April 2024 leaves it: without EvalAI's first step."""
    return _words(_marks(_one_line(text), _without_dots))


def normalise_vlmevalkit_2026(text: str) -> str:
    """Return an answer as VLMEvalKit of 2026 leaves it: a dot behind a digit stays."""
    return _words(_marks(_one_line(text), lambda t: _DOT_MENDED.sub("", t)))


def normalise_gqa(text: str) -> str:
    """Return an answer as LLaVA's converter for GQA hands it in: no dots at the end, lower case."""
    return text.rstrip(".").lower()


def normalise_lower(text: str) -> str:
    """Return an answer stripped and in lower case (VLMEvalKit's GQA)."""
    return text.strip().lower()


def normalise_no_marks(text: str) -> str:
    """Return an answer without case and ASCII punctuation (lmms-eval's GQA)."""
    return re.sub(r"[!-/:-@\[-`{-~]", "", text).lower()


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _without_dots(text: str) -> str:
    return _DOT.sub("", text, count=MAX_DOTS)


def _marks(text: str, drop_dots: Normalise) -> str:
    """Delete marks that touch a space (or all, where the text has a number like 1,000).

    Other marks become spaces.
    """
    changed = text
    number = _COMMA_IN_NUMBER.search(text) is not None
    for mark in MARKS:
        touches = f"{mark} " in text or f" {mark}" in text
        changed = changed.replace(mark, "" if touches or number else " ")
    return drop_dots(changed)


def _words(text: str) -> str:
    """Spell numbers as digits, drop articles, put apostrophes back."""
    words = [str(NUMBERS.get(word, word)) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def vqa_score(prediction: str, answers: Sequence[str], normalise: Normalise) -> float:
    """Return TextVQA's score of an answer against those of (ten) annotators.

    For each annotator: how many of the others agree with the prediction, a third each, at most 1;
    then the mean. So 1, 2, 3 and 4 of ten that agree give 0.3, 0.6, 0.9 and 1.
    """
    said = normalise(prediction)
    agree = [normalise(answer) == said for answer in answers]
    matches = sum(agree)
    return sum(min(1.0, (matches - own) / 3) for own in agree) / len(agree)


# VQA's table: words that lack one of their apostrophes, and one that it writes the wrong way round.
_WHOLE = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't "
    "haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't "
    "mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've "
    "should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've "
    "someone'll someone's something'd something'd've something'll that's there'd there'd've "
    "there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't "
    "what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's "
    "who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've "
    "you'd you'd've you'll you're you've"
).split()
CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _WHOLE
    for place, character in enumerate(word)
    if character == "'"
} | {"somebody'd": "somebodyd"}
