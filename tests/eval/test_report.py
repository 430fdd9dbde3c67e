"""Scoring prediction files of all kinds, what is written, what is printed, what is refused."""

from __future__ import annotations

import csv
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openpyxl import Workbook, load_workbook

from llava_tools.errors import UserError
from llava_tools.eval.report import Report, load_report, score_file
from llava_tools.eval.show import show, show_all
from tests.eval import tables

Rows = list[dict[str, Any]]


def sheet(path: Path, rows: Rows) -> Path:
    """Write rows as pandas' to_excel does."""
    book = Workbook()
    names = list(dict.fromkeys(name for row in rows for name in row))
    book.active.append(names)
    for row in rows:
        book.active.append([row.get(name) for name in names])
    book.save(path)
    return path


def delimited(path: Path, rows: Rows) -> Path:
    return tables.write(path, rows, list(rows[0]))


def predicted(rows: Rows) -> Rows:
    """Answer every row rightly, but for the last copy of question 2 and a row left undecided."""
    wrong = {"A": "B", "B": "C", "C": "A", "D": "A"}
    answers = {row["index"]: row["answer"] for row in rows}
    answers[2_000_002] = wrong[answers[2_000_002]]
    answers[1] = "who knows"
    return [{**row, "prediction": answers[row["index"]]} for row in rows]


def pick(*names: str) -> Callable[[Rows], Rows]:
    return lambda rows: [{name: row.get(name) for name in names} for row in rows]


XTUNER = pick(*("question A B C D prediction category l2-category index split answer".split()))
VLMEVALKIT = pick(*("index question hint A B C D answer category split prediction".split()))


@pytest.mark.parametrize(
    ("name", "shape", "writer"),
    [
        ("mmbench_result.xlsx", XTUNER, sheet),
        ("model_MMBench_DEV_EN.xlsx", VLMEVALKIT, sheet),
        ("model_MMBench_DEV_EN.tsv", VLMEVALKIT, delimited),
        ("bare.csv", pick("index", "prediction"), None),
        ("floats.xlsx", lambda rows: [{**r, "index": float(r["index"])} for r in rows], sheet),
    ],
)
def test_prediction_files_of_other_kits(
    tmp_path: Path, data: Path, name: str, shape: Callable[[Rows], Rows], writer: Any
) -> None:
    path, rows = tmp_path / name, shape(predicted(tables.small()))
    if writer is None:
        lines = [",".join(rows[0]), *(f"{r['index']},{r['prediction']}" for r in rows)]
        path.write_text("\n".join(lines))
    else:
        writer(path, rows)
    report = score_file("mmbench", path, data)
    assert report["circular"] == pytest.approx(4 / 6) and report["vanilla"] == pytest.approx(5 / 6)
    assert report["counts"]["undecided"] == 1 and report["counts"]["missing"] == 0
    assert report["protocol"] == "vlmevalkit" and report["run"] is None


