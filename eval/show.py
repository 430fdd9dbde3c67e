"""Reports on stdout: one evaluation as a table, or several side by side."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from llava_tools.eval.report import Report

METRICS = {"circular": "Circular %", "vanilla": "Vanilla %"}
ALWAYS_COUNTED = ("undecided", "missing")


def show(report: Report, *, as_json: bool = False) -> None:
    """Print one report: as a table for people, or as one JSON object."""
    if as_json:
        sys.stdout.write(orjson.dumps(report, option=orjson.OPT_INDENT_2).decode() + "\n")
        return
    console = Console(highlight=False, soft_wrap=True)
    if report["scored"]:
        console.print(_scores(report))
    elif "submission" in report:
        console.print(f"The data has no answers: upload {report['submission']} to have it scored.")
    else:
        console.print("The data has no answers: give a work dir to write the submission to.")
    for line in footnotes(report):
        console.print(line, style="dim")


def show_all(reports: Sequence[Report], *, as_json: bool = False) -> None:
    """Print several reports, one a row."""
    if as_json:
        sys.stdout.write(orjson.dumps(reports, option=orjson.OPT_INDENT_2).decode() + "\n")
        return
    columns = ("Benchmark", "Data", "Model", "Protocol", *METRICS.values(), "Undecided")
    table = Table(*columns)
    for report in reports:
        table.add_row(
            report["benchmark"],
            _data_name(report),
            str((report["run"] or {}).get("model", report["predictions"])),
            report["protocol"],
            *(_percent(report.get(metric)) for metric in METRICS),
            str(report["counts"].get("undecided", "")),
        )
    Console(highlight=False, soft_wrap=True).print(table)


def footnotes(report: Report) -> list[str]:
    """Return the lines that say what a number rests on."""
    counts = ", ".join(
        f"{key.replace('_', ' ')} {value}"
        for key, value in report["counts"].items()
        if value or key in ALWAYS_COUNTED
    )
    lines = [
        f"Protocol {report['protocol']}; data {_data_name(report)}, md5 {report['data']['md5']}.",
        f"Counts: {counts}.",
    ]
    run = report["run"]
    if run:
        tokens, blank = run["max_new_tokens"], ", blank images" if run["blank_images"] else ""
        lines.append(
            f"Model {run['model']}: template {run['prompt_template']}, {run['dtype']}, "
            f"greedy, at most {tokens} tokens{blank}."
        )
    return lines


def _data_name(report: Report) -> str:
    return str(report["data"]["published_as"] or report["data"]["path"])


def _scores(report: Report) -> Table:
    table = Table("", *METRICS.values(), "Questions", title=report["benchmark"])
    splits = report["splits"]
    parts = {"": report} if len(splits) < 2 else {"": report, **splits}
    for split, part in parts.items():
        _add(table, " ".join(filter(None, ("Overall", split))), part, bold=True)
        for group in ("l2_category", "category"):
            for name, metrics in part.get(group, {}).items():
                _add(table, f"  {name}", metrics)
            table.add_section()
    return table


def _add(table: Table, name: str, metrics: dict[str, Any], *, bold: bool = False) -> None:
    values = (_percent(metrics[metric]) for metric in METRICS)
    table.add_row(name, *values, str(metrics["questions"]), style="bold" if bold else "")


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:.1f}"
