"""A run that is killed anywhere goes on and ends with the same bytes; nothing is mixed up."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llava_tools.cli.entry import run
from llava_tools.curate import scoring
from llava_tools.curate.cluster import ClusterRules, cluster
from llava_tools.curate.merging import merge
from llava_tools.curate.score_log import ScoreLog, read_log
from llava_tools.curate.scorer import Options, Scorer, open_scorer
from llava_tools.curate.scores import read_scores
from llava_tools.curate.scoring import score_file
from llava_tools.errors import UserError


@pytest.fixture(scope="module")
def scorer(parts: Path) -> Scorer:
    return open_scorer(str(parts / "vicuna"), Options(template="alpaca"))


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "WINDOW", 5)


def with_options(scorer: Scorer, **changes: Any) -> Scorer:
    return replace(scorer, options=replace(scorer.options, **changes))


@pytest.mark.parametrize("mode", ["cherry", "pre"])
def test_a_file_that_was_cut_anywhere_is_completed_to_the_same_bytes(
    mode: str, scorer: Scorer, alpaca: Path, tmp_path: Path
) -> None:
    chosen = with_options(scorer, mode=mode)
    whole = score_file(chosen, "m", alpaca, tmp_path / "whole.jsonl").path.read_bytes()
    vectors = (tmp_path / "whole.npy").read_bytes() if mode == "pre" else b""
    lines = [i for i, byte in enumerate(whole) if byte == 10]
    cuts = [0, 3, lines[0] - 1, lines[0], lines[0] + 1, lines[7], lines[7] + 9, lines[12] + 1]
    for cut in [*cuts, len(whole) - 1, len(whole)]:
        out = tmp_path / "cut.jsonl"
        out.write_bytes(whole[:cut])
        if mode == "pre":
            kept = whole[:cut].count(b"vector") + 2  # more were written than are counted
            (tmp_path / "cut.npy").write_bytes(vectors[: 128 + kept * 32 * 4 + 5])
        assert score_file(chosen, "m", alpaca, out).rows == 24
        assert out.read_bytes() == whole
        if mode == "pre":
            assert (tmp_path / "cut.npy").read_bytes() == vectors
            assert np.load(tmp_path / "cut.npy").shape == (24, 32)


def test_rows_that_have_a_score_are_not_scored_again(
    scorer: Scorer, alpaca: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = score_file(scorer, "m", alpaca, tmp_path / "s.jsonl").path
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:11]))  # two windows of five
    windows = []
    monkeypatch.setitem(
        scoring.RECORDS,
        "cherry",
        lambda s, rows, make=scoring.RECORDS["cherry"]: windows.append(len(rows)) or make(s, rows),
    )
    score_file(scorer, "m", alpaca, out)
    assert windows == [5, 5, 4] and out.read_bytes() == b"".join(lines)
    score_file(scorer, "m", alpaca, out)
    assert len(windows) == 3


# Scores a file in windows of 9 rows, and dies when the second is half on disk.
KILLED = """
import os, signal, sys
from llava_tools.cli.entry import run
from llava_tools.curate import score_log, scoring

def append(self, records, vectors=(), whole=score_log.ScoreLog.append):
    if self.done:
        self.file.write(b'{"row": 9, "half a li')
        self.file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    whole(self, records, vectors)

