"""Results of language models as tables and a picture: `eval lm-report A.json B.json`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from llava_tools.errors import UserError
from llava_tools.whole_files import beside

HEADERS = ("Tasks", "Version", "Filter", "n-shot", "Metric", "", "Value", "", "Stderr")


def read(path: Path) -> dict[str, Any]:
    """Return a results file, or that of a work dir. Raises UserError when there is none."""
    file = path / "results.json" if path.is_dir() else path
    try:
        report = orjson.loads(file.read_bytes())
        numbers = [float(value) for value in report["scores"].values() if value is not None]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"'{file}' is no result of `eval lm`.", "Give a results.json, or its folder."
        ) from error
    if any(not 0 <= number <= 1 for number in numbers):
        raise UserError(f"'{file}' has a score outside 0 to 1.", "Scores are fractions.")
    assert isinstance(report, dict)
    return report


def average(scores: dict[str, float | None]) -> float | None:
    """Return the plain mean of the scores, None when one is missing."""
    values = [value for value in scores.values() if value is not None]
    return sum(values) / len(values) if values and len(values) == len(scores) else None


def compared(reports: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of `summary` for scripts, as fractions. Raises UserError as it does."""
    summary(reports)
    return [
        {"model": _name(report), "average": average(report["scores"]), "scores": report["scores"]}
        for report in reports
    ]


def summary(reports: Sequence[dict[str, Any]]) -> str:
    """Return one row a model in markdown: the average and every score, times 100.

    Raises UserError when the results have no common columns.
    """
    titles = list(reports[0]["scores"])
    if not titles or any(list(report["scores"]) != titles for report in reports):
        raise UserError(
            "These results have no common table.", "Give results of one preset, the base first."
        )
    lines = [_line(["Model", "Avg", *titles]), _line(["---"] * (len(titles) + 2))]
    for report in reports:
        values = [average(report["scores"]), *report["scores"].values()]
        lines.append(_line([_name(report), *map(percent, values)]))
    return "\n".join(lines)


def percent(value: float | None) -> str:
    """Return a fraction times 100 with two decimals, `n/a` for none."""
    return "n/a" if value is None else f"{100 * value:.2f}"


def _name(report: dict[str, Any]) -> str:
    run = report.get("run") or {}
    kind = f"{run['bits']} bit {run.get('quant_type') or ''}".strip() if run.get("bits") else ""
    name = Path(str(report.get("model", ""))).name
    return f"{name} ({kind})" if kind else name


def details(report: dict[str, Any]) -> str:
    """Return every metric of every task under lm-eval's headers, in markdown."""
    return "\n".join(
        [_line(HEADERS), _line(["---"] * len(HEADERS)), *(_line(row) for row in _rows(report))]
    )


def _rows(report: dict[str, Any]) -> Iterator[Sequence[str]]:
    for task, metrics in report["results"].items():
        for key, value in metrics.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = metrics.get(f"{metric}_stderr,{filtered}")
            better = report["higher_is_better"].get(task, {}).get(metric)
            yield (
                task,
                str(report["versions"].get(task, "")),
                filtered,
                str(report["n-shot"].get(task, "")),
                metric,
                {True: "↑", False: "↓"}.get(better, ""),
                f"{value:.4f}",
                "±",
                f"{error:.4f}" if isinstance(error, int | float) else "N/A",
            )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def plot(reports: Sequence[dict[str, Any]], path: Path) -> Path:
    """Draw the scores of several models side by side as a PNG."""
    from matplotlib.figure import Figure

    titles = list(reports[0]["scores"])
    figure = Figure(figsize=(1.4 * len(titles) + 2, 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(reports)
    for index, report in enumerate(reports):
        places = [position + index * width for position in range(len(titles))]
        heights = [100 * (value or 0.0) for value in report["scores"].values()]
        bars = axes.bar(places, heights, width, label=_name(report))
        axes.bar_label(bars, fmt="%.1f", fontsize=7)
    middle = 0.4 - width / 2
    axes.set_xticks([position + middle for position in range(len(titles))], titles)
    axes.set_ylabel("score × 100")
    figure.legend(loc="outside upper center", ncols=2)  # beside the bars, not over them
    with beside(path) as partial:
        figure.savefig(partial, format="png")
    return path
