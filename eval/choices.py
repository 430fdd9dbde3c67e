"""From a model's text to the option it chose, by the rules of each kit (a named protocol).

Every rule returns a letter, or None when it cannot decide. None is counted and never guessed.
"""

from __future__ import annotations

import re
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
    lowered = text.lower()
    named = [letter for letter, option in options.items() if option.lower() in lowered]
    return named[0] if len(named) == 1 else None


def choose_xtuner(text: str, options: Mapping[str, str]) -> str | None:
    """Return the first run of capitals A to D anywhere in the text, as `xtuner mmbench` does.

    So "Answer: B" chooses A, "AB" can never be right, and options past D cannot be chosen.
    """
    found = _XTUNER_LETTERS.search(text)
    return found.group() if found else None


CHOOSERS: dict[str, Choose] = {"vlmevalkit": choose_vlmevalkit, "xtuner": choose_xtuner}
