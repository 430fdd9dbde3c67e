"""Errors that are the user's to mend: one message (what, where) and one hint (what to do)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class UserError(Exception):
    """Wrong input. The command line prints `message` and `hint` on two lines and exits with 2."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's text (transformers adds pages of advice)."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return what of `now` was something else before, for a message; empty where nothing was.

    Values are compared as JSON has them, where a tuple is a list: one side comes from a file.
    """
    import orjson  # here alone: every command imports this module at its start

    old, new = (orjson.loads(orjson.dumps(dict(values))) for values in (before, now))
    return "; ".join(
        f"{key} was {old.get(key)!r} and is now {value!r}"
        for key, value in new.items()
        if old.get(key) != value
    )


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the entry of `names` most like `name`, or None when none is close."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return found[0] if found else None


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return a hint: the nearest of `names`, and otherwise the list of all of them."""
    known = sorted(names)
    close = nearest(name, known)
    return f"Did you mean '{close}'?" if close else f"Known: {', '.join(known)}."
