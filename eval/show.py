"""Reports on stdout: one evaluation as a table, or several side by side."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from llava_tools.eval.report import Report

ALWAYS_COUNTED = ("undecided", "missing")
WIDEST = 400  # columns


def show(report: Report, *, as_json: bool = False) -> None:
    """Print one report: as a table for people, or as one JSON object."""
    if as_json:
        sys.stdout.write(orjson.dumps(report, option=orjson.OPT_INDENT_2).decode() + "\n")
        return
    console = _console()
    if report["scored"]:
        console.print(_scores(report))
    elif "submission" in report:
        console.print(f"The data has no answers: upload {report['submission']} to have it scored.")
    else:
        console.print("The data has no answers: give a work dir to write the submission to.")
    for line in footnotes(report):
        console.print(line, style="dim")


def show_all(reports: Sequence[Report], *, as_json: bool = False) -> None:
    """Print several reports, one a row; a metric that a benchmark lacks is blank."""
    if as_json:
        sys.stdout.write(orjson.dumps(reports, option=orjson.OPT_INDENT_2).decode() + "\n")
        return
    metrics = {name: heading for report in reports for name, heading in report["metrics"].items()}
    table = Table("Benchmark", "Data", "Model", "Protocol", *metrics.values(), "Undecided")
    for report in reports:
        table.add_row(
            report["benchmark"],
            _data_name(report),
            _model_name(report),
            report["protocol"],
            *(
                _value(report, name, metrics) if name in report["metrics"] else ""
                for name in metrics
            ),
            str(report["counts"].get("undecided", "")),
        )
    _console().print(table)


def show_comparison(found: Mapping[str, Any], *, as_json: bool = False, most: int = 20) -> None:
    """Print the scores by every protocol, and the first disagreements, each with its index."""
    if as_json:
        sys.stdout.write(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode() + "\n")
        return
    console, metrics = _console(), found["metrics"]
    table = Table("Protocol", *metrics.values(), "Undecided", "Missing", title=found["benchmark"])
    for name, scores in found["protocols"].items():
        counts = [str(scores["counts"][key]) for key in ALWAYS_COUNTED]
        table.add_row(name, *(_value(scores, metric, metrics) for metric in metrics), *counts)
    console.print(table)
    disagreements = found["disagreements"]
    console.print(f"The rules disagree on {len(disagreements)} answers.")
    for item in disagreements[:most]:
        read = ", ".join(f"{name}: {item[name]}" for name in found["protocols"])
        console.print(f"  {item['index']}: {item['prediction']!r:.60} -> {read}", markup=False)
    if len(disagreements) > most:
        console.print(f"  ... {len(disagreements) - most} more: --out FILE, or --json.")


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
    for name, bounds in report.get("intervals", {}).items():
        if name in report["metrics"]:
            low, high = (_value({name: bound}, name, report["metrics"]) for bound in bounds)
            lines.append(f"{report['metrics'][name]}: 95% from {low} to {high}.")
    if report.get("intervals_by", "Wilson") != "Wilson":
        lines.append(f"Intervals: {report['intervals_by']}.")
    judge = report.get("judge")
    if judge:
        lines.append(
            f"The judge {judge['by']} read {judge['decided']} of {judge['asked']} undecided answers"
            f", {judge['none_of_them']} of them as none of the options."
        )
    run = report["run"]
    if run:
        keys = ("prompt_template", "dtype", "max_new_tokens")
        template, dtype, tokens = (run.get(key, "unknown") for key in keys)
        lines.append(
            f"Model {_model_name(report)}: template {template}, {dtype}, greedy, "
            f"at most {tokens} tokens."
        )
    return lines


def _console() -> Console:
    """Return where answers go; in a file or pipe a table is as wide as it needs to be."""
    width = None if sys.stdout.isatty() else WIDEST
    return Console(highlight=False, soft_wrap=True, width=width)


def _model_name(report: Report) -> str:
    run = report["run"] or {}
    blank = ", blank images" if run.get("blank_images") else ""
    return f"{run.get('model', report['predictions'])}{blank}"


def _data_name(report: Report) -> str:
    return str(report["data"]["published_as"] or report["data"]["path"])


def _scores(report: Report) -> Table:
    metrics = report["metrics"]
    table = Table("", *metrics.values(), "Questions", title=report["benchmark"])
    splits = report["splits"]
    parts = {"": report} if len(splits) < 2 else {"": report, **splits}
    for split, part in parts.items():
        _add(table, " ".join(filter(None, ("Overall", split))), part, metrics, bold=True)
        for group in ("l2_category", "category"):
            for name, values in part.get(group, {}).items():
                _add(table, f"  {name}", values, metrics)
            table.add_section()
    return table


def _add(
    table: Table,
    name: str,
    values: Mapping[str, Any],
    metrics: Mapping[str, str],
    *,
    bold: bool = False,
) -> None:
    shown = (_value(values, metric, metrics) for metric in metrics)
    table.add_row(name, *shown, str(values["questions"]), style="bold" if bold else "")


def _value(values: Mapping[str, Any], metric: str, metrics: Mapping[str, str]) -> str:
    """Return a number as people read it: a fraction in percent where the heading says so."""
    value = values.get(metric)
    if value is None:
        return "n/a"
    return f"{100 * value:.1f}" if metrics[metric].endswith("%") else f"{value:.1f}"
