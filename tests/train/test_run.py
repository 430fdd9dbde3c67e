"""Whole small runs on the plain engine: equal where they must be, and leaving what they promise."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from transformers.models.phi3.modeling_phi3 import Phi3MLP

from llava_tools.config import load_settings
from llava_tools.errors import UserError
from llava_tools.train.run import run_training
from tests.train.runs import load, losses, read_log, same, write_config


def run(folder: Path, parts: Path, *, resume: str | None = None, **changes: Any) -> Path:
    """Run a training in this process; return its work dir."""
    config = write_config(folder, parts, **changes)
    assert run_training(load_settings(str(config)), folder / "work", resume=resume) == 0
    return folder / "work"


def test_pretraining_saves_the_projector_alone(parts: Path, tmp_path: Path) -> None:
    work = run(tmp_path, parts, max_epochs=4)
    assert (work / "last_checkpoint").read_text() == "iter_12.pth\n"
    state = load(work / "iter_12.pth")
    assert sorted(state["state_dict"]) == [
        f"projector.model.{i}.{kind}" for i in (0, 2) for kind in ("bias", "weight")
    ]
    assert state["meta"]["iter"] == 12
    lines = read_log(work)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert {"loss", "lr", "grad_norm", "tokens_per_second", "samples_per_second"} <= set(lines[0])
    assert lines[-1]["loss"] < lines[0]["loss"]
    settings = load_settings(str(work / "config.py"))
    assert settings.max_epochs == 4


def test_accumulation_is_the_larger_batch_short_last_window_included(
    parts: Path, tmp_path: Path
) -> None:
    """6 rows in windows of 4: the second window of each epoch is a short one."""
    together = run(tmp_path / "a", parts, batch_size=4, accumulative_counts=1, max_epochs=2)
    apart = run(tmp_path / "b", parts, batch_size=1, accumulative_counts=4, max_epochs=2)
    assert losses(together) == pytest.approx(losses(apart), rel=1e-5)
    one, many = (load(w / f"iter_{n}.pth") for w, n in ((together, 4), (apart, 12)))
    for name, tensor in one["state_dict"].items():
        assert torch.allclose(tensor, many["state_dict"][name], atol=1e-5), name


def test_micro_batch_reduction_is_the_mean_of_means(parts: Path, tmp_path: Path) -> None:
    by_token = run(tmp_path / "a", parts, batch_size=1, accumulative_counts=6)
    by_mean = run(
        tmp_path / "b", parts, batch_size=1, accumulative_counts=6, loss_reduction="micro_batch"
    )
    singles = run(tmp_path / "c", parts, batch_size=1, lr=1e-12)
    assert losses(by_mean)[0] == pytest.approx(sum(losses(singles)) / 6, rel=1e-5)
    assert losses(by_mean)[0] != pytest.approx(losses(by_token)[0], rel=1e-4)


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


def test_lora_of_both_parts_is_saved_under_published_names(parts: Path, tmp_path: Path) -> None:
    lora = dict(r=2, lora_alpha=4)
    changes = dict(llm_lora=lora, visual_encoder_lora=lora, activation_checkpointing=True)
    work = run(tmp_path, parts, max_epochs=2, **changes)
    names = set(load(work / "iter_6.pth")["state_dict"])
    head = "visual_encoder.base_model.model.vision_model.encoder.layers.0.self_attn.q_proj"
    assert f"{head}.lora_A.default.weight" in names
    assert not any("base_layer" in name for name in names)
    assert losses(work)[-1] < losses(work)[0]


@pytest.mark.parametrize("freeze_llm", [False, True])
def test_activation_checkpointing_computes_twice_and_changes_nothing(
    parts: Path, tmp_path: Path, freeze_llm: bool
) -> None:
    changes = dict(freeze_llm=freeze_llm, freeze_visual_encoder=freeze_llm, lr=1e-3)
    calls = {}
    for name, on in (("plain", False), ("checkpointed", True)):
        config = write_config(tmp_path / name, parts, activation_checkpointing=on, **changes)
        forward = Phi3MLP.forward
        with pytest.MonkeyPatch.context() as patch:
            counted = Mock(side_effect=forward, autospec=True)
            patch.setattr(Phi3MLP, "forward", lambda self, x, f=counted: f(self, x))
            run_training(load_settings(str(config)), tmp_path / name / "work")
        calls[name] = counted.call_count
    assert calls["checkpointed"] == 2 * calls["plain"] > 0
    plain, checkpointed = (losses(tmp_path / name / "work") for name in calls)
    assert plain == pytest.approx(checkpointed, rel=1e-6)


def test_sample_answers_do_not_disturb_the_run(parts: Path, tmp_path: Path) -> None:
    changes = dict(llm_lora=dict(r=2, lora_dropout=0.5))
    plain = run(tmp_path / "a", parts, **changes)
    sampled = run(
        tmp_path / "b",
        parts,
        **changes,
        evaluation_freq=1,
        evaluation_images=[str(parts / "images" / "0.png")],
        evaluation_inputs=["What is in the picture?"],
    )
    assert losses(plain) == losses(sampled)
    answers = [json.loads(line) for line in (sampled / "samples.jsonl").read_text().splitlines()]
    assert [a["iter"] for a in answers] == [1, 2, 3]
    assert answers[0]["question"] == "0.png What is in the picture?"


def test_a_failing_sample_answer_does_not_end_the_run(parts: Path, tmp_path: Path) -> None:
    work = run(tmp_path, parts, evaluation_freq=1, evaluation_inputs=["a<|end|>" * 600])
    assert (work / "iter_3.pth").is_file()


def test_the_second_stage_starts_from_the_first(parts: Path, tmp_path: Path) -> None:
    first = run(tmp_path / "a", parts, max_epochs=2)
    second = run(
        tmp_path / "b", parts, pretrained_pth=str(first / "iter_6.pth"), lr=1e-12, freeze_llm=False
    )
    before, after = load(first / "iter_6.pth"), load(second / "iter_3.pth")
    for name, tensor in before["state_dict"].items():
        assert torch.allclose(tensor, after["state_dict"][name], atol=1e-9)
    assert any(name.startswith("llm.") for name in after["state_dict"])


def test_text_only_training(parts: Path, tmp_path: Path) -> None:
    rows = [
        {
            "id": i,
            "conversations": [{"from": "human", "value": "one?"}, {"from": "gpt", "value": "two"}],
        }
        for i in range(5)
    ]
    data = tmp_path / "text.json"
    data.write_text(json.dumps(rows))
    work = run(
        tmp_path,
        parts,
        visual_encoder_name_or_path=None,
        freeze_llm=False,
        datasets=[dict(data_path=str(data))],
        max_epochs=5,
        lr=1e-3,
    )
    assert losses(work)[-1] < losses(work)[0]
    assert {name.split(".")[0] for name in load(work / "iter_15.pth")["state_dict"]} == {"llm"}


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


def test_a_large_seed(parts: Path, tmp_path: Path) -> None:
    run(tmp_path, parts, seed=2**40)


def test_too_many_skips_are_all_listed(parts: Path, tmp_path: Path) -> None:
    rows = [{"id": i, "conversations": []} for i in range(7)]
    data = tmp_path / "rows.json"
    data.write_text(json.dumps(rows))
    with pytest.raises(UserError, match="skipped.*\n.*skipped.jsonl"):
        run(tmp_path, parts, datasets=[dict(data_path=str(data))])
    assert len((tmp_path / "work" / "skipped.jsonl").read_text().splitlines()) == 7


def test_an_old_run_is_not_written_over(parts: Path, tmp_path: Path) -> None:
    run(tmp_path, parts)
    with pytest.raises(UserError, match=r"already holds a run \(iter_3.pth\)"):
        run(tmp_path, parts)


def test_resume_from_what_is_no_checkpoint(parts: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a checkpoint to resume from"):
        run(tmp_path, parts, resume=str(parts / "phi3"))


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


@pytest.mark.slow
def test_a_killed_run_and_an_interrupted_one_resume_exactly(parts: Path, tmp_path: Path) -> None:
    changes = dict(max_epochs=40, save_steps=3, save_total_limit=2)
    straight = run(tmp_path / "a", parts, **changes)
    config = write_config(tmp_path / "b", parts, **changes)
    work = tmp_path / "b" / "work"
    command = [sys.executable, "-m", "llava_tools", "train", str(config), "--work-dir", str(work)]
    for kill, expected in ((signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)):
        before = (work / "log.jsonl").stat().st_size if work.exists() else 0
        process = subprocess.Popen(
            [*command, "--resume"], stderr=subprocess.PIPE, env=os.environ | {"NO_COLOR": "1"}
        )
        while not (work / "log.jsonl").exists() or (
            (work / "log.jsonl").stat().st_size <= before + 400 and process.poll() is None
        ):
            assert process.poll() in (None, expected), process.stderr.read().decode()
        process.send_signal(kill)
        assert process.wait(60) == expected, process.stderr.read().decode()
    subprocess.run([*command, "--resume"], check=True, capture_output=True)
    assert losses(work) == losses(straight)
    assert same(load(work / "iter_120.pth"), load(straight / "iter_120.pth"))
