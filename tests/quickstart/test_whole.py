"""The whole path once, with real commands and as little training as there can be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava_tools.quickstart.configs import Scale
from llava_tools.quickstart.run import quickstart

TINY = Scale(
    held_out=10,
    copies=0,
    text_rows=64,
    choices=0,
    blind_rows=8,
    batch_size=256,
    epochs={"text_sft": 1, "pretrain": 1, "finetune": 1},
)


@pytest.mark.slow
def test_the_whole_path(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    work_dir = tmp_path / "a folder"
    assert quickstart(work_dir, scale=TINY) == 0
    summary = json.loads((work_dir / "summary.json").read_text())
    assert summary["mmbench"]["questions"] == 10
    assert set(summary["formats"]) == {"xtuner", "llava", "hf"}
    assert all(entry["verified"] for entry in summary["formats"].values())
    assert len(summary["seconds"]) == 13
    assert (work_dir / "loss.png").stat().st_size > 10_000
    shown = capfd.readouterr()
    assert shown.err.count("$ llava-tools ") == 12
    assert "Traceback" not in shown.err and "WARNING" not in shown.err

    before = (work_dir / "summary.json").read_text()
    assert quickstart(work_dir, scale=TINY) == 0
    assert "All stages" in (again := capfd.readouterr()).err
    assert "$ llava-tools " not in again.err
    assert (work_dir / "summary.json").read_text() == before
