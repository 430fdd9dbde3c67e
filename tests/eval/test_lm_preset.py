"""Both presets on rows in local files, by the command line: six columns, their shots, means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from llava_tools.cli.entry import run as command
from tests.eval.lm_tasks_local import SCENES, SCHEMAS, TRUE, Row, write_repo, write_task
from tests.model.test_adapted import write_adapter

pytest.importorskip("lm_eval")

SUMS = [{"question": f"{i}?", "answer": f"#### {i}"} for i in range(6)]
SUBJECTS = {"mmlu_small": 1, "mmlu_large": 4}  # rows
SUBJECT = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {test}, dev: {dev}}}}}
output_type: multiple_choice
test_split: test
fewshot_split: dev
fewshot_config: {{sampler: first_n}}
doc_to_text: "{{{{q}}}}? Answer:"
doc_to_choice: [A, B, C, D]
doc_to_target: a
metric_list: [{{metric: acc}}]
"""
GROUP = """
group: mmlu
task: [mmlu_small, mmlu_large]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""


def fact(number: int) -> Row:
    choices = {"text": ["one", f"cat {number}", "dog"], "label": ["A", "B", "C"]}
    return {"question": f"{number}?", "choices": choices, "answerKey": "ABC"[number % 3]}


def write_rows(path: Path, count: int) -> Path:
    rows = [{"q": f"{i} or two", "a": i % 4} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    facts = [fact(number) for number in range(26)]
    write_task(folder, "arc_challenge", facts[:3], facts)
    write_task(folder, "hellaswag", SCENES[:2], SCENES * 3)
    write_task(folder, "truthfulqa_mc2", TRUE)
    write_task(folder, "winogrande", SCHEMAS, SCHEMAS * 2)
    write_task(folder, "gsm8k", [{"question": "one?", "answer": "#### 1"}], SUMS)
    dev = write_rows(folder / "dev.jsonl", 6)
    for name, count in SUBJECTS.items():
        test = write_rows(folder / f"{name}.jsonl", count)
        (folder / f"{name}.yaml").write_text(SUBJECT.format(name=name, test=test, dev=dev))
    (folder / "mmlu.yaml").write_text(GROUP)
    return folder


def test_all_six_columns(
    wide_llm: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", "lm", str(wide_llm), "--preset", "open-llm-v1", "--include-path", str(tasks)]
    words += ["--work-dir", str(tmp_path / "base"), "--dtype", "fp32", "--device", "cpu"]
    assert command(words) == 0
    said = capsys.readouterr().out
    report = json.loads((tmp_path / "base/results.json").read_text())
    titles = ["ARC", "HellaSwag", "MMLU", "TruthfulQA", "Winogrande", "GSM8K"]
    assert list(report["scores"]) == titles
    shots = {"arc_challenge": 25, "hellaswag": 10, "truthfulqa_mc2": 0, "winogrande": 5, "gsm8k": 5}
    shots |= dict.fromkeys(SUBJECTS, 5)
    assert {name: report["n-shot"][name] for name in shots} == shots
    found = {name: report["results"][name]["acc,none"] for name in SUBJECTS}
    weighted = sum(found[name] * rows for name, rows in SUBJECTS.items()) / 5
    assert report["scores"]["MMLU"] == pytest.approx(weighted)
    assert weighted != sum(found.values()) / 2
    assert report["mmlu_unweighted"] == pytest.approx(sum(found.values()) / 2)
    mean = 100 * sum(report["scores"].values()) / 6
    assert f"| model | {mean:.2f} | " in said and "| Tasks | Version | Filter |" in said
    assert command([*words, "--json"]) == 0  # from the work dir: nothing is asked again
    assert json.loads(capsys.readouterr().out) == report
    bars = tmp_path / "bars.png"
    files = [str(tmp_path / "base/results.json")] * 2
    assert command(["eval", "lm-report", *files, "--plot", str(bars)]) == 0
    capsys.readouterr()
    assert command(["eval", "lm-report", *files, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[1]["scores"] == report["scores"]
    assert Image.open(bars).size[0] > 400


NAMES: list[Row] = [{"question": "red or blue", "answer": ["red"]}]
ALIASES: list[Row] = [{"question": "red or blue", "answer": {"aliases": ["red"]}}]
TEXTS: list[Row] = [{"document": "one two three", "summary": "two"}]
READING: list[Row] = [
    {"article": "one two", "question": f"{k}?", "options": list("abcd"), "answer": "ABCD"[k]}
    for k in range(4)
]


def test_mobilellama_from_data_sets_in_a_folder_with_an_adapter(
    wide_llm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    write_repo(data, "mandarjoshi/trivia_qa", "rc.nocontext", train=ALIASES, validation=ALIASES)
    write_repo(data, "google-research-datasets/nq_open", "nq_open", train=NAMES, validation=NAMES)
    write_repo(data, "Rowan/hellaswag", "default", train=SCENES, validation=SCENES)
    for kind in ("middle", "high"):
        write_repo(data, "ehovy/race", kind, test=READING)
    write_repo(data, "EdinburghNLP/xsum", "default", test=TEXTS)
    write_adapter(wide_llm, tmp_path / "lora")
    words = ["eval", "lm", str(wide_llm), "--preset", "mobilellama", "--data-root", str(data)]
    words += ["--adapter", str(tmp_path / "lora"), "--work-dir", str(tmp_path / "work")]
    assert command([*words, "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    report = json.loads((tmp_path / "work/results.json").read_text())
    titles = ["TriviaQA", "NQ", "HellaSwag", "RACE-middle", "RACE-high", "XSum"]
    assert list(report["scores"]) == titles and None not in report["scores"].values()
    assert set(report["n-shot"].values()) == {0} and len(set(report["data"].values())) == 6
    assert report["run"]["adapter"] == str(tmp_path / "lora")
    mean = 100 * sum(report["scores"].values()) / 6
    assert f"| model | {mean:.2f} | " in said
