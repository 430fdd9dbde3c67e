"""Real DeepSpeed ZeRO-2 on gloo: the same losses and weights as the plain engine, and resuming."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llava_tools.config import load_settings
from llava_tools.errors import UserError
from llava_tools.model.source import read_checkpoint
from llava_tools.train.run import run_training
from llava_tools.train.zero import read_deepspeed_config
from tests.train.runs import losses, write_config

pytest.importorskip("deepspeed")

CHANGES = dict(
    freeze_llm=False,
    sampler="length_grouped",
    lr=1e-3,
    max_epochs=2,
    accumulative_counts=2,
    save_steps=2,
    save_total_limit=9,
)


def train(config: Path, work: Path, processes: int, *flags: str) -> None:
    """Run the command as a user does, in `processes` processes."""
    command = [sys.executable, "-m", "llava_tools", "train", str(config), "--work-dir", str(work)]
    environ = os.environ | {"NPROC_PER_NODE": str(processes), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *flags], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_two_ranks_train_like_one_process_and_resume_exactly(parts: Path, tmp_path: Path) -> None:
    """Skewed on purpose: of 6 rows 2 are text alone, so that ranks differ in what they hold."""
    plain = tmp_path / "plain"
    config = write_config(tmp_path, parts, batch_size=2, **CHANGES)
    run_training(load_settings(str(config)), plain)
    two = tmp_path / "two"
    config = write_config(tmp_path / "c", parts, batch_size=1, **CHANGES)
    train(config, two, 2, "--deepspeed", "deepspeed_zero2")
    assert losses(two) == pytest.approx(losses(plain), rel=1e-5)
    name = (two / "last_checkpoint").read_text().strip()
    ours, theirs = read_checkpoint(two / name), read_checkpoint(plain / name)
    assert set(ours) == set(theirs)
    for key in theirs:
        assert torch.allclose(ours[key].read().float(), theirs[key].read(), atol=1e-5), key
    before = losses(two)
    (two / "last_checkpoint").write_text("iter_2.pth\n")
    train(config, two, 2, "--deepspeed", "deepspeed_zero2", "--resume")
    assert losses(two) == before
    again = read_checkpoint(two / name)
    assert all(torch.equal(again[key].read(), ours[key].read()) for key in ours)


def test_a_failing_process_gives_its_exit_code(parts: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, parts, prompt_template="llama3_chat")
    command = [sys.executable, "-m", "llava_tools", "train", str(config)]
    command += ["--work-dir", str(tmp_path / "work")]
    environ = os.environ | {"NPROC_PER_NODE": "2"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("'llama3_chat' does not fit") == 1, done.stderr
    assert "Traceback" not in done.stderr


def test_deepspeed_configuration_follows_the_settings(parts: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, parts, accumulative_counts=4, dtype="bf16", max_norm=0.5)
    settings = load_settings(str(config))
    zero2 = read_deepspeed_config("deepspeed_zero2", settings, 8)
    assert zero2["zero_optimization"]["stage"] == 2
    assert zero2["train_batch_size"] == 2 * 4 * 8 and zero2["gradient_clipping"] == 0.5
    assert zero2["bf16"]["enabled"] and zero2["data_types"] == {"grad_accum_dtype": "fp32"}
    assert "auto" not in json.dumps(zero2)
    own = tmp_path / "own.json"
    own.write_text('{"zero_optimization": {"stage": 1, "reduce_bucket_size": "auto"}}')
    assert read_deepspeed_config(str(own), settings, 1)["zero_optimization"] == {"stage": 1}
    own.write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        read_deepspeed_config(str(own), settings, 1)
    own.write_text("[]")
    with pytest.raises(UserError, match="is not a JSON object"):
        read_deepspeed_config(str(own), settings, 1)
    own.write_text('{"zero_optimization": {"stage": 3}}')
    with pytest.raises(UserError, match="asks for ZeRO stage 3"):
        read_deepspeed_config(str(own), settings, 1)
    with pytest.raises(UserError, match="No DeepSpeed configuration 'zero9'"):
        read_deepspeed_config("zero9", settings, 1)
