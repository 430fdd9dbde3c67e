"""Every benchmark on a made-up table: its prompts letter for letter, and its scores by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from llava_tools.cli.entry import run
from llava_tools.errors import UserError
from llava_tools.eval.benchmark import BENCHMARKS, get_benchmark
from llava_tools.eval.report import Report, score_file
from llava_tools.eval.tsv import read_table
from tests.eval import tables
from tests.eval.cases import CASES, write_case


def scored(folder: Path, name: str, protocol: str | None, said: list[str] | None = None) -> Report:
    data = write_case(folder, name)
    rows = list(csv.DictReader(data.open(), delimiter="\t"))
    answers = CASES[name].said if said is None else said
    path = folder / "predictions.tsv"
    given = zip(rows, answers, strict=False)
    tables.write(
        path, [{**r, "prediction": a} for r, a in given], ["index", "question", "prediction"]
    )
    return score_file(name, path, data, protocol)


def test_every_benchmark_has_a_case() -> None:
    assert set(CASES) == set(BENCHMARKS)
    for name, case in CASES.items():
        assert set(case.prompts) == set(get_benchmark(name).protocols)


@pytest.mark.parametrize("name", sorted(CASES))
def test_prompts_letter_for_letter(tmp_path: Path, name: str) -> None:
    table = read_table(write_case(tmp_path, name), get_benchmark(name).columns)
    for protocol, wanted in CASES[name].prompts.items():
        assert get_benchmark(name).question(table.rows[0], protocol).prompt == wanted, protocol


@pytest.mark.parametrize("name", sorted(CASES))
def test_scores_by_hand(tmp_path: Path, name: str) -> None:
    for protocol, wanted in CASES[name].scores.items():
        report = scored(tmp_path, name, protocol)
        assert {k: report[k] for k in wanted} == pytest.approx(wanted), protocol
    report = scored(tmp_path, name, None)
    assert report["protocol"] == get_benchmark(name).protocols[0]
    for group, numbers in CASES[name].groups.items():
        found = {k: report["category"][group][k] for k in numbers}
        assert found == pytest.approx(numbers), group


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_tiny_model_answers_through_the_command_line(
    tmp_path: Path, model_folder: Path, name: str, capsys: Any
) -> None:
    data, work = write_case(tmp_path, name), tmp_path / "work"
    arguments = ["eval", name, str(model_folder), "--data-path", str(data)]
    settings = ["--work-dir", str(work), "--max-new-tokens", "2", "--device", "cpu"]
    assert run([*arguments, *settings]) == 0
    shown = capsys.readouterr().out
    for heading in get_benchmark(name).metrics.values():
        assert heading in shown
    report = json.loads((work / "scores.json").read_text())
    assert report["protocol"] == get_benchmark(name).protocols[0]
    assert report["counts"]["answered"] == len(CASES[name].rows)
    assert f"Protocol {report['protocol']}" in shown and "undecided" in shown


def test_mmmu_reports_each_split(tmp_path: Path) -> None:
    splits = scored(tmp_path, "mmmu", "official")["splits"]
    assert splits["validation"]["accuracy"] == 1 and splits["dev"]["accuracy"] == 0


def test_hallusion_also_has_its_second_categories(tmp_path: Path) -> None:
    assert scored(tmp_path, "hallusion", None)["l2_category"]["VD_figure"]["qAcc"] == 0.5


@pytest.mark.parametrize(("said", "f1"), [("yes", 2 * 0.6 / 1.6), ("no", 0)])
def test_pope_answered_all_alike_divides_by_nothing(tmp_path: Path, said: str, f1: float) -> None:
    report = scored(tmp_path, "pope", "vlmevalkit", [said] * 4)
    assert report["pope"] == pytest.approx(f1)


def test_missing_answers_are_wrong_and_counted(tmp_path: Path) -> None:
    report = scored(tmp_path, "pope", None, ["yes"])
    assert report["counts"]["missing"] == 3 and report["accuracy"] == pytest.approx(2 / 5)
    assert scored(tmp_path, "gqa", None, ["yes"])["accuracy"] == 0.25


def test_an_mme_picture_without_its_partner_is_named(tmp_path: Path) -> None:
    data = write_case(tmp_path, "mme")
    data.write_text("\n".join(data.read_text().splitlines()[:-1]) + "\n")
    path = tmp_path / "p.csv"
    path.write_text("index,prediction\n0,Yes\n")
    with pytest.raises(UserError, match=r"'code_reasoning' asks 1 question\(s\).*not 2"):
        score_file("mme", path, data)


BAD = [
    ("mme", {"category": "colour"}, "'colour' is none of MME's fourteen tasks"),
    ("pope", {"answer": "perhaps"}, "row 1 .*: the answer is 'perhaps'"),
    ("hallusion", {"answer": "2"}, "row 1 .*: the answer is '2'"),
    ("seed", {"answer": "D"}, "the answer 'D' is none of its options A, B"),
    ("scienceqa", {"A": "", "B": ""}, "row 1 .* has no options"),
    ("gqa", {"question": " "}, "row 1 .* has no question"),
    ("textvqa", {"question": ""}, "row 1 .* has no question"),
    ("textvqa", {"answer": "stop"}, "the answers are no list of texts, but stop"),
    ("mmmu", {"question": "nan"}, "row 1 .* has no question"),
    ("pope", {"question": ""}, "row 1 .* has no question"),
]


@pytest.mark.parametrize(("name", "change", "message"), BAD)
def test_rows_that_cannot_be_asked_are_named(
    tmp_path: Path, name: str, change: dict[str, str], message: str
) -> None:
    path = tmp_path / "p.csv"
    path.write_text("index,prediction\n0,A\n")
    with pytest.raises(UserError, match=message):
        score_file(name, path, write_case(tmp_path, name, **change))


def test_a_protocol_of_another_benchmark_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'pope' is not scored by a protocol 'xtuner'") as error:
        scored(tmp_path, "pope", "xtuner")
    assert "lmms-eval" in error.value.hint


def test_hallusions_index_must_tell_its_groups(tmp_path: Path) -> None:
    data = tmp_path / "h.tsv"
    data.write_text("index\tquestion\tanswer\n7\tQ?\tYes\n")
    (tmp_path / "p.csv").write_text("index,prediction\n7,Yes\n")
    with pytest.raises(UserError, match="index does not end in set, figure and question"):
        score_file("hallusion", tmp_path / "p.csv", data)


def test_the_help_names_every_benchmark(capsys: Any) -> None:
    assert run(["eval", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(name in shown for name in BENCHMARKS)
