"""Resuming: bit for bit what an uninterrupted run gives, and only where it fits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_tools.config import load_settings
from llava_tools.errors import UserError
from tests.train.runs import load, losses, run, same, write_config
from tests.waiting import wait_until


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_resumed_equals_uninterrupted_bit_for_bit(parts: Path, tmp_path: Path, dtype: str) -> None:
    changes = dict(
        freeze_llm=False,
        freeze_visual_encoder=False,
        llm_name_or_path=str(parts / "vicuna"),
        prompt_template="vicuna",
        max_epochs=3,
        batch_size=1,
        accumulative_counts=4,
        sampler="length_grouped",
        save_steps=8,
        save_total_limit=9,
        dtype=dtype,
        lr=1e-3,
    )
    straight = run(tmp_path / "a", parts, **changes)
    resumed = tmp_path / "b" / "work"
    resumed.mkdir(parents=True)
    names = sorted(p.name for p in straight.glob("iter_*.pth"))
    (resumed / "iter_8.pth").write_bytes((straight / "iter_8.pth").read_bytes())
    (resumed / "last_checkpoint").write_text("iter_8.pth\n")
    (resumed / "log.jsonl").write_bytes((straight / "log.jsonl").read_bytes()[:-7])
    run(tmp_path / "b", parts, resume="auto", **changes)
    assert losses(resumed) == losses(straight)
    assert names[-1] in {p.name for p in resumed.iterdir()}
    for name in names:
        assert same(load(straight / name), load(resumed / name)), name


def test_dropout_is_a_function_of_the_step(parts: Path, tmp_path: Path) -> None:
    changes = dict(llm_lora=dict(r=2, lora_dropout=0.5), max_epochs=2, save_steps=3)
    changes |= dict(save_total_limit=9)
    straight = run(tmp_path / "a", parts, **changes)
    names = load(straight / "iter_6.pth")["state_dict"]
    assert any("lora_A.default" in name for name in names)
    assert all("lora_" in name or name.startswith("projector.") for name in names)
    resumed = run(tmp_path / "a", parts, resume=str(straight / "iter_3.pth"), **changes)
    assert same(names, load(resumed / "iter_6.pth")["state_dict"])


def test_a_resumed_run_keeps_its_list_and_its_seed(parts: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for picture in (parts / "images").iterdir():
        (images / picture.name).write_bytes(picture.read_bytes())
    (images / "1.png").write_bytes((images / "1.png").read_bytes()[:60])
    datasets = [dict(data_path=str(parts / "llava.json"), image_folder=str(images))]
    changes = dict(datasets=datasets, max_skipped=0.5, max_epochs=2, save_steps=3, seed=5)
    changes |= dict(save_total_limit=9)
    straight = run(tmp_path / "a", parts, **changes)
    before = losses(straight)
    listed = (straight / "skipped.jsonl").read_text()
    assert len(listed.splitlines()) == 1  # met in both epochs, listed once
    start = str(straight / "iter_3.pth")
    run(tmp_path / "a", parts, resume=start, **(changes | dict(seed=0)))
    assert losses(straight) == before
    assert (straight / "skipped.jsonl").read_text() == listed
    assert load_settings(str(straight / "config.py")).seed == 5


@pytest.mark.parametrize(
    "change", [dict(batch_size=1), dict(accumulative_counts=2), dict(sampler="length_grouped")]
)
def test_what_moves_the_place_in_the_data_is_refused(
    parts: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    work = run(tmp_path, parts)
    name = next(iter(change))
    with pytest.raises(UserError, match=rf"was written with {name} = .*, this run has"):
        run(tmp_path, parts, resume=str(work / "iter_3.pth"), **change)


def test_wrong_checkpoints_are_no_start(parts: Path, tmp_path: Path) -> None:
    work = run(tmp_path, parts)
    path = work / "iter_3.pth"
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(UserError, match=r"iter_3\.pth' cannot be resumed from"):
        run(tmp_path, parts, resume="auto")
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match="it has no '(meta|optimizer)'"):
        run(tmp_path, parts, resume="auto")
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="cannot be resumed from"):
        run(tmp_path, parts, resume="auto")
    path.rmdir()
    path.write_bytes(good)
    with pytest.raises(UserError, match="does not hold what this run trains: .* for example llm"):
        run(tmp_path, parts, resume="auto", freeze_llm=False)


def test_an_old_run_is_not_written_over(parts: Path, tmp_path: Path) -> None:
    run(tmp_path, parts)
    with pytest.raises(UserError, match=r"already holds a run \(iter_3.pth\)"):
        run(tmp_path, parts)


def test_resume_from_what_is_no_checkpoint(parts: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a checkpoint to resume from"):
        run(tmp_path, parts, resume=str(parts / "phi3"))


def stopped(command: list[str], log: Path, number: signal.Signals) -> tuple[int, bytes]:
    """Start a command and stop it when it has logged some steps; return how it ended."""
    size = 400 + (log.stat().st_size if log.exists() else 0)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ | {"NO_COLOR": "1"})
    wait_until(lambda: process.poll() is not None or (log.exists() and log.stat().st_size > size))
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


@pytest.mark.slow
def test_a_killed_run_and_an_interrupted_one_resume_exactly(parts: Path, tmp_path: Path) -> None:
    changes = dict(max_epochs=40, save_steps=3, save_total_limit=2)
    straight = run(tmp_path / "a", parts, **changes)
    config = write_config(tmp_path / "b", parts, **changes)
    work = tmp_path / "b" / "work"
    command = [sys.executable, "-m", "llava_tools", "train", str(config), "--work-dir", str(work)]
    for number, code in ((signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)):
        found, errors = stopped([*command, "--resume"], work / "log.jsonl", number)
        assert found == code, errors.decode()
    assert losses(run(tmp_path / "b", parts, resume="auto", **changes)) == losses(straight)
    assert same(load(work / "iter_120.pth"), load(straight / "iter_120.pth"))
