"""From answers to the report: scores or a submission, the files of a work dir, the printed table.

llava-tools eval score mmbench predictions.xlsx --data-path MMBench_DEV_EN.tsv
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

import llava_tools
from llava_tools.backends.request import Backend
from llava_tools.errors import UserError
from llava_tools.eval.benchmark import (
    Benchmark,
    Part,
    Question,
    Scores,
    check_protocol,
    get_benchmark,
    spread,
)
from llava_tools.eval.predictions import Predictions, check_match, read_predictions
from llava_tools.eval.sheets import Cell, write_csv, write_xlsx
from llava_tools.eval.sources import open_table
from llava_tools.eval.tsv import Table
from llava_tools.whole_files import write_json

# What scores.json holds: the metrics, tables of groups, `splits`, `counts`, `data`, `run`, ...
Report = dict[str, Any]
PARTS = {"benchmark", "metrics", "protocol", "scored", "data", "predictions", "run", "counts"}


def score_file(
    benchmark: str,
    predictions: str | Path,
    data_path: str | Path,
    protocol: str | None = None,
    work_dir: str | Path | None = None,
    answers: str | Path | None = None,
    judge: Backend | None = None,
) -> Report:
    """Score a prediction file of ours or of another kit, without a model.

    `answers` is a file of right answers, for questions without. A `judge` reads the answers that
    the rule leaves undecided. Files are written only with `work_dir`. Raises UserError when the
    predictions are not readable or answer other questions, and when the judge gives up.
    """
    chosen = get_benchmark(benchmark)
    protocol = check_protocol(chosen, protocol or chosen.protocols[0])
    table = open_table(chosen, data_path, answers=answers, images=False)
    found = read_predictions(predictions, table.rows)
    questions = [chosen.question(row, asked_as(chosen, found, protocol)) for row in table.rows]
    folder = Path(work_dir) if work_dir is not None else None
    return finish(chosen, table, questions, found, protocol, folder, judge)


def asked_as(benchmark: Benchmark, found: Predictions, otherwise: str) -> str:
    """Return the protocol in whose words the predictions were asked for, as our files say.

    Raises UserError for that of another benchmark.
    """
    asked = str(found.header.get("asked_as", otherwise))
    if asked not in benchmark.protocols:
        raise UserError(
            f"'{found.path}' was asked for as '{asked}', which is no protocol of "
            f"'{benchmark.name}'.",
            "It holds the answers to another benchmark.",
        )
    return asked


def can_score(questions: Sequence[Question]) -> bool:
    """Return whether every question has its answer; the TEST files have none."""
    return all(question.answer is not None for question in questions)


def finish(
    benchmark: Benchmark,
    table: Table,
    questions: Sequence[Question],
    found: Predictions,
    protocol: str,
    folder: Path | None,
    judge: Backend | None = None,
) -> Report:
    """Score the predictions, or prepare the submission where answers are missing; write both."""
    check_match(found, questions, table.path)
    report: Report = {
        "benchmark": benchmark.name,
        "metrics": dict(benchmark.metrics),
        "protocol": protocol,
        "scored": can_score(questions),
        "data": {
            "path": str(table.path),
            "md5": table.md5,
            "published_as": benchmark.published.get(table.md5),
        },
        "predictions": str(found.path),
        "run": {**found.header.get("fingerprint", {}), **_info(found.header)} or None,
        "llava_tools": llava_tools.__version__,
    }
    if not report["scored"]:
        _refuse_judge(judge, table)
        return _submission(benchmark, questions, found, report, folder)
    scores = benchmark.score(questions, found.answers, protocol)
    if judge is not None:
        from llava_tools.eval.judge import judge as ask

        given = (questions, found.answers, scores, protocol)
        scores, report["judge"] = ask(judge, benchmark, *given)
    report |= _as_dict(scores.all)
    report |= _spread(benchmark, scores, questions, protocol)
    report["splits"] = {
        name: _as_dict(part) | _spread(benchmark, scores, questions, protocol, name)
        for name, part in scores.splits.items()
    }
    report["counts"] = dict(scores.counts)
    if folder is not None:
        _write_scores(folder, table, questions, found, scores, report)
    return report


def _refuse_judge(judge: Backend | None, table: Table) -> None:
    if judge is not None:
        raise UserError(
            f"'{table.path}' has rows without an answer: there is nothing to judge.",
            "Leave --judge out; the benchmark's server scores the submission.",
        )


def _spread(
    benchmark: Benchmark,
    scores: Scores,
    questions: Sequence[Question],
    protocol: str,
    split: str = "",
) -> dict[str, Any]:
    found, how = spread(benchmark, scores, questions, protocol, split)
    return {"intervals": {k: list(v) for k, v in found.items()}, "intervals_by": how}


def _info(header: Mapping[str, Any]) -> dict[str, Any]:
    return {key: header[key] for key in header if key not in ("fingerprint", "llava_tools")}


def _as_dict(part: Part) -> dict[str, Any]:
    groups = {name: {k: dict(v) for k, v in group.items()} for name, group in part.groups.items()}
    return {**part.overall, **groups}


def _submission(
    benchmark: Benchmark,
    questions: Sequence[Question],
    found: Predictions,
    report: Report,
    folder: Path | None,
) -> Report:
    """Write the sheet that the benchmark's server takes: raw answers to every row, no pictures."""
    answered = sum(question.index in found.answers for question in questions)
    report["counts"] = {
        "rows": len(questions),
        "answered": answered,
        "missing": len(questions) - answered,
        "rows_without_answer": sum(question.answer is None for question in questions),
    }
    if folder is not None:
        names = benchmark.submission_columns or ("index", "question")
        extra = {letter for q in questions for letter in q.options} - set(names)
        options = [place for place, name in enumerate(names, 1) if len(name) == 1]
        last = options[-1] if options else len(names)
        columns = (*names[:last], *sorted(extra), "prediction", *names[last:], "answer")
        rows = (_sheet_row(question, found) for question in questions)
        report["submission"] = str(write_xlsx(folder / "submission.xlsx", columns, rows))
        write_json(folder / "submission.json", report)
    return report


