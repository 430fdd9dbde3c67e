"""Two models on one benchmark: who is better, and whether that is more than chance.

llava-tools eval compare-runs DIR DIR        # work dirs of one benchmark, or of a suite
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llava_tools.errors import UserError
from llava_tools.eval.intervals import mcnemar
from llava_tools.eval.pictures import Index
from llava_tools.eval.report import Report, load_report
from llava_tools.eval.scores import base_of
from llava_tools.eval.sheets import read_xlsx
from llava_tools.eval.suite import load_results

CIRCULAR = ("mmbench", "ccbench")  # whose questions have copies: right when all are


def compare_runs(first: str | Path, second: str | Path) -> dict[str, Any]:
    """Compare the finished evaluations in two work dirs, question by question.

    `p` is McNemar's: how likely so uneven a split is among the questions that one alone got right.
    Raises UserError for runs on other data or by other protocols.
    """
    reports = [load_report(folder) for folder in (first, second)]
    for name, values in _must_agree(reports).items():
        if values[0] != values[1]:
            raise UserError(
                f"'{first}' and '{second}' differ in their {name}: {values[0]} and {values[1]}.",
                "Compare runs on the same data; eval score scores by another protocol.",
            )
    rights = [_rights(Path(folder), reports[0]["benchmark"]) for folder in (first, second)]
    if rights[0].keys() != rights[1].keys():
        raise UserError(f"'{first}' and '{second}' have other rows.", "Score both again.")
    only = [
        sum(one[index] and not other[index] for index in one)
        for one, other in (rights, rights[::-1])
    ]
    return {
        "benchmark": reports[0]["benchmark"],
        "protocol": reports[0]["protocol"],
        "models": [str((r["run"] or {}).get("model", r["predictions"])) for r in reports],
        "questions": len(rights[0]),
        "right": [sum(one.values()) for one in rights],
        "only_first": only[0],
        "only_second": only[1],
        "p": mcnemar(*only),
    }


def compare_suites(first: str | Path, second: str | Path) -> dict[str, Any]:
    """Compare what two suites have both evaluated: heading -> `compare_runs`, or why there is none.

    Raises UserError for a folder that holds no suite.
    """
    cells = [load_results(folder)["cells"] for folder in (first, second)]
    found: dict[str, Any] = {}
    for heading in cells[0]:
        if heading not in cells[1]:
            continue
        places = [Path(cell[heading]["work_dir"]).name for cell in cells]
        if not all(cell[heading]["values"] for cell in cells):
            continue  # to be submitted
        try:
            found[heading] = compare_runs(Path(first) / places[0], Path(second) / places[1])
        except UserError as error:
            found[heading] = {"error": error.message}
    if not found:
        raise UserError(f"'{first}' and '{second}' have no benchmark in common.", "Evaluate more.")
    return found


def _must_agree(reports: list[Report]) -> dict[str, list[Any]]:
    return {
        "benchmark": [report["benchmark"] for report in reports],
        "protocol": [report["protocol"] for report in reports],
        "data": [report["data"]["md5"] for report in reports],
        "judge": [(report.get("judge") or {}).get("by", "none") for report in reports],
    }


def _rights(folder: Path, benchmark: str) -> dict[Index, bool]:
    """Return which questions were right, from the sheet beside the scores."""
    rights: dict[Index, bool] = {}
    for row in read_xlsx(folder / "predictions.xlsx"):
        if "correct" not in row or "index" not in row:
            raise UserError(f"'{folder}/predictions.xlsx' has no verdicts.", "Score it again.")
        index = row["index"]
        if benchmark in CIRCULAR:
            index = base_of(int(index), row.get("g_index") or "")
        rights[index] = rights.get(index, True) and bool(row["correct"])
    return rights
