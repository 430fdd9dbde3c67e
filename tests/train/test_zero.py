"""Real DeepSpeed ZeRO-2 on gloo: the same losses and weights as the plain engine, and stopping."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from llava_tools.config import load_settings
from llava_tools.errors import UserError
from llava_tools.model.llava import LlavaModel
from llava_tools.model.load import load_llm
from llava_tools.model.source import read_checkpoint
from llava_tools.train.plain import place
from llava_tools.train.run import run_training
from llava_tools.train.zero import process_timeout, refuse_foreign_pickles
from tests.train.runs import losses, write_config

pytest.importorskip("deepspeed")

CHANGES = dict(
    freeze_llm=False,
    weight_decay=10.0,
    decay_bias_and_norm=False,  # two groups of parameters
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
def test_two_ranks_train_like_one_process(parts: Path, tmp_path: Path) -> None:
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


@pytest.mark.slow
def test_an_interrupt_of_two_ranks_saves_and_stops(parts: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, parts, dtype="bf16", batch_size=1, max_epochs=400)
    work = tmp_path / "work"
    command = [sys.executable, "-m", "llava_tools", "train", str(config), "--work-dir", str(work)]
    process = subprocess.Popen(
        command,
        env=os.environ | {"NPROC_PER_NODE": "2", "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (work / "log.jsonl").exists() or len(losses(work)) < 3:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors and "bug" not in errors
    last = (work / "last_checkpoint").read_text().strip()
    assert last == f"iter_{len(losses(work))}.pth" and (work / last).is_dir()


def test_placing_casts_parameters_and_leaves_buffers(parts: Path) -> None:
    """Rotary frequencies in bf16 would be off by radians far into a text."""
    model = LlavaModel(load_llm(str(parts / "phi3"), dtype=torch.float32))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    place(model, torch.device("cpu"), trained=torch.bfloat16, frozen=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert before and all(torch.equal(b, before[n]) for n, b in model.named_buffers())


def test_a_directory_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, ("touch attacked",)

    torch.save({"x": Attack()}, tmp_path / "mp_rank_00_model_states.pt")
    with pytest.raises(UserError, match="would run foreign code: .*system"):
        refuse_foreign_pickles(tmp_path)
    (tmp_path / "mp_rank_00_model_states.pt").write_bytes(b"PK")
    with pytest.raises(UserError, match="cannot be read"):
        refuse_foreign_pickles(tmp_path)
    with pytest.raises(UserError, match="is no DeepSpeed checkpoint"):
        refuse_foreign_pickles(tmp_path / "iter_3.pth")


def test_a_failing_process_gives_its_exit_code(parts: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, parts, prompt_template="llama3_chat")
    command = [sys.executable, "-m", "llava_tools", "train", str(config)]
    command += ["--work-dir", str(tmp_path / "work")]
    environ = os.environ | {"NPROC_PER_NODE": "2"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("'llama3_chat' does not fit") == 1, done.stderr
    assert "Traceback" not in done.stderr


def test_the_timeout_is_a_number_of_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEEPSPEED_TIMEOUT", raising=False)
    assert process_timeout() == 30
    monkeypatch.setenv("DEEPSPEED_TIMEOUT", "5")
    assert process_timeout() == 5
    monkeypatch.setenv("DEEPSPEED_TIMEOUT", "soon")
    with pytest.raises(UserError, match="DEEPSPEED_TIMEOUT=soon is no number"):
        process_timeout()
