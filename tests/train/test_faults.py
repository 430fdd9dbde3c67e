"""Bad data, bad weights and a disk that refuses: told, counted, nothing lost."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from llava_tools.config import load_settings
from llava_tools.constants import IGNORE_ID
from llava_tools.data.packed import PackedRows, Row
from llava_tools.errors import UserError
from llava_tools.train.run import run_training
from tests.train.runs import load, run, write_config


def test_a_failing_sample_answer_does_not_end_the_run(parts: Path, tmp_path: Path) -> None:
    work = run(tmp_path, parts, evaluation_freq=1, evaluation_inputs=["a<|end|>" * 600])
    assert (work / "iter_3.pth").is_file()


def test_a_broken_image_is_skipped_counted_and_listed(parts: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for picture in (parts / "images").iterdir():
        (images / picture.name).write_bytes(picture.read_bytes())
    (images / "1.png").write_bytes((images / "1.png").read_bytes()[:60])
    datasets = [dict(data_path=str(parts / "llava.json"), image_folder=str(images))]
    work = run(tmp_path / "a", parts, datasets=datasets, max_skipped=0.5)
    skipped = [json.loads(line) for line in (work / "skipped.jsonl").read_text().splitlines()]
    assert len(skipped) == 1 and "1.png" in json.dumps(skipped[0])
    with pytest.raises(UserError, match="skipped"):
        run(tmp_path / "b", parts, datasets=datasets, max_skipped=0.0)


def test_a_step_that_trains_nothing_is_an_error(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = PackedRows.row

    def masked(rows: PackedRows, index: int) -> Row:
        row = read(rows, index)
        return row._replace(labels=np.full_like(row.labels, IGNORE_ID))

    monkeypatch.setattr(PackedRows, "row", masked)
    with pytest.raises(UserError, match="No token of step 1 is trained on.*\n.*data audit CONFIG"):
        run(tmp_path, parts)


def test_a_run_that_diverges_ends_and_keeps_its_last_good_checkpoint(
    parts: Path, tmp_path: Path
) -> None:
    changes = dict(max_epochs=9, save_steps=3, save_total_limit=1)
    with pytest.raises(UserError, match="The gradient of step [2-9] is nan"):
        run(tmp_path, parts, lr=1e30, max_norm=1e30, **changes)
    assert not list((tmp_path / "work").glob("iter_*"))
    work = tmp_path / "good"
    settings = load_settings(str(write_config(tmp_path, parts, **changes)))
    assert run_training(replace(settings, max_epochs=1), work) == 0
    with pytest.raises(UserError, match="with a smaller lr"):
        run_training(replace(settings, lr=1e30, max_norm=1e30), work, resume="auto")
    assert torch.isfinite(next(iter(load(work / "iter_3.pth")["state_dict"].values()))).all()


def test_a_large_seed(parts: Path, tmp_path: Path) -> None:
    run(tmp_path, parts, seed=2**40)


def test_too_many_skips_are_all_listed(parts: Path, tmp_path: Path) -> None:
    rows = [{"id": i, "conversations": []} for i in range(7)]
    data = tmp_path / "rows.json"
    data.write_text(json.dumps(rows))
    with pytest.raises(UserError, match="skipped.*\n.*skipped.jsonl"):
        run(tmp_path, parts, datasets=[dict(data_path=str(data))])
    assert len((tmp_path / "work" / "skipped.jsonl").read_text().splitlines()) == 7


def test_a_checkpoint_of_another_model_is_refused(parts: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.pth"
    torch.save({"state_dict": {"projector.model.0.weight": torch.zeros(3, 3)}}, foreign)
    with pytest.raises(UserError, match="1 weights of another shape in this model"):
        run(tmp_path, parts, pretrained_pth=str(foreign))
    torch.save({"state_dict": {"backbone.weight": torch.zeros(3, 3)}}, foreign)
    with pytest.raises(UserError, match=r"backbone\.weight|unknown"):
        run(tmp_path, parts, pretrained_pth=str(foreign))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_real_write_error_ends_the_run_with_two_lines(
    parts: Path, tmp_path: Path, processes: int
) -> None:
    """Files may not grow beyond 12 kB here: what a full disk does, without filling one."""
    config = write_config(tmp_path, parts)
    work = tmp_path / "work"
    command = [sys.executable, "-m", "llava_tools", "train", str(config), "--work-dir", str(work)]
    done = subprocess.run(
        command,
        env=os.environ | {"NPROC_PER_NODE": str(processes), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=150,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000)),
    )
    assert done.returncode == 2, done.stderr
    assert "Could not save" in done.stderr and "Traceback" not in done.stderr
    assert not list(work.glob("iter_*.pth")) and not (work / "last_checkpoint").exists()
