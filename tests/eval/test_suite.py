"""The whole table from one command: what is found, what is printed, and runs compared."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava_tools.cli.entry import run
from llava_tools.errors import UserError
from llava_tools.eval.benchmark import get_benchmark
from llava_tools.eval.compare_runs import compare_runs
from llava_tools.eval.report import score_file
from llava_tools.eval.suite import LLAVA_TABLE, find, get_suite
from llava_tools.eval.suite_table import columns_of, radar
from tests.eval import tables
from tests.eval.cases import write_case

FILES = {"mme": "MME", "mmmu": "MMMU_DEV_VAL", "textvqa": "TextVQA_VAL", "pope": "POPE"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Made-up files under their published names, one in a folder of its own."""
    folder = tmp_path / "data"
    (folder / "vqa").mkdir(parents=True)
    for name, published in FILES.items():
        place = folder / "vqa" if name == "textvqa" else folder
        write_case(place, name).rename(place / f"{published}.tsv")
    tables.write(folder / "MMBench_DEV_EN.tsv", tables.small(2))
    rows = [{**row, "answer": ""} for row in tables.small(2)]
    tables.write(folder / "MMBench_TEST_EN.tsv", rows)
    return folder


def suite(root: Path, model: Path, work: Path, *options: Any) -> int:
    start = ["eval", "suite", "llava-table", str(model), "--data-root", str(root)]
    return run([*start, "--work-dir", str(work), "--device", "cpu", *map(str, options)])


def test_every_column_is_a_benchmark_with_its_protocol() -> None:
    for column in LLAVA_TABLE:
        benchmark = get_benchmark(column.benchmark)
        assert column.protocol in benchmark.protocols
        assert set(column.metrics) <= set(benchmark.metrics)