scoring.WINDOW = 9
score_log.ScoreLog.append = append
run(sys.argv[1:])
"""


def test_a_process_killed_while_it_scores_loses_nothing(
    parts: Path, alpaca: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s.jsonl"
    command = ["curate", "ifd", str(parts / "vicuna"), str(alpaca), str(out)]
    command += ["--template", "alpaca", "--device", "cpu"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *command], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    before = out.read_bytes()
    assert before.count(b"\n") == 1 + 9 and before.endswith(b"half a li")
    assert run(command) == 0
    assert "24 of 24 rows have a score" in capsys.readouterr().out
    assert [record["row"] for record in read_log(out)[1]] == list(range(24))
    assert out.read_bytes().startswith(before[: before.rfind(b"\n") + 1])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"max_length": 100}, "max_length was 512 and is now 100"),
        ({"mode": "pre"}, "mode was 'cherry' and is now 'pre'"),
        ({"shard": (1, 1), "format": "llava"}, "format was 'auto' and is now 'llava'"),
    ],
)
def test_other_settings_are_refused(
    changes: dict[str, Any], named: str, scorer: Scorer, alpaca: Path, tmp_path: Path
) -> None:
    out = score_file(scorer, "m", alpaca, tmp_path / "s.jsonl").path
    before = out.read_bytes()
    with pytest.raises(UserError, match=named):
        score_file(with_options(scorer, **changes), "m", alpaca, out)
    assert out.read_bytes() == before


def test_other_data_or_models_are_refused(
    scorer: Scorer, parts: Path, alpaca: Path, tmp_path: Path
) -> None:
    out = score_file(scorer, "m", alpaca, tmp_path / "s.jsonl").path
    other = tmp_path / "other.json"
    other.write_text(json.dumps(json.loads(alpaca.read_text())[1:]))
    with pytest.raises(UserError, match="scores of another run: data_md5 was"):
        score_file(scorer, "m", other, out)
    with pytest.raises(
        UserError, match="weights was .*; tokenizer was .*; template was 'alpaca' and is now 'wiz'"
    ):
        llm = open_scorer(str(parts / "llama3"), Options(template="wiz"))
        score_file(llm, "m", alpaca, out)


def test_files_of_other_people_stay_as_they_are(
    scorer: Scorer, alpaca: Path, tmp_path: Path
) -> None:
    data = tmp_path / "rows.json"
    shutil.copy(alpaca, data)
    with pytest.raises(UserError, match="would overwrite the data"):
        score_file(scorer, "m", data, data)
    for content in (b"hello", b'{"a": 1}\n', b"notes\n"):
        (tmp_path / "s.jsonl").write_bytes(content)
        with pytest.raises(UserError, match="no score file of"):
            score_file(scorer, "m", data, tmp_path / "s.jsonl")
        assert (tmp_path / "s.jsonl").read_bytes() == content
    np.save(tmp_path / "t.npy", np.ones(3000))
    before = (tmp_path / "t.npy").read_bytes()
    with pytest.raises(UserError, match="t.npy', where the embeddings go, is another file"):
        score_file(with_options(scorer, mode="pre"), "m", data, tmp_path / "t.jsonl")
    assert (tmp_path / "t.npy").read_bytes() == before
    with pytest.raises(UserError, match="missing.json' cannot be read"):
        score_file(scorer, "m", tmp_path / "missing.json", tmp_path / "n.jsonl")


def test_embeddings_that_are_gone_are_missed(scorer: Scorer, alpaca: Path, tmp_path: Path) -> None:
    chosen = with_options(scorer, mode="pre")
    out = score_file(chosen, "m", alpaca, tmp_path / "s.jsonl").path
    os.truncate(tmp_path / "s.npy", 600)
    with pytest.raises(UserError, match="fewer embeddings than its scores count"):
        score_file(chosen, "m", alpaca, out)


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    with ScoreLog(tmp_path / "s.jsonl", {}, {}):
        with pytest.raises(UserError, match="Another process is writing"):
            ScoreLog(tmp_path / "s.jsonl", {}, {})
    with ScoreLog(tmp_path / "s.jsonl", {}, {}) as log:
        log.file.close()
        log.file = open("/dev/full", "wb", buffering=0)
        with pytest.raises(UserError, match="Could not write .*No space left"):
            log.append([{"row": 0}])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Cannot write"):
        ScoreLog(tmp_path / "file" / "s.jsonl", {}, {})


@pytest.mark.parametrize("mode", ["cherry", "pre"])
def test_merged_shards_are_what_one_run_writes(
    mode: str, scorer: Scorer, alpaca: Path, tmp_path: Path
) -> None:
    chosen = with_options(scorer, mode=mode)
    score_file(chosen, "m", alpaca, tmp_path / "one.jsonl")
    for part in (1, 2, 3):
        score_file(with_options(chosen, shard=(part, 3)), "m", alpaca, tmp_path / "s.jsonl")
    assert merge([tmp_path / "s.jsonl"], tmp_path / "all.jsonl") == 24
    one, merged = (read_scores([tmp_path / name]) for name in ("one.jsonl", "all.jsonl"))
    assert list(one.records) == list(merged.records) and one.made_by == merged.made_by
    assert one.column("ppl", 24) == pytest.approx(merged.column("ppl", 24), rel=1e-5)
    if mode == "pre":
        rules = ClusterRules(3, 2)
        assert cluster(alpaca, one, rules).chosen == cluster(alpaca, merged, rules).chosen
    before = (tmp_path / "all.jsonl").read_bytes()
    assert score_file(chosen, "m", alpaca, tmp_path / "all.jsonl").rows == 24
    assert (tmp_path / "all.jsonl").read_bytes() == before
    with pytest.raises(UserError, match="all.jsonl' exists"):
        merge([tmp_path / "s.jsonl"], tmp_path / "all.jsonl")
    with pytest.raises(UserError, match="s-1-of-3.jsonl' exists"):
        merge([tmp_path / "s.jsonl"], tmp_path / "s-1-of-3.jsonl", overwrite=True)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UserError, match="has no scores yet"):
        merge([tmp_path / "empty.jsonl"], tmp_path / "x.jsonl")
