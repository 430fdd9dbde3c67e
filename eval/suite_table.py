"""The results table of a suite: markdown, CSV and a radar plot, a row a model."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava_tools.errors import UserError
from llava_tools.eval.report import Report
from llava_tools.eval.suite import Column, get_suite
from llava_tools.whole_files import beside

NOT_THERE = "n/a"
TEST_ONLY = "submit"


def shown(column: Column, cell: dict[str, Any] | None) -> str:
    """Return a cell as the published table writes it: percent, or points as P/C."""
    if cell is None:
        return NOT_THERE
    if cell["values"] is None:
        return TEST_ONLY
    if len(column.metrics) > 1:
        return "/".join(f"{value:.0f}" for value in cell["values"])
    return f"{100 * cell['values'][0]:.1f}"


def columns_of(results: Sequence[Report]) -> Sequence[Column]:
    """Return the columns of the table. Raises UserError for results of different suites."""
    names = sorted({result["suite"] for result in results})
    if len(names) != 1:
        raise UserError(f"These are results of several suites: {', '.join(names)}.", "Give one's.")
    return get_suite(names[0])


def markdown(results: Sequence[Report]) -> str:
    """Return the table with a footnote for every number: protocol, data, undecided and missing."""
    columns = columns_of(results)
    notes: list[str] = []
    lines = [["Model", *(column.heading for column in columns)]]
    lines.append(["---"] * len(lines[0]))
    for result in results:
        cells = [result["model"]]
        for column in columns:
            cell = result["cells"].get(column.heading)
            cells.append(shown(column, cell) + _mark(note(column, cell), notes))
        lines.append(cells)
    table = "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)
    feet = "\n".join(f"[{number}] {text}  " for number, text in enumerate(notes, 1))
    failed = [
        f"{result['model']}, {heading}: {why}  "
        for result in results
        for heading, why in result["failed"].items()
    ]
    return "\n\n".join(filter(None, [table, feet, "\n".join(failed)])) + "\n"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _mark(text: str, notes: list[str]) -> str:
    """Return the number of a footnote, which is added where it is new."""
    if not text:
        return ""
    if text not in notes:
        notes.append(text)
    return f" [{notes.index(text) + 1}]"


def note(column: Column, cell: dict[str, Any] | None) -> str:
    """Return what a number rests on: protocol, data, split, undecided and missing answers."""
    if cell is None:
        return ""
    counts = cell["counts"]
    data = cell["data"]["published_as"] or Path(cell["data"]["path"]).name
    parts = [f"{data}, protocol {cell['protocol']}"]
    parts += [f"split {cell['split']}"] if cell["split"] else []
    parts += [f"mean of {counts['splits']} splits"] if counts.get("splits") else []
    parts += [f"{name} {counts[name]}" for name in ("undecided", "missing") if counts.get(name)]
    if column.benchmark == "textvqa" and Path(data).suffix != ".jsonl":
        parts.append("no OCR words in the prompt unless the data has them")
    if cell["submission"]:
        parts.append(f"upload {cell['submission']}")
    return "; ".join(parts)


def as_csv(results: Sequence[Report]) -> str:
    """Return one line a number: model, column, metric, value, interval, protocol, data, counts."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = "model column metric value low high protocol data md5 rows undecided missing"
    writer.writerow(names.split())
    for result in results:
        for column in columns_of(results):
            cell = result["cells"].get(column.heading)
            if cell is None or cell["values"] is None:
                continue
            known = cell.get("intervals") or [None] * len(column.metrics)
            for metric, value, bounds in zip(column.metrics, cell["values"], known, strict=True):
                low, high = bounds or ("", "")
                data, counts = cell["data"], cell["counts"]
                source = [cell["protocol"], data["path"], data["md5"]]
                numbers = [counts.get(name, "") for name in ("rows", "undecided", "missing")]
                writer.writerow([result["model"], column.heading, metric, value, low, high]
                                + source + numbers)  # fmt: skip
    return text.getvalue()


def radar(results: Sequence[Report], path: Path) -> Path:
    """Draw the columns that every model has as a radar plot (PNG), in percent of the most.

    Raises UserError for fewer than three such columns.
    """
    from math import pi, sin

    from matplotlib.figure import Figure

    columns = [
        column
        for column in columns_of(results)
        if all((r["cells"].get(column.heading) or {}).get("values") for r in results)
    ]
    if len(columns) < 3:
        raise UserError(f"A radar needs 3 columns, not {len(columns)}.", "Evaluate more.")
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes: Any = figure.add_subplot(projection="polar")  # a PolarAxes, which stubs do not know
    angles = [2 * pi * number / len(columns) for number in range(len(columns) + 1)]
    for result in results:
        values = [
            100 * sum(result["cells"][column.heading]["values"]) / column.most for column in columns
        ]
        axes.plot(angles, [*values, values[0]], label=result["model"])
        axes.fill(angles, [*values, values[0]], alpha=0.1)
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    axes.set_ylim(0, 100)
    axes.set_yticks(range(20, 101, 20), [f"{tick}" for tick in range(20, 101, 20)], fontsize=7)
    axes.set_rlabel_position(180 / len(columns))  # between two spokes, where no label is
    axes.set_xticks(angles[:-1], [""] * len(columns))
    for column, angle in zip(columns, angles, strict=False):
        side = round(sin(angle), 6)  # labels grow away from the circle
        heading = column.heading + (f" (% of {column.most:.0f})" if column.most > 1 else "")
        axes.text(angle, 106, heading, fontsize=8, va="center",
                  ha="left" if side > 0 else "right" if side < 0 else "center")  # fmt: skip
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.06), frameon=False, fontsize=8)
    with beside(path) as partial:
        figure.savefig(partial, format="png")
    return path