def test_blank_and_missing_predictions(tmp_path: Path, data: Path) -> None:
    rows = predicted(tables.small())
    rows = [{**row, "prediction": row["prediction"] if row["index"] else None} for row in rows]
    path = sheet(tmp_path / "p.xlsx", [row for row in rows if row["index"] != 3])
    counts = score_file("mmbench", path, data)["counts"]
    assert (counts["undecided"], counts["missing"], counts["answered"]) == (2, 1, 17)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.xlsx", b"PK no zip", "cannot be read as an Excel sheet"),
        ("p.tsv", b"\xff\xfe\x00", "cannot be read as a table"),
        ("p.bin", b"A", r"(?s)no prediction file.*\.jsonl, \.json.*\.xlsx"),
        ("p.txt", b"\xff", r"p.txt' is not text in UTF-8"),
        ("p.txt", b"A", r"(?s)p.txt', line 1 has 1 fields.*MME's results"),
        ("p.tsv", b"index\tprediction\n", "holds no predictions"),
        ("p.tsv", b"index\tanswer\n1\tA\n", "no column prediction; it has: index, answer"),
        ("p.tsv", b"index\tprediction\n1\tA\n1\tB\n", "answers index 1 twice"),
        ("p.jsonl", b"", "holds no predictions"),
        ("p.jsonl", b"no json\n", "does not begin with the header line"),
        ("p.jsonl", b'{"fingerprint": {"benchm', "does not begin with the header line"),
        ("p.jsonl", b'{"fingerprint": {}}', "does not begin with the header line"),
        ("p.jsonl", b'{"fingerprint": {}}\n{"index": 1}\n', "line 2: no answer of an evaluation"),
        ("p.jsonl", b'{"fingerprint": {}}\n{"ind\n{}\n', "line 2: no answer of an evaluation"),
        (
            "p.jsonl",
            b'{"fingerprint": {}}\n{"index": [1], "prediction": "A"}\n',
            "line 2: no answer",
        ),
        ("p.jsonl", b'{"fingerprint": {}}\n{"index": 1, "prediction": 5}\n', "line 2: no answer"),
        (
            "p.jsonl",
            b'{"fingerprint": {}, "asked_as": "llava"}\n{"index": 1, "prediction": "A"}\n',
            "'llava', which is no protocol of 'mmbench'",
        ),
        ("p.json", b"3", "record 1 names no question"),
        ("p.json", b"[3]", "record 1 names no question"),
        ("p.json", b'{"outputs": 3}', "holds no predictions"),
        ("p.tsv", b"index\tprediction\n99\tA\n", "index 99 is not in the data"),
        (
            "p.tsv",
            b"index\tquestion\tprediction\n1\tWhat else?\tA\n",
            "index 1 has another question",
        ),
        (
            "p.jsonl",
            b'{"fingerprint": {}}\n{"index": 1, "prediction": "A", "prompt": "0"}\n',
            "index 1 was asked another question",
        ),
    ],
)
def test_prediction_files_that_are_refused(
    tmp_path: Path, data: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        score_file("mmbench", path, data)
    assert name in error.value.message and error.value.hint


def test_a_missing_prediction_file_is_named(tmp_path: Path, data: Path) -> None:
    with pytest.raises(UserError, match="no file '.*absent.xlsx'"):
        score_file("mmbench", tmp_path / "absent.xlsx", data)


@pytest.fixture
def scored(tmp_path: Path, data: Path) -> tuple[Report, Path]:
    path = sheet(tmp_path / "p.xlsx", predicted(tables.small()))
    return score_file("mmbench", path, data, "vlmevalkit", tmp_path / "out"), tmp_path / "out"


def test_what_is_written(scored: tuple[Report, Path]) -> None:
    report, out = scored
    assert sorted(os.listdir(out)) == ["predictions.xlsx", "scores.csv", "scores.json"]
    assert load_report(out) == json.loads((out / "scores.json").read_text()) == report
    assert report["l2_category"]["LR"]["questions"] == 3
    assert report["splits"]["dev"]["circular"] == report["circular"]
    lines = list(csv.DictReader((out / "scores.csv").open()))
    assert lines[0]["split"] == "all" and float(lines[0]["circular"]) == report["circular"]
    assert {line["protocol"] for line in lines} == {"vlmevalkit"}
    assert {line["data_md5"] for line in lines} == {report["data"]["md5"]}
    rows = list(load_workbook(out / "predictions.xlsx").active.values)
    assert rows[0] == (
        *(name for name in tables.COLUMNS if name != "image"),
        *("prediction", "choice", "correct"),
    )
    assert [row[0] for row in rows[1:]] == [row["index"] for row in tables.small()]
    undecided = next(row for row in rows[1:] if row[0] == 1)
    assert undecided[-3:] == ("who knows", None, False)


def test_our_sheet_scores_like_its_source(scored: tuple[Report, Path], data: Path) -> None:
    report, out = scored
    again = score_file("mmbench", out / "predictions.xlsx", data)
    assert again["circular"] == report["circular"] and again["counts"] == report["counts"]


def unanswered(tmp_path: Path, drop: int = 10**9) -> Path:
    """Write the table without the answers of its first `drop` rows."""
    rows = [{**r, "answer": "" if i < drop else r["answer"]} for i, r in enumerate(tables.small())]
    return tables.write(tmp_path / "test.tsv", rows)


def test_data_without_answers_becomes_a_submission(tmp_path: Path) -> None:
    rows = predicted(tables.small())
    rows[0]["prediction"], rows[1]["prediction"] = "=1+1", "#N/A"
    path = delimited(tmp_path / "p.tsv", rows)
    report = score_file("mmbench", path, unanswered(tmp_path), work_dir=tmp_path / "out")
    assert not report["scored"] and "circular" not in report
    assert sorted(os.listdir(tmp_path / "out")) == ["submission.json", "submission.xlsx"]
    written = list(load_workbook(report["submission"]).active.iter_rows())
    header = [cell.value for cell in written[0]]
    assert header == "index question A B C D prediction category l2-category split answer".split()
    found = [dict(zip(header, (c.value for c in row), strict=True)) for row in written[1:]]
    assert [f["index"] for f in found] == [row["index"] for row in rows]
    assert [f["prediction"] for f in found] == [row["prediction"] for row in rows]
    assert {cell.data_type for row in written[1:] for cell in row} <= {"s", "n"}
    assert all(f["answer"] is None for f in found)


def test_data_with_some_answers_is_not_scored(tmp_path: Path, capsys: Any) -> None:
    path = delimited(tmp_path / "p.tsv", predicted(tables.small()))
    report = score_file("mmbench", path, unanswered(tmp_path, drop=2))
    assert not report["scored"] and report["counts"]["rows_without_answer"] == 2
    show(report)
    assert "rows without answer 2" in capsys.readouterr().out


def test_answers_published_later_score_old_predictions(tmp_path: Path, data: Path) -> None:
    path = delimited(tmp_path / "p.tsv", predicted(tables.small()))
    out = tmp_path / "out"
    score_file("mmbench", path, unanswered(tmp_path), work_dir=out)
    assert score_file("mmbench", out / "submission.xlsx", data)["circular"] == pytest.approx(4 / 6)


def test_control_characters_do_not_stop_the_sheets(tmp_path: Path, data: Path) -> None:
    path = tmp_path / "p.tsv"
    path.write_text("index\tprediction\n0\tA\x0b\x01\n")
    score_file("mmbench", path, data, work_dir=tmp_path / "out")
    rows = load_workbook(tmp_path / "out" / "predictions.xlsx").active.values
    assert "A" in next(row for row in rows if row[0] == 0)


def test_a_full_disk_leaves_the_old_files(
    scored: tuple[Report, Path], tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="Cannot write '.*predictions.xlsx': No space left"):
        score_file("mmbench", tmp_path / "p.xlsx", data, "xtuner", tmp_path / "out")
    assert load_report(scored[1])["protocol"] == "vlmevalkit"
    assert not list(scored[1].glob(".*"))


def test_the_printed_table(scored: tuple[Report, Path], capsys: Any) -> None:
    report, _ = scored
    show(report)
    text = capsys.readouterr().out
    for part in ("Overall", "66.7", "83.3", "LR", "kind 1", "Protocol vlmevalkit", "undecided 1"):
        assert part in text
    assert report["data"]["md5"] in text
    show(report, as_json=True)
    assert json.loads(capsys.readouterr().out) == report


def test_several_reports_side_by_side(scored: tuple[Report, Path], capsys: Any) -> None:
    unscored = {**scored[0], "scored": False, "circular": None, "protocol": "xtuner"}
    show_all([scored[0], unscored])
    text = capsys.readouterr().out
    assert "66.7" in text and "n/a" in text and "xtuner" in text
    show_all([scored[0]], as_json=True)
    assert json.loads(capsys.readouterr().out) == [scored[0]]


def test_a_piped_table_is_as_wide_as_its_names(scored: tuple[Report, Path], capsys: Any) -> None:
    run = {"model": "a/model/with/a/long/path/" * 4, "blank_images": True}
    show_all([{**scored[0], "run": run}])
    assert f"{run['model']}, blank images" in capsys.readouterr().out


def test_a_run_of_which_little_is_known_is_shown(scored: tuple[Report, Path], capsys: Any) -> None:
    show({**scored[0], "run": {"benchmark": "mmbench", "blank_images": True}})
    text = capsys.readouterr().out
    assert f"Model {scored[0]['predictions']}, blank images: template unknown" in text


def test_a_sheet_that_cannot_be_written_is_not_begun(
    scored: tuple[Report, Path], tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A book that was begun and never saved prints a traceback when it is collected."""
    monkeypatch.setattr("llava_tools.eval.sheets.Workbook", None)
    with pytest.raises(UserError, match="Cannot write '.*predictions.xlsx'"):
        score_file("mmbench", tmp_path / "p.xlsx", data, work_dir=data)


def test_a_folder_without_a_report_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no scores.json"):
        load_report(tmp_path)
    for text in ('{"scored": tr', "[]", "{}"):
        (tmp_path / "scores.json").write_text(text)
        with pytest.raises(UserError, match="scores.json' is no report of an evaluation"):
            load_report(tmp_path)
