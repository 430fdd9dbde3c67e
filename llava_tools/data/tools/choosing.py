"""Filter, merge, sample and hold out rows, which stay as they are."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from llava_tools.data.tools.files import Read, Row, Tally
from llava_tools.data.tools.languages import Languages
from llava_tools.data.tools.splitting import first_round
from llava_tools.errors import UserError

_DIGITS = re.compile(r"(\d)\1{8}")  # FastChat's sign of garbage: a digit nine times


@dataclass(frozen=True)
class Rules:
    """What rows must be to stay; None and empty ask for nothing. Lengths are in characters."""

    min_chars: int = 0
    max_chars: int | None = None
    phrases: Sequence[str] = ()
    repeated_digits: bool = False
    list_errors: bool = False
    models: Sequence[str] = ()
    languages: Languages = Languages()
    first_round: bool = False


def filtered(rows: Iterable[Read], tally: Tally, rules: Rules) -> Iterator[Row]:
    """Yield the rows that keep all the rules; the others are counted by the first they break.

    A conversation whose language cannot be told stays, and is noted.
    """
    for read in rows:
        reason = _broken(read, rules) or rules.languages.verdict(read.sample)
        if reason == "language_unknown":
            tally.note(read.origin, reason, read.sample.id)
        elif reason:
            tally.drop(read.origin, reason, read.sample.id)
            continue
        row, rounds = first_round(read) if rules.first_round else (read.row, 1)
        if rounds > 1 and row is read.row:
            tally.note(read.origin, "no_list_of_messages", "kept as it is")
        elif rounds > 1:
            tally.note(read.origin, "later_rounds_left_out", f"{rounds - 1} of {rounds}")
        yield row


def _broken(read: Read, rules: Rules) -> str | None:
    text = "\n".join(turn.text for turn in read.sample.turns)
    lowered = text.lower()
    if len(text) < rules.min_chars:
        return "below_min_chars"
    if rules.max_chars is not None and len(text) > rules.max_chars:
        return "above_max_chars"
    if any(phrase.lower() in lowered for phrase in rules.phrases):
        return "has_phrase"
    if rules.repeated_digits and _DIGITS.search(text):
        return "repeated_digits"
    if rules.list_errors and any(_misnumbered(turn.text) for turn in read.sample.turns):
        return "list_error"
    if rules.models and str(read.row.get("model")) not in rules.models:
        return "other_model"
    return None


def _misnumbered(text: str) -> bool:
    """Tell whether a list's item 1 is followed by another item 1, as copied pages have it."""
    begun = False
    for line in text.splitlines():
        if line.startswith("1. ") and begun:
            return True
        begun = line.startswith("1. ") or (begun and not line.startswith("2. "))
    return False


def merged(rows: Iterable[Read], tally: Tally) -> Iterator[Row]:
    """Yield all rows; an id that an earlier row has is noted, and the row is kept.

    Raises UserError for rows of two formats, which no training takes from one file.
    """
    ids: set[str] = set()
    first: Read | None = None
    for read in rows:
        first = first or read
        if read.reader is not first.reader:
            raise UserError(
                f"{first.origin} and {read.origin} are rows of two formats.",
                "First write them in one: llava-tools data convert IN OUT --to messages",
            )
        name = read.row.get("id")
        if name is not None and str(name) in ids:
            tally.note(read.origin, "duplicate_id", str(name))
        ids.add(str(name))
        yield read.row


def sampled(rows: Iterable[Read], count: int, seed: int | None) -> list[Row]:
    """Return the first `count` rows, or with a seed a uniform draw of them, in their order."""
    if seed is None:
        return [read.row for _, read in zip(range(count), rows, strict=False)]
    generator = random.Random(seed)
    drawn: list[tuple[int, Row]] = []
    for place, read in enumerate(rows):
        slot = place if place < count else generator.randint(0, place)
        if place < count:
            drawn.append((place, read.row))
        elif slot < count:
            drawn[slot] = (place, read.row)
    return [row for _, row in sorted(drawn, key=lambda item: item[0])]


def is_held_out(read: Read, share: float, seed: int) -> bool:
    """Return whether a row is for evaluation: by the seed and its texts, so copies stay together.

    Any file order and any machine gives the same answer; `share` of the rows, about.
    """
    parts = [str(seed), *(turn.text for turn in read.sample.turns), *read.sample.images]
    digest = hashlib.blake2b("\0".join(parts).encode(errors="surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big") < share * 2**64