def test_the_table_from_one_command(
    root: Path, model_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    work = tmp_path / "work"
    files = [tmp_path / "t.md", tmp_path / "t.csv", tmp_path / "t.png"]
    options = ["--markdown", files[0], "--csv", files[1], "--radar", files[2]]
    assert suite(root, model_folder, work, *options) == 0
    text = capsys.readouterr().out
    assert text == files[0].read_text()
    head, _, row = [line.strip("| ").split(" | ") for line in text.splitlines()[:3]]
    cells = dict(zip(head, row, strict=True))
    assert list(cells)[1:] == [column.heading for column in LLAVA_TABLE]
    assert cells["GQA"] == cells["MMStar"] == "n/a"
    assert cells["MMBench Test (EN)"].startswith("submit [1]")
    scores = json.loads((work / "MME" / "scores.json").read_text())
    points = f"{scores['perception']:.0f}/{scores['cognition']:.0f}"
    assert cells["MME"].split(" [")[0] == points
    mmmu = json.loads((work / "MMMU_DEV_VAL" / "scores.json").read_text())
    wanted = 100 * mmmu["splits"]["validation"]["accuracy"]
    assert cells["MMMU Val"].split(" [")[0] == f"{wanted:.1f}"
    assert "protocol llava" in text and "split validation" in text and "submission.xlsx" in text
    lines = list(csv.DictReader(files[1].open()))
    assert {line["column"] for line in lines} == {
        *("MMBench Dev (EN)", "MMMU Val", "POPE", "TextVQA", "MME")
    }
    assert [x["metric"] for x in lines if x["column"] == "MME"] == ["perception", "cognition"]
    assert all(len(line["md5"]) == 32 for line in lines)
    drawn = Image.open(files[2]).convert("RGB").getcolors(2**20)
    assert drawn is not None and len(drawn) > 20
    assert run(["eval", "table", str(work), str(work), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2


def test_one_broken_file_does_not_stop_the_others(
    root: Path, model_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    (root / "POPE.tsv").write_text("index\timage\n")
    (root / "MMBench_TEST_EN.tsv").unlink()
    start = ["eval", str(model_folder), "--suite", "llava-table", "--data-root", str(root)]
    assert run([*start, "--work-dir", str(tmp_path / "work"), "--device", "cpu"]) == 2
    out, error = capsys.readouterr()
    assert "Not evaluated: POPE." in error and "no column question" in out
    assert "MMBench Dev (EN)" in json.loads((tmp_path / "work/results.json").read_text())["cells"]


def test_llavas_layout_is_found_with_images_and_answers(tmp_path: Path) -> None:
    for name in ("pope/val2014", "pope/coco", "scienceqa"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "pope" / "llava_pope_test.jsonl").touch()
    (tmp_path / "scienceqa" / "llava_test_CQM-A.json").touch()  # but without its images
    (one,) = find(LLAVA_TABLE, tmp_path)
    assert one.column.heading == "POPE" and one.data.name == "llava_pope_test.jsonl"
    assert one.images == tmp_path / "pope/val2014" and one.answers == tmp_path / "pope/coco"


def test_bad_input_is_named(root: Path, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(UserError, match=r"(?s)Unknown suite 'llava'.*llava-table"):
        get_suite("llava")
    assert suite(tmp_path / "none", tmp_path, tmp_path / "w") == 2
    (tmp_path / "empty").mkdir()
    assert suite(tmp_path / "empty", tmp_path, tmp_path / "w") == 2
    assert run(["eval", "table", str(tmp_path)]) == 2
    for name in ("other", "llava-table"):
        (tmp_path / "results.json").write_text(json.dumps({"suite": name}))
        assert run(["eval", "table", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    for said in ("There is no folder", "holds no benchmark file", "no results of a suite"):
        assert said in error
    with pytest.raises(UserError, match="A radar needs 3 columns, not 0"):
        radar([{"suite": "llava-table", "cells": {}, "model": ""}], tmp_path / "r.png")
    with pytest.raises(UserError, match="several suites: a, b"):
        columns_of([{"suite": "b"}, {"suite": "a"}])


def scored(tmp_path: Path, name: str, right: list[int], protocol: str = "vlmevalkit") -> Path:
    """Score a run that answers these questions of `small` (with all their copies) rightly."""
    data = tables.write(tmp_path / "small.tsv", tables.small())
    said = tmp_path / f"{name}.csv"
    wrong = {"A": "B", "B": "A", "C": "A", "D": "A"}
    lines = [
        f"{r['index']},{r['answer'] if r['index'] % 1_000_000 in right else wrong[r['answer']]}\n"
        for r in tables.small()
    ]
    said.write_text("index,prediction\n" + "".join(lines))
    score_file("mmbench", said, data, protocol, tmp_path / name)
    return tmp_path / name


def _as_suites(first: Path, second: Path) -> None:
    """Give two runs a suite each; of a second benchmark only the numbers are left."""
    cells = {
        "MMBench Dev (EN)": {"values": [0.5], "work_dir": "x/DEV"},
        "AI2D Test": {"values": [0.5], "work_dir": "x/AI2D"},
        "MMBench Test (EN)": {"values": None, "work_dir": "x/TEST"},
    }
    for work, name, has in ((first, "sa", cells), (second, "sb", cells), (first, "sc", {})):
        folder = work.parent / name
        shutil.copytree(work, folder / "DEV")
        results = {"suite": "llava-table", "model": name, "cells": has, "failed": {}}
        (folder / "results.json").write_text(json.dumps(results))


def test_two_runs_question_by_question(tmp_path: Path, capsys: Any) -> None:
    first = scored(tmp_path, "a", [0, 1, 2, 3, 4])
    second = scored(tmp_path, "b", [0, 5])
    assert run(["eval", "compare-runs", str(first), str(second), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["questions"] == 6 and found["right"] == [5, 2]
    assert (found["only_first"], found["only_second"]) == (4, 1)
    assert found["p"] == pytest.approx(2 * (1 + 5) / 32)
    assert run(["eval", "compare-runs", str(first), str(second)]) == 0
    assert "McNemar p = 0.375" in capsys.readouterr().out
    _as_suites(first, second)
    assert run(["eval", "compare-runs", str(tmp_path / "sa"), str(tmp_path / "sb")]) == 0
    text = capsys.readouterr().out
    assert text.startswith("MMBench Dev (EN): mmbench, protocol vlmevalkit, 6 questions\n  5 right")
    assert text.count("McNemar p = 0.375") == 1 and "AI2D Test: '" in text
    assert "holds no scores.json" in text and "MMBench Test" not in text
    assert run(["eval", "compare-runs", str(tmp_path / "sa"), str(tmp_path / "sc")]) == 2
    assert "have no benchmark in common" in capsys.readouterr().err
    other = scored(tmp_path, "c", [0], "xtuner")
    assert run(["eval", "compare-runs", str(first), str(other)]) == 2
    assert "differ in their protocol: vlmevalkit and xtuner" in capsys.readouterr().err


def test_copies_that_g_index_names_are_one_question_in_a_comparison(tmp_path: Path) -> None:
    rows = tables.copies(7, ["a", "b"]) + tables.copies(9, ["a", "b"])
    for row, index in zip(rows, (7, 3, 9, 12), strict=True):
        row |= {"g_index": f"{row['index'] % 1_000_000}.0", "index": index}
    data = tables.write(tmp_path / "d.tsv", rows, (*tables.COLUMNS, "g_index"))
    for name, said in {"one": "ABAB", "two": "AAAB"}.items():
        lines = [f"{row['index']},{letter}" for row, letter in zip(rows, said, strict=True)]
        path = tmp_path / f"{name}.csv"
        path.write_text("\n".join(["index,prediction", *lines]))
        score_file("mmbench", path, data, "vlmevalkit", tmp_path / name)
    found = compare_runs(tmp_path / "one", tmp_path / "two")
    assert (found["questions"], found["right"], found["only_first"]) == (2, [2, 1], 1)
