"""Prediction files of LLaVA, lmms-eval and others give the score that ours gives."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from llava_tools.errors import UserError
from llava_tools.eval.report import score_file
from tests.eval import tables
from tests.eval.cases import CASES, MME_END, write_case
from tests.eval.test_report import predicted, sheet
from tests.jsonl import write

SHORT = "\nAnswer the question using a single word or phrase."


def rows_of(data: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(data.open(), delimiter="\t"))


def llava(row: dict[str, str], said: str) -> dict[str, Any]:
    return {"question_id": row["index"], "prompt": row["question"] + SHORT, "text": said,
            "answer_id": "x", "model_id": "m", "metadata": {}}  # fmt: skip


def lmms(row: dict[str, str], said: str) -> dict[str, Any]:
    doc = {"index": row["index"], "question": row["question"], "category": row.get("category")}
    return {"doc_id": 99, "doc": doc, "target": row["answer"], "resps": [[said]],
            "filtered_resps": [said]}  # fmt: skip


@pytest.mark.parametrize("name", ["mme", "pope", "gqa", "seed"])
def test_five_kits_files_give_one_score(tmp_path: Path, name: str) -> None:
    data = write_case(tmp_path, name)
    pairs = list(zip(rows_of(data), CASES[name].said, strict=True))
    asked = [{**row, "prediction": said} for row, said in pairs]
    files = [
        sheet(tmp_path / "vlmevalkit.xlsx", asked),
        sheet(tmp_path / "xtuner.xlsx", [{k: r[k] for k in ("question", "prediction", "index")}
                                         for r in asked]),
        write(tmp_path / "llava.jsonl", *(llava(*pair) for pair in pairs[::-1])),
        write(tmp_path / "lmms.jsonl", *(lmms(*pair) for pair in pairs)),
        tmp_path / "plain.json",
    ]  # fmt: skip
    files[-1].write_text(json.dumps({row["index"]: said for row, said in pairs}))
    reports = [score_file(name, path, data) for path in files]
    first = next(iter(reports[0]["metrics"]))
    assert len({report[first] for report in reports}) == 1
    assert all(report["counts"] == reports[0]["counts"] for report in reports)
    assert reports[0][first] == pytest.approx(CASES[name].scores[reports[0]["protocol"]][first])


def test_mmes_results_a_file_a_task(tmp_path: Path) -> None:
    data, folder = write_case(tmp_path, "mme"), tmp_path / "results"
    folder.mkdir()
    for row, said in list(zip(rows_of(data), CASES["mme"].said, strict=True))[::-1]:
        fields = [Path(row["image_path"]).name, row["question"].removesuffix(" " + MME_END),
                  row["answer"], said]  # fmt: skip
        path = folder / f"{row['category']}.txt"
        with path.open("a", encoding="utf-8" if path.exists() else "utf-8-sig") as file:
            file.write("\t".join(fields) + "\u2028\t\n")  # separators that end no answer
    report = score_file("mme", folder, data)
    wanted = CASES["mme"].scores["llava"]
    assert {name: report[name] for name in wanted} == pytest.approx(wanted)
    assert score_file("mme", folder / "OCR.txt", data)["counts"]["missing"] == 6
    (folder / "count.txt").write_text("1.jpg\tIs it red?\tYes\n")
    with pytest.raises(UserError, match="count.txt', line 1 has 3 fields"):
        score_file("mme", folder, data)
    (folder / "count.txt").write_text("9.jpg\tIs it red?\tYes\tyes\n")
    with pytest.raises(UserError, match="line 1: the answer belongs to no question"):
        score_file("mme", folder, data)


@pytest.mark.parametrize("name", ["GPT-4V.json", "GPT-4V.jsonl"])
def test_lines_with_commas_behind_as_seeds_authors_publish_them(tmp_path: Path, name: str) -> None:
    data, path = write_case(tmp_path, "seed"), tmp_path / name
    records = [
        {"question_id": row["index"], "prediction": said, "gt_answer": row["answer"]}
        for row, said in zip(rows_of(data), CASES["seed"].said, strict=True)
    ]
    path.write_text("".join(json.dumps(record) + ",\n" for record in records))
    assert score_file("seed", path, data, "lmms-eval")["accuracy"] == 0.5


def test_mmbench_from_llavas_answers(tmp_path: Path, data: Path) -> None:
    records = [{"question_id": r["index"], "prompt": r["question"], "text": r["prediction"]}
               for r in predicted(tables.small())]  # fmt: skip
    report = score_file("mmbench", write(tmp_path / "a.jsonl", *records), data)
    assert report["circular"] == pytest.approx(4 / 6)


BAD = [
    ([{"question_id": 99, "text": "A"}], "record 1: the answer to '99' belongs to no question"),
    ([{"question_id": 1, "prompt": "What else?", "text": "A"}], "'1' belongs to no question"),
    ([{"question_id": 1, "text": None}], "record 1 holds no answer but None"),
    ([{"doc_id": 1, "resps": [[]]}], r"record 1 holds no answer but \[\]"),
    ([{"text": "A"}, {"text": "B"}], "record 1 names no question"),
    ([{"question_id": 1, "text": "A"}] * 2, "answers index 1 twice"),
]


@pytest.mark.parametrize(("records", "message"), BAD)
def test_strange_records_are_named(
    tmp_path: Path, data: Path, records: list[Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        score_file("mmbench", write(tmp_path / "a.jsonl", *records), data)
    with pytest.raises(UserError, match="line 2 is no JSON"):
        (tmp_path / "b.jsonl").write_text('{"question_id": 1, "text": "A"}\n{"question_id": 2, "te')
        score_file("mmbench", tmp_path / "b.jsonl", data)
