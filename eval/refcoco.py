"""RefCOCO, RefCOCO+ and RefCOCOg: where in the image is what a phrase describes?

An answer is right when its box and the right one share half of what they cover together. Every
split has a number of its own; the mean of those that are there is the headline.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from typing import TYPE_CHECKING

from llava_tools.errors import UserError
from llava_tools.eval.benchmark import Benchmark, Part, Question, Scores, Verdict
from llava_tools.eval.boxes import (
    Box,
    Size,
    in_fractions,
    in_hundredths,
    in_pixels,
    overlap,
    read_lmms,
    read_square,
    read_vlmevalkit,
    read_xtuner,
)
from llava_tools.eval.intervals import Tallies, shares_of
from llava_tools.eval.multiple_choice import (
    Rows,
    grouped,
    plain_question,
    score_rows,
    with_pictures,
)
from llava_tools.eval.pictures import Index
from llava_tools.eval.tsv import Row
from llava_tools.eval.yes_no_rows import picture_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llava_tools.eval.intervals import Sums

REFER = "[refer] give me the location of {}"
DESCRIBES = "Please provide the bounding box coordinate of the region this sentence describes: {}"
FORMAT = (
    "Bounding box coordinates are specified in the format (top-left x, top-left y, bottom-right x, "
    "bottom-right y). All values are floating point numbers bounded between 0 and 1. "
)
HALF = 0.5
OUTSIDE = 2  # pixels by which an annotated box may stand out of its image
_CORNERS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
# A table may hold the whole prompt as its question: what it asks for stands behind this.
_PROMPT = re.compile(r".*region this sentence describes: *(.*?)\.?", re.DOTALL)


@dataclass(frozen=True)
class Rule:
    """How a kit asks, reads and compares: boxes are in the unit that `gold` makes of pixels."""

    ask: str
    read: Callable[[str, Size], Box | None]
    gold: Callable[[Box, Size], Box]
    edge: int = 0
    half_is_enough: bool = True

    def hits(self, share: float) -> bool:
        """Tell whether so much overlap makes an answer right."""
        return share >= HALF if self.half_is_enough else share > HALF


RULES = {
    "xtuner": Rule(REFER, read_xtuner, in_hundredths, edge=1, half_is_enough=False),
    "lmms-eval": Rule(FORMAT + DESCRIBES, read_lmms, in_fractions),
    "vlmevalkit-2026": Rule(DESCRIBES + ".", read_vlmevalkit, in_pixels),
    "llava": Rule(DESCRIBES + ".", read_square, in_pixels),
}


def question(row: Row, protocol: str) -> Question:
    """Return the question of a row. Raises UserError naming a row whose box is none.

    VLMEvalKit asks a whole prompt as it stands.
    """
    rule, text = RULES[protocol], row.cells.get("question", "")
    found = _PROMPT.fullmatch(text)
    whole = found is not None and protocol == "vlmevalkit-2026"
    prompt = text if whole else rule.ask.format(found[1] if found else text)
    answer = None
    if "answer" in row.cells or _CORNERS[0] in row.cells:
        answer = _shown(rule.gold(*_gold(row)))
    return plain_question(row, with_pictures(row, prompt), answer)


def _gold(row: Row) -> tuple[Box, Size]:
    """Return the right box and the image's size, in pixels."""
    width, height = (_number(row, name) for name in ("width", "height"))
    if all(name in row.cells for name in _CORNERS):
        left, top, right, bottom = (_number(row, name) for name in _CORNERS)
    else:
        written = row.cells["answer"].strip().strip("[]()")
        numbers = [_float(text) for text in written.split(",")]
        if len(numbers) != 4 or not all(map(isfinite, numbers)):
            raise UserError(
                f"{row.where}: the answer is no box, but {row.cells['answer']:.60}",
                "A box is written as [left, top, right, bottom], in pixels.",
            )
        left, top, right, bottom = numbers
    if max(left, top, right, bottom) <= 1:
        left, top, right, bottom = left * width, top * height, right * width, bottom * height
    if min(width, height) <= 0 or right <= left or bottom <= top:
        raise UserError(
            f"{row.where}: the box {_shown((left, top, right, bottom))} in an image of "
            f"{width:g} x {height:g} has no area.",
            "A box is left, top, right, bottom: is it written as left, top, width, height?",
        )
    if min(left, top) < -OUTSIDE or right > width + OUTSIDE or bottom > height + OUTSIDE:
        raise UserError(
            f"{row.where}: the box {_shown((left, top, right, bottom))} lies outside its image of "
            f"{width:g} x {height:g}.",
            "Are width and height those of this image, and the box in pixels?",
        )
    return (left, top, right, bottom), (width, height)


