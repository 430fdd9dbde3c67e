"""Rows in another format; what that format cannot hold is a drop with a reason, or a note."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from llava_tools.data.formats import get_format
from llava_tools.data.sample import Sample
from llava_tools.data.tools.files import Read, Row, Tally
from llava_tools.errors import UserError, did_you_mean

# What formats read of a row: these keys are in what is written, under other names.
READ = frozenset(
    ("id", "image", "conversations", "messages", "system", "instruction", "input", "output", "text")
    + ("history", "response", "completion", "prompt", "question", "system_prompt")
)
SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}


def convert(rows: Iterable[Read], tally: Tally, target: str) -> Iterator[Row]:
    """Yield the rows in the target format, with their ids.

    Raises UserError for an unknown target.
    """
    if target not in TARGETS:
        raise UserError(f"There is no target format '{target}'.", did_you_mean(target, TARGETS))
    write, cannot = TARGETS[target]
    for read in rows:
        reason = cannot(read.sample)
        if reason:
            tally.drop(read.origin, reason, read.sample.id)
            continue
        row = write(read.sample)
        row = _with_input(row, read) if target == "alpaca" else row
        lost = sorted(set(read.row) - set(row) - READ)
        if lost:
            tally.note(read.origin, "other_fields_left_out", ", ".join(lost))
        for mended in sorted(set(read.sample.mended)):  # the row is written as training has it
            tally.note(read.origin, mended, f"{read.sample.mended.count(mended)} times")
        yield ({"id": read.row["id"]} if "id" in read.row else {}) | row


def dataset_info(name: str, file: str, target: str, fields: Collection[str]) -> dict[str, Any]:
    """Return LLaMA-Factory's entry for rows with these fields.

    It ignores a column that is not listed, and fails at one that is listed and in no row.
    """
    columns = {column: key for column, key in COLUMNS[target].items() if key in fields}
    entry: dict[str, Any] = {"file_name": file}
    entry |= {} if target == "alpaca" else {"formatting": "sharegpt"}
    return {name: entry | {"columns": columns} | ({"tags": TAGS} if target == "messages" else {})}


COLUMNS = {
    "alpaca": {
        "prompt": "instruction",
        "query": "input",
        "response": "output",
        "system": "system",
    },
    "sharegpt": {"messages": "conversations"},
    "messages": {"messages": "messages"},
    "llava": {"messages": "conversations", "images": "image"},
}
TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}


def _turns(sample: Sample) -> Row:
    return {"conversations": [{"from": SPEAKERS[t.role], "value": t.text} for t in sample.turns]}


def _llava(sample: Sample) -> Row:
    return ({"image": list(sample.images)} if sample.images else {}) | _turns(sample)


def _messages(sample: Sample) -> Row:
    return {"messages": [{"role": t.role, "content": t.text} for t in sample.turns]}


def _alpaca(sample: Sample) -> Row:
    texts = {turn.role: turn.text for turn in sample.turns}
    row = {"instruction": texts["user"], "input": "", "output": texts["assistant"]}
    return row | ({"system": texts["system"]} if "system" in texts else {})


def _with_input(row: Row, read: Read) -> Row:
    """Keep the input of an Alpaca row apart, as it came."""
    kept = row | {key: read.row.get(key) for key in ("instruction", "input")}
    sample = get_format("alpaca")(kept, read.origin)
    same = isinstance(sample, Sample) and sample.turns == read.sample.turns
    return kept if same and kept["input"] else row


def _text_only(sample: Sample) -> str | None:
    return "has_images" if sample.images else None


def _one_exchange(sample: Sample) -> str | None:
    many = sum(turn.role == "assistant" for turn in sample.turns) > 1
    return "several_exchanges" if many else _text_only(sample)


TARGETS: dict[str, tuple[Callable[[Sample], Row], Callable[[Sample], str | None]]] = {
    "llava": (_llava, lambda sample: None),
    "sharegpt": (_turns, _text_only),
    "messages": (_messages, _text_only),
    "alpaca": (_alpaca, _one_exchange),
}
