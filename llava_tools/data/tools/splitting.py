"""Split long conversations between a question with its answer and the next; no pair is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from llava_tools.constants import IMAGE_TOKEN
from llava_tools.data.tools.cleaning import list_key, role
from llava_tools.data.tools.files import Read, Row, Tally

Count = Callable[[str], int]
MESSAGE_COST = 6  # FastChat's allowance for a message's role and separators


def split(rows: Iterable[Read], tally: Tally, count: Count, budget: int) -> Iterator[Row]:
    """Yield rows whose messages cost at most `budget`: `count` of the text, and 6 a message.

    A piece begins with the system message of the whole; its id is the old one, `_`, and the
    place of its first message. A single pair beyond the budget is kept whole and noted.
    """
    for read in rows:
        key = list_key(read.row)
        if key is None:
            tally.note(read.origin, "no_list_of_messages", "kept as it is")
            yield read.row
            continue
        system, pairs = _pairs(read.row[key])
        fixed = sum(_cost(m, count) for m in system)
        costs = [fixed + sum(_cost(m, count) for m in pair) for pair in pairs]
        for place, cost in enumerate(costs):
            if cost > budget:
                tally.note(read.origin, "pair_over_budget", f"pair {place + 1} costs {cost}")
        pieces = _pieces([cost - fixed for cost in costs], budget - fixed)
        if len(pieces) == 1:
            yield read.row
            continue
        tally.note(read.origin, "split", f"{len(pieces)} pieces")
        yield from _rows(read, key, system, pairs, pieces)


def first_round(read: Read) -> tuple[Row, int]:
    """Return a row with its first question and answer alone, and how many rounds it had.

    A row whose messages are no list is returned as it is.
    """
    key = list_key(read.row)
    if key is None:
        return read.row, sum(turn.role == "assistant" for turn in read.sample.turns)
    system, pairs = _pairs(read.row[key])
    if len(pairs) < 2:
        return read.row, len(pairs)
    cut = next(_rows(read, key, system, pairs, [(0, 1)]))
    del cut["id"]
    return cut | ({"id": read.row["id"]} if "id" in read.row else {}), len(pairs)


def _text(message: Any) -> str:
    value = message.get("value", message.get("content"))
    if isinstance(value, list):
        return "".join(part.get("text", IMAGE_TOKEN) for part in value)
    return str(value)


def _cost(message: Any, count: Count) -> int:
    return count(_text(message)) + MESSAGE_COST


def _pairs(messages: list[Any]) -> tuple[list[Any], list[list[Any]]]:
    """Return the system message, and groups that each begin where a question follows an answer."""
    system = [m for m in messages[:1] if role(m) == "system"]
    groups: list[list[Any]] = []
    before = "assistant"
    for message in messages[len(system) :]:
        if not groups or (role(message) == "user" and before != "user"):
            groups.append([])
        groups[-1].append(message)
        before = role(message)
    return system, groups


def _pieces(costs: list[int], budget: int) -> list[tuple[int, int]]:
    """Return the (first, end) pairs of each piece; together they are all pairs, in order."""
    pieces, start, total = [], 0, 0
    for i, cost in enumerate(costs):
        if i > start and total + cost > budget:
            pieces.append((start, i))
            start, total = i, 0
        total += cost
    return [*pieces, (start, len(costs))]


def _rows(
    read: Read, key: str, system: list[Any], pairs: list[list[Any]], pieces: list[tuple[int, int]]
) -> Iterator[Row]:
    images = list(read.sample.images) if key == "conversations" else []
    starts = [0]
    for pair in pairs:
        starts.append(starts[-1] + len(pair))
    for first, end in pieces:
        messages = [m for pair in pairs[first:end] for m in pair]
        row = read.row | {"id": f"{read.sample.id}_{starts[first]}", key: system + messages}
        if "image" in row and key == "conversations":
            taken = sum(_text(m).count(IMAGE_TOKEN) for m in messages)
            here, images = images[:taken], images[taken:]
            row.pop("image")
            if here:
                row["image"] = here[0] if len(here) == 1 else here
        yield row