def _sheet_row(question: Question, found: Predictions) -> dict[str, Cell]:
    cells = {"index": question.index, "prediction": found.answers.get(question.index)}
    return {**question.row.cells, **cells}


def _write_scores(
    folder: Path,
    table: Table,
    questions: Sequence[Question],
    found: Predictions,
    scores: Scores,
    report: Report,
) -> None:
    columns = [name for name in table.columns if name != "image"]
    rows = (
        _sheet_row(question, found) | {"choice": verdict.choice, "correct": verdict.correct}
        for question in questions
        for verdict in [scores.verdicts[question.index]]
    )
    write_xlsx(folder / "predictions.xlsx", [*columns, "prediction", "choice", "correct"], rows)
    lines = list(_csv_rows(scores, report))
    write_csv(folder / "scores.csv", list(lines[0]), lines)
    write_json(folder / "scores.json", report)


def _csv_rows(scores: Scores, report: Report) -> Iterator[dict[str, Cell]]:
    source = {"protocol": report["protocol"], "data_md5": report["data"]["md5"]}
    for split, part in (("all", scores.all), *scores.splits.items()):
        yield {"split": split, "group": "overall", "name": "", **part.overall, **source}
        for group, members in part.groups.items():
            for name, metrics in members.items():
                yield {"split": split, "group": group, "name": name, **metrics, **source}


def load_report(folder: str | Path) -> Report:
    """Return the report in an evaluation's work dir. Raises UserError for none or a broken one."""
    for name in ("scores.json", "submission.json"):
        path = Path(folder) / name
        if path.is_file():
            return _read_report(path)
    raise UserError(
        f"'{folder}' holds no scores.json.", "Give the work dir of a finished evaluation."
    )


def _read_report(path: Path) -> Report:
    try:
        report = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError:
        report = None
    if not isinstance(report, dict) or not PARTS <= report.keys():
        raise UserError(
            f"'{path}' is no report of an evaluation.",
            "Run the evaluation again, or eval score with --work-dir: the answers are kept.",
        )
    return report
