"""ZeRO 1, 2, 3 on gloo ranks: the losses of one plain process, no hanging, resuming elsewhere.

The runs share one process that forks the ranks; the tests look at what each has left.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llava_tools.data.samplers import epoch_order
from llava_tools.model.source import read_checkpoint
from llava_tools.model.zero import read_zero_moments
from tests.train.ranks import Job, run_jobs
from tests.train.runs import load, losses, write_config

pytest.importorskip("deepspeed")

LORA = dict(r=4, lora_alpha=8, lora_dropout=0.0)
# Two groups of parameters, of which one decays: much, so that a wrong group shows in the losses.
GROUPS = dict(weight_decay=10.0, decay_bias_and_norm=False)
KINDS: dict[str, dict[str, Any]] = {
    "pretrain": dict(freeze_llm=True),
    "full": dict(freeze_llm=False, **GROUPS),
    "lora": dict(
        freeze_llm=True, llm_lora=LORA, visual_encoder_lora=LORA, activation_checkpointing=True
    ),
}
# (kind, ranks, stage or file, settings). Four rows a step on every number of ranks.
RUNS = [
    ("pretrain", 1, None, dict(batch_size=4)),
    ("full", 1, None, dict(batch_size=1, accumulative_counts=4)),
    ("lora", 1, None, dict(batch_size=2, accumulative_counts=2)),
    ("pretrain", 2, "zero1", dict(batch_size=1, accumulative_counts=2)),
    ("pretrain", 2, "zero3", dict(batch_size=1, accumulative_counts=2)),
    ("full", 4, "zero2", dict(batch_size=1)),
    ("full", 2, "zero3", dict(batch_size=1, accumulative_counts=2, evaluation_freq=4)),
    ("lora", 2, "zero2_offload", dict(batch_size=2)),
    ("lora", 2, "zero3_offload", dict(batch_size=2)),
]
DIVERGED = dict(lr=1e30, max_norm=1e30, dtype="bf16", save_steps=0)
# Where runs go on after their first step, on how many ranks and with which engine.
RESUMED = [
    ("full-4-zero2", 4, "zero2"),
    ("full-4-zero2", 2, "zero2"),
    ("full-4-zero2", 1, None),
    ("full-2-zero3", 4, "zero3"),
    ("full-2-zero3", 1, "zero3"),
    ("lora-1-None", 2, "zero1"),
    ("lora-2-zero2_offload", 2, "zero2_offload"),
]


def name_of(kind: str, ranks: int, engine: str | None) -> str:
    return f"{kind}-{ranks}-{engine}"


def skewed_data(folder: Path, parts: Path) -> list[dict[str, str]]:
    """Write 12 rows of which, in the order of training, every other one is text alone.

    Of two or four ranks, half see nothing but text then, and half nothing but images.
    """
    rows = json.loads((parts / "llava.json").read_text())
    kinds = [[row for row in rows if ("image" in row) == with_image] for with_image in (0, 1)]
    placed: list[Any] = [None] * 12
    for place, row in enumerate(epoch_order("shuffle", np.ones(12, int), 42, 0, 1, 1, 4)):
        kind = kinds[place % 2]
        placed[row] = {**kind[place // 2 % len(kind)], "id": str(row)}
    (folder / "skewed.json").write_text(json.dumps(placed))
    return [dict(data_path=str(folder / "skewed.json"), image_folder=str(parts / "images"))]


@pytest.fixture(scope="module")
def runs(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    common = dict(sampler="shuffle", seed=42, lr=1e-3, max_epochs=1, save_total_limit=9)
    common |= dict(datasets=skewed_data(folder, parts), save_steps=1)
    jobs = []
    for kind, ranks, engine, changes in RUNS:
        name = name_of(kind, ranks, engine)
        config = write_config(folder / "configs" / name, parts, **common, **KINDS[kind], **changes)
        jobs.append(Job(str(config), str(folder / name), ranks, deepspeed(engine)))
    for name, ranks, engine in RESUMED:
        work = f"{name}-to-{ranks}-{engine}"
        config = write_config(folder / "configs" / work, parts, **common, **resumed(name))
        first = resumed(name).get("accumulative_counts", 1)
        start = str(folder / name / f"iter_{first}.pth")
        jobs.append(Job(str(config), str(folder / work), ranks, deepspeed(engine), start))
    config = write_config(folder / "configs/diverged", parts, **common | DIVERGED)
    jobs.append(Job(str(config), str(folder / "diverged"), 2, deepspeed("zero2"), fails=True))
    run_jobs(folder, jobs)
    return folder


def deepspeed(engine: str | None) -> str | None:
    return engine and f"deepspeed_{engine}"


def last(work_dir: Path) -> Path:
    return work_dir / (work_dir / "last_checkpoint").read_text().strip()


def resumed(name: str) -> dict[str, Any]:
    found = next(KINDS[k] | changes for k, n, e, changes in RUNS if name_of(k, n, e) == name)
    return found | {"evaluation_freq": 0}  # sample answers of many ranks on a core are slow


@pytest.mark.parametrize("run", [name_of(*run[:3]) for run in RUNS[3:]])
def test_losses_are_those_of_one_plain_process(runs: Path, run: str) -> None:
    kind = run.split("-")[0]
    plain = losses(runs / f"{kind}-1-None")
    assert len(plain) == 3 and plain[0] > plain[-1]
    assert losses(runs / run) == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("run", [name_of(*run[:3]) for run in RUNS[3:]])
def test_checkpoints_hold_what_a_plain_one_does(runs: Path, run: str) -> None:
    plain = runs / f"{run.split('-')[0]}-1-None"
    path, file = last(runs / run), last(plain)
    wanted, found = read_checkpoint(file), read_checkpoint(path)
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert torch.allclose(found[name].read().float(), tensor.read().float(), atol=2e-5), name
    states = load(file)["optimizer"]["state"]
    for i, (name, own) in enumerate(read_zero_moments(path).items()):
        assert int(own["step"].read()) == 3
        for key in ("exp_avg", "exp_avg_sq"):  # plain keeps none of what has no gradient
            kept = states[i][key] if i in states else torch.zeros(own[key].shape)
            scale = float(kept.abs().max()) + 1e-12
            assert torch.allclose(own[key].read(), kept, atol=1e-3 * scale), (name, key)


@pytest.mark.parametrize(("run", "ranks", "engine"), RESUMED)
def test_a_run_goes_on_elsewhere(runs: Path, run: str, ranks: int, engine: str | None) -> None:
    rest, whole = losses(runs / f"{run}-to-{ranks}-{engine}"), losses(runs / run)
    assert len(rest) == 2 and rest == pytest.approx(whole[1:], rel=1e-5)
    if run.endswith(f"-{ranks}-{engine}"):  # nothing was cut anew
        assert rest == whole[1:]
        found = read_checkpoint(last(runs / f"{run}-to-{ranks}-{engine}"))
        wanted = read_checkpoint(last(runs / run))
        assert all(torch.equal(found[name].read(), wanted[name].read()) for name in wanted)


def test_samples_are_told_once_where_all_ranks_answer(runs: Path) -> None:
    lines = (runs / "full-2-zero3" / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["iter"] for line in lines] == [4, 6]


def test_ranks_that_have_diverged_all_end_and_save_nothing(runs: Path) -> None:
    work = runs / "diverged"
    for rank in range(2):
        assert "step 2 is inf: the run has diverged" in (work / f"failed_{rank}.txt").read_text()
    assert len(losses(work)) == 1 and not list(work.glob("iter_*"))
