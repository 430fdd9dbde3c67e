"""The rows of an evaluation's page: pictures, each once, with their boxes; options and verdicts."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from llava_tools.data.images import decode_image
from llava_tools.eval.benchmark import Question, Verdict
from llava_tools.eval.boxes import Box
from llava_tools.eval.pictures import Picture
from llava_tools.eval.tsv import Table

SIDE = 448  # pixels of a picture's longer side
STATES = ("right", "wrong", "undecided", "missing")


@dataclass(frozen=True)
class ShownRow:
    """A question with its answer, None where there is none, and what became of it."""

    question: Question
    answer: str | None
    verdict: Verdict

    @property
    def state(self) -> str:
        """One of STATES."""
        if self.answer is None:
            return "missing"
        if self.verdict.choice is None and not self.verdict.correct:
            return "undecided"
        return "right" if self.verdict.correct else "wrong"


class Pictures:
    """The pictures of a page: each is in it once, however many rows show it."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.sizes: dict[str, tuple[str, int, int]] = {}  # key -> id, width, height
        self.made: list[str] = []

    def show(self, picture: Picture, boxes: tuple[Box, Box | None] | None) -> str:
        """Return a figure of the picture, the right box and the answer's drawn over it.

        Boxes are in fractions of the sides. Raises UserError for a picture that cannot be decoded.
        """
        if picture.key not in self.sizes:
            self._make(picture)
        name, width, height = self.sizes[picture.key]
        drawn = caption = ""
        if boxes is not None:
            drawn = "".join(
                f'<rect class="{kind}-box{under}" {_place(box, width, height)}/>'
                for kind, box in zip(("gold", "said"), boxes, strict=True)
                if box is not None
                for under in (" under", "")
            )
            caption = f"<figcaption>{_key(boxes[1])}</figcaption>"
        return (
            f'<figure><svg class="picture" viewBox="0 0 {width} {height}" role="img" '
            f'aria-label="picture"><use href="#{name}"/>{drawn}</svg>{caption}</figure>'
        )

    def _make(self, picture: Picture) -> None:
        image = decode_image(self.table.picture_bytes(picture), picture.where)
        image.thumbnail((SIDE, SIDE))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=80)
        name, (width, height) = f"p{len(self.made)}", image.size
        self.sizes[picture.key] = name, width, height
        self.made.append(
            f'<image id="{name}" width="{width}" height="{height}" href="data:image/jpeg;base64,'
            f'{base64.b64encode(buffer.getvalue()).decode()}"/>'
        )

    def definitions(self) -> str:
        """Return the element, itself unseen, that holds what the figures show."""
        return (
            '<svg width="0" height="0" style="position:absolute" aria-hidden="true">'
            f"<defs>{''.join(self.made)}</defs></svg>"
        )


def _place(box: Box, width: int, height: int) -> str:
    (left, right), (top, bottom) = sorted(box[::2]), sorted(box[1::2])
    sizes = {"x": left * width, "y": top * height}
    sizes |= {"width": (right - left) * width, "height": (bottom - top) * height}
    return " ".join(f'{name}="{value:.1f}"' for name, value in sizes.items())


def _key(said: Box | None) -> str:
    """Return what the lines mean."""
    right = '<span class="key"></span>right'
    if said is None:
        return f"{right}; the answer has no box"
    outside = any(max(ends) < 0 or min(ends) > 1 for ends in (said[::2], said[1::2]))
    where = ", outside the picture" if outside else ""
    return f'{right}<span class="key said"></span>the answer\'s{where}'


def article(
    row: ShownRow,
    pictures: Pictures,
    categories: Sequence[str],
    boxes: tuple[Box, Box | None] | None = None,
) -> str:
    """Return a row; its classes are its state and the place of its category.

    `boxes` are the right one and the answer's, to draw over its pictures.
    """
    question, cells = row.question, row.question.row.cells
    place = f" c{categories.index(question.category)}" if question.category else ""
    bare = "" if question.pictures else " bare"
    asked = "\n".join(filter(None, map(cells.get, ("hint", "question"))))
    options = "".join(
        f"<li{' class=gold' if letter == question.answer else ''}><b>{escape(letter)}.</b> "
        f"{escape(text)}</li>"
        for letter, text in question.options.items()
    )
    images = "".join(pictures.show(picture, boxes) for picture in question.pictures)
    names = " · ".join(filter(None, (str(question.index), question.category)))
    return (
        f'<article class="{row.state}{place}{bare}">{f"<div>{images}</div>" if images else ""}<div>'
        f'<div class="note">{escape(names)}</div><pre dir="auto">{escape(asked)}</pre>'
        f"{f'<ul>{options}</ul>' if options else ''}"
        f'<pre class="answer" dir="auto">{escape((row.answer or "").strip())}</pre>'
        f'<div class="verdict">{escape(_said(row))}</div></div></article>'
    )


def _said(row: ShownRow) -> str:
    """Return the verdict as a sentence."""
    verdict, gold = row.verdict, row.question.answer
    points = "" if verdict.points is None else f", {verdict.points:.2f} points"
    if row.state in ("missing", "undecided"):
        return f"{row.state}: right is {gold}{points}"
    if row.state == "right" and verdict.choice == gold:
        return f"right: {gold}{points}"
    return f"{row.state}: read as {verdict.choice}, right is {gold}{points}"