def _number(row: Row, name: str) -> float:
    value = _float(row.cells.get(name, ""))
    if not isfinite(value):
        raise UserError(
            f"{row.where}: its {name} is '{row.cells.get(name, ''):.40}', which is no number.",
            "RefCOCO's rows have the width and height of their image, in pixels.",
        )
    return value


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _shown(box: Box) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in box) + "]"


def score(questions: Sequence[Question], answers: Mapping[Index, str], protocol: str) -> Scores:
    """Return accuracy and mean overlap, of all and by split. What holds no box is undecided."""
    rule = RULES[protocol]
    shares: dict[Index, float] = {}

    def read(text: str, question: Question) -> Verdict:
        box, size = _gold(question.row)
        said = rule.read(text, size)
        if said is None:
            return Verdict(None, False)
        share = shares[question.index] = overlap(said, rule.gold(box, size), rule.edge)
        return Verdict(_shown(said), rule.hits(share))

    scores = score_rows(questions, answers, read, partial(_part, shares=shares))
    splits = len(scores.all.groups.get("category", {}))
    return replace(scores, counts={**scores.counts, "splits": splits})


def boxes(question: Question, answer: str, protocol: str) -> tuple[Box, Box | None]:
    """Return the right box and the answer's, in fractions of the image's sides, to draw them."""
    rule, (box, size) = RULES[protocol], _gold(question.row)
    said = rule.read(answer, size)
    whole = rule.gold((0, 0, *size), size)[2:]  # the far corner, in the rule's unit
    return in_fractions(box, size), None if said is None else in_fractions(said, whole)


def _part(rows: Rows, *, shares: Mapping[Index, float]) -> Part:
    def metrics(some: Rows) -> dict[str, float]:
        number = max(1, len(some))
        right = sum(bool(verdict.correct) for _, verdict in some)
        shared = sum(shares.get(question.index, 0.0) for question, _ in some)
        return {"accuracy": right / number, "iou": shared / number, "questions": len(some)}

    overall, groups = metrics(rows), grouped(rows, metrics)
    means = [split["accuracy"] for split in groups.get("category", {}).values()]
    average = sum(means) / len(means) if means else overall["accuracy"]
    return Part({"average": average, **overall}, groups)


def tallies(rows: Rows, protocol: str) -> Tallies:
    """Return what the accuracies add up, of every image of a split: several phrases share it."""
    units: dict[tuple[Hashable, str], dict[Hashable, float]] = {}
    for question, verdict in rows:
        split = question.category
        unit = (split, picture_of(question) or str(question.index))
        counts = units.setdefault(unit, {(split, "right"): 0.0, (split, "all"): 0.0})
        counts[split, "right"] += bool(verdict.correct)
        counts[split, "all"] += 1
    splits = list(dict.fromkeys(split for split, _ in units))

    def average(sums: Sums) -> NDArray[np.float64]:
        shares = (shares_of(sums[s, "right"], sums[s, "all"]) for s in splits)
        return sum(shares, start=shares_of(0, 1)) / len(splits)

    def accuracy(sums: Sums) -> NDArray[np.float64]:
        right, number = (sum(sums[s, name] for s in splits) for name in ("right", "all"))
        return shares_of(right, number)

    known = all(picture_of(question) for question, _ in rows)
    return Tallies(
        "image" if known else "question",
        [(split, counts) for (split, _), counts in units.items()],
        {"average": average, "accuracy": accuracy},
    )


REFCOCO = Benchmark(
    name="refcoco",
    columns=("image", "question", "answer", "width", "height"),
    question=question,
    score=score,
    protocols=tuple(RULES),
    max_new_tokens=64,
    metrics={"average": "Mean of splits %", "accuracy": "IoU 0.5 %", "iou": "Mean IoU %"},
    published={"f50ca356638ddac89b309311fd876a5d": "RefCOCO"},
    tallies=tallies,
    boxes=boxes,
)
