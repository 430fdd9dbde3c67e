"""Several processes give one file in the order of the data, whoever was killed before."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from llava_tools.errors import UserError
from llava_tools.eval.answer_log import AnswerLog
from llava_tools.eval.mmbench import question
from llava_tools.eval.pictures import Picture
from llava_tools.eval.run import evaluate
from llava_tools.eval.shares import Place, check_parent, merge, place_here, share
from llava_tools.eval.suite import run_suite
from llava_tools.eval.tsv import Row
from tests.eval import tables

CELLS = {"question": "What?", "A": "x", "B": "y"}


@given(st.lists(st.integers(-1, 5), max_size=30), st.integers(1, 4))
def test_shares_hold_every_question_once_and_pictures_together(
    pictures: list[int], world: int
) -> None:
    questions = [
        question(Row(i, CELLS, "row", (Picture(str(p), 0, 0, ""),) if p >= 0 else ()))
        for i, p in enumerate(pictures)
    ]
    shares = [share(questions, Place(rank, world)) for rank in range(world)]
    assert sorted(q.index for one in shares for q in one) == list(range(len(pictures)))  # type: ignore[type-var]
    owners: dict[int, set[int]] = {}
    for rank, one in enumerate(shares):
        for asked in one:
            owners.setdefault(pictures[int(asked.index)], set()).add(rank)
    assert all(len(ranks) == 1 for picture, ranks in owners.items() if picture >= 0)


@pytest.mark.parametrize(
    ("rank", "world", "message"),
    [
        ("2", "2", "RANK is 2 of WORLD_SIZE 2"),
        ("x", "2", "is no number"),
        ("-1", "2", "RANK is -1"),
    ],
)
def test_senseless_places_are_named(
    monkeypatch: pytest.MonkeyPatch, rank: str, world: str, message: str
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(UserError, match=message):
        place_here()


def record(index: int, text: str) -> str:
    return json.dumps({"index": index, "prediction": text, "tokens": 1, "prompt": ""}) + "\n"


def test_merging_orders_and_drops_what_is_there_twice(tmp_path: Path) -> None:
    header = json.dumps({"llava_tools": "0", "fingerprint": {}}) + "\n"
    (tmp_path / "predictions.jsonl").write_text(header + record(2, "c"))
    (tmp_path / "predictions.0.jsonl").write_text(header + record(1, "b") + record(2, "c"))
    (tmp_path / "predictions.1.jsonl").write_text(header + record(0, "a") + '{"index": 3, "pre')
    merge(tmp_path, [question(Row(i, CELLS, "row")) for i in range(4)])
    assert [p.name for p in tmp_path.iterdir()] == ["predictions.jsonl"]
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["prediction"] for line in lines[1:]] == ["a", "b", "c"]


@pytest.mark.parametrize("held", ["", "predictions.jsonl"])
def test_a_work_dir_has_one_evaluation_at_a_time(tmp_path: Path, held: str) -> None:
    with AnswerLog(tmp_path, {}, {}) as first, AnswerLog(tmp_path, {}, {}) as second:
        first.read()
        if held:
            first.open()
            os.close(first.held.pop(0))  # the folder, as where the first process is gone
            second.read()
        with pytest.raises(UserError, match=f"Another evaluation is writing to '.*{held}'"):
            (second.open if held else second.read)()
    with AnswerLog(tmp_path, {}, {}) as third:
        third.read(), third.open()


def test_what_torchrun_left_behind_stops() -> None:
    check_parent(Place(0, 2)), check_parent(Place(0, 1, parent=-1))
    with pytest.raises(UserError, match="torchrun, which started this process, is gone"):
        check_parent(Place(0, 2, parent=-1))


def test_a_suite_ends_where_torchrun_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its processes went on with the next benchmark, and took whoever had them now for torchrun."""
    (tmp_path / "MMStar.tsv").touch(), (tmp_path / "POPE.tsv").touch()
    begun = []

    def stopped(benchmark: str, *_: Any) -> Any:
        begun.append(benchmark)
        monkeypatch.setattr(os, "getppid", lambda: 1)
        check_parent(place_here())

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="torchrun, which started this process, is gone"):
        run_suite("llava-table", tmp_path, tmp_path / "w", stopped)
    assert begun == ["pope"] and not (tmp_path / "w").exists()


def torchrun(world: int, *arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={world}"]
    start = ["--standalone", "--no-python", sys.executable, "-m", "llava_tools", "eval"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *start, *map(str, arguments)],
        capture_output=True, text=True, timeout=200, env=environment,
    )  # fmt: skip


def test_two_processes_finish_what_one_began_and_fail_together(
    model_folder: Path, data: Path, tmp_path: Path
) -> None:
    """A picture that only one process meets is broken: the other benchmark is not hurt."""
    root = tmp_path / "root"
    root.mkdir()
    data = data.rename(root / "MMBench_DEV_EN.tsv")
    noise = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(noise, "PNG")
    half = base64.b64encode(noise.getvalue()[:1200]).decode()
    broken = [{**row, "index": i, "image": half if i == 3 else tables.picture("red")}
              for i, row in enumerate(tables.small()[:4])]  # fmt: skip
    tables.write(root / "AI2D_TEST.tsv", broken)
    alone = evaluate("mmbench", model_folder, data, tmp_path / "one", device="cpu")
    whole = (tmp_path / "one" / "predictions.jsonl").read_text().splitlines(keepends=True)
    work = tmp_path / "two" / "MMBench_DEV_EN"
    work.mkdir(parents=True)
    (work / "predictions.jsonl").write_text("".join(whole[:4]))
    (work / "predictions.2.jsonl").write_text(whole[0] + whole[5] + whole[6][:9])
    options = ["--data-root", root, "--work-dir", work.parent, "--device", "cpu", "--json"]
    done = torchrun(2, "suite", "llava-table", model_folder, *options)
    assert "Not evaluated: AI2D Test." in done.stderr and "row 4 (index 3)" in done.stderr
    assert list(json.loads(done.stdout)[0]["cells"]) == ["MMBench Dev (EN)"]
    report = json.loads((work / "scores.json").read_text())
    assert report["circular"] == alone["circular"] and report["counts"] == alone["counts"]
    assert done.stderr.count("4 of 18 rows are answered already") == 1  # the first process says it
    assert (work / "predictions.jsonl").read_text().splitlines() == [x.strip() for x in whole]
    assert not list(work.glob("predictions.[0-9]*.jsonl"))
    kept = [len(p.read_text().splitlines()) for p in (tmp_path / "two").glob("AI2D*/*.jsonl")]
    assert sorted(kept) == [1, 4]
