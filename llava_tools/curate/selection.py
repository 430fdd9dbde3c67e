"""Choose rows by score: filters first, then the best share or number of those that are left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llava_tools.curate.duplicates import DEDUPE, Repeats
from llava_tools.curate.phrases import BUILT_IN, Phrases, read_phrases
from llava_tools.curate.rows import MEANINGS, Example, Row, read_examples
from llava_tools.curate.score_log import Record
from llava_tools.curate.scores import KEYS, Column, Scores
from llava_tools.errors import UserError, did_you_mean

# Why a row that has a score is left out all the same: a wish of the user, not a fault of the row.
FILTERS = {
    "above_max_ifd": "its IFD is above --max-ifd: the question does not help",
    "too_short": "its answer has fewer tokens than --min-length",
    "too_long": "its answer has more tokens than --max-length",
    "phrase": "its answer says one of the phrases",
    "duplicate": "a row before it says the same",
    "no_such_score": "it has no score of this kind, such as ifd-image of a row without images",
    "not_chosen": "its score is not among the best",
    "not_picked": "its cluster gave others, or its perplexity is beyond --low or --high",
}
NO_SCORE = {"not_scored": "the score files say nothing of it"}
ALL_REASONS = {**MEANINGS, **NO_SCORE, **FILTERS}
OF = ("kept", "all")
RANDOM = "random"  # what a choice is compared with
BY = {*KEYS, "ifd", RANDOM}


@dataclass(frozen=True)
class Rules:
    """How to select; see `llava-tools curate select --help`."""

    top: float | None = None
    number: int | None = None
    by: str = "ifd"
    ascending: bool = False
    max_ifd: float = 1.0
    min_length: int | None = None
    max_length: int | None = None
    drop_phrases: str | None = None
    words: bool = False
    dedupe: str | None = None
    of: str = "kept"
    seed: int = 0  # of `--by random`

    def __post_init__(self) -> None:
        if (self.top is None) == (self.number is None):
            raise UserError(
                "How many rows? Give --top or --number, one of them.", "For example --top 0.1."
            )
        if self.by not in BY:
            raise UserError(f"Unknown --by '{self.by}'.", did_you_mean(self.by, BY))
        for name, known in (("of", OF), ("dedupe", (None, *DEDUPE))):
            if getattr(self, name) not in known:
                raise UserError(
                    f"Unknown --{name} '{getattr(self, name)}'.",
                    f"Known: {', '.join(filter(None, known))}.",
                )


@dataclass
class Selection:
    """What was chosen: places of rows in their order, and why the others were not."""

    rows: int
    chosen: list[int]
    kept: int  # rows that passed the filters
    wanted: int
    dropped: dict[int, str]
    values: Column  # of --by, for each row
    by: str
    hits: Counter[str] = field(default_factory=Counter)

    @property
    def reasons(self) -> Counter[str]:
        """How many rows were left out, by reason."""
        return Counter(self.dropped.values())

    @property
    def faulty(self) -> int:
        """How many rows have no usable score."""
        return sum(reason not in FILTERS for reason in self.dropped.values())


def select(data: Path, scores: Scores, rules: Rules, format: str = "auto") -> Selection:  # noqa: A002
    """Choose rows of a data file by their scores.

    Cherry_LLM's rules: rows whose IFD is above 1 go (exactly 1 stays); of the rest, sorted by
    (score, place), the last N are taken; N = int(kept * share); the order is that of the file.

    Raises UserError when scores and data do not belong together, or a score is nowhere to be had.
    """
    key = scores.key("ppl" if rules.by == RANDOM else rules.by)
    scored = [record for record in scores.records.values() if not record.get("reason")]
    if scored and not any(key in record for record in scored):
        raise UserError(
            f"None of these scores is a '{rules.by}'.",
            "`curate ifd --mode cherry` gives losses and IFD, of rows with images ifd-image, too.",
        )
    dropped: dict[int, str] = {}
    texts = read_phrases(rules.drop_phrases) if rules.drop_phrases else ()
    words = rules.words or rules.drop_phrases == BUILT_IN  # "as an AI" is not in "has an aide"
    phrases = Phrases(texts, words=words) if texts else None
    repeats = Repeats(rules.dedupe)
    rows = 0
    for row in checked_rows(data, scores, format):
        rows += 1
        reason = _reason(row, scores, key, rules, phrases)
        if reason:
            dropped[row.place] = reason
        elif isinstance(row.example, Example):
            repeats.add(row.place, row.example)
    dropped |= dict.fromkeys(repeats.places(), "duplicate")
    check_all_used(data, scores, rows)
    values = scores.column(key, rows)
    if rules.by == RANDOM:
        key, values = RANDOM, np.random.default_rng(rules.seed).random(rows)
    kept = [place for place in range(rows) if place not in dropped]
    base = len(kept) if rules.of == "kept" else rows
    wanted = rules.number if rules.number is not None else int(base * (rules.top or 0))
    order = sorted(kept, key=lambda place: (values[place], place))
    count = min(wanted, len(order))
    best = order[:count] if rules.ascending else order[len(order) - count :]
    chosen = sorted(best)
    dropped |= dict.fromkeys(set(kept) - set(chosen), "not_chosen")
    hits = phrases.hits if phrases else Counter()
    return Selection(rows, chosen, len(kept), wanted, dropped, values, key, hits)


def checked_rows(data: Path, scores: Scores, format: str = "auto") -> Iterator[Row]:  # noqa: A002
    """Yield the rows of a file; a row whose score was made of another text raises UserError."""
    for row in read_examples(data, format):
        record = scores.records.get(row.place)
        if record is not None and record.get("id", row.key) != row.key:
            raise UserError(
                f"{row.where} is not the row that was scored as row {row.place + 1}.",
                "Select from the very file that was scored, or score this one.",
            )
        yield row


def check_all_used(data: Path, scores: Scores, rows: int) -> None:
    """Raise UserError when scores were made of a file with other rows than `rows`."""
    last = max(scores.records, default=-1)
    if last >= rows:
        raise UserError(
            f"The scores go up to row {last + 1:,}, but '{data}' has {rows:,} rows.",
            "Select from the very file that was scored.",
        )
    unsure = len(scores.records) != rows and not all("id" in r for r in scores.records.values())
    if unsure and not scores.started:
        raise UserError(
            f"'{data}' has {rows:,} rows, but the .pt file scores {len(scores.records):,}; "
            "it does not tell which.",
            "Give --start-idx, as Cherry's data_analysis was given it (0 for its first row).",
        )


def _reason(
    row: Row,
    scores: Scores,
    key: str,
    rules: Rules,
    phrases: Phrases | None,
) -> str | None:
    """Return why a row is left out, None when it is kept."""
    record = scores.records.get(row.place)
    if record is None:
        return "not_scored"
    if record.get("reason"):
        return str(record["reason"])
    if isinstance(row.example, str):
        return row.example
    if key not in record:
        return "no_such_score"
    if record[key] is None or not np.isfinite(record[key]):
        return "not_finite"
    ifd = record.get(f"ifd_{scores.formula}")
    if ifd is not None and not ifd <= rules.max_ifd:
        return "above_max_ifd"
    reason = _length_reason(record, rules)
    if reason:
        return reason
    return "phrase" if phrases and phrases.found("\n".join(row.example.answers)) else None


def _length_reason(record: Record, rules: Rules) -> str | None:
    if rules.min_length is None and rules.max_length is None:
        return None
    length = record.get("tokens")
    if length is None:
        raise UserError(
            "These scores do not tell how long the answers are.",
            "Leave --min-length and --max-length out, or score with `curate ifd`.",
        )
    if length < (rules.min_length or 0):
        return "too_short"
    return "too_long" if rules.max_length is not None and length > rules.max_length else None
