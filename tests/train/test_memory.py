"""Memory by part: the table of bytes a parameter, for every engine, and the real models."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llava_tools.config import Settings, load_settings
from llava_tools.errors import UserError
from llava_tools.train.flops import Work, Workload
from llava_tools.train.forecast import GPUS, STAGES, Forecast, alternatives, between
from llava_tools.train.memory import GIB, Memory, Zero, estimate
from llava_tools.train.rehearsal import PartSize, Rehearsal
from llava_tools.train.zero_config import read_deepspeed_config

N, FROZEN = 1000, 300  # parameters that train, and that do not
NOTHING = Workload(Work(), Work(), Work(), Work())
PHI3 = dict(
    model_type="phi3", vocab_size=32064, hidden_size=3072, intermediate_size=8192,
    num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32, pad_token_id=32000,
    max_position_embeddings=4096, original_max_position_embeddings=4096, sliding_window=2047,
)  # fmt: skip
CLIP = dict(
    model_type="clip_vision_model", hidden_size=1024, intermediate_size=4096,
    num_hidden_layers=24, num_attention_heads=16, image_size=336, patch_size=14,
)  # fmt: skip


def rehearsal(**peak: int) -> Rehearsal:
    parts = {
        "llm": PartSize(N, N, 0, 0),
        "visual_encoder": PartSize(FROZEN, 0, 0, 0),
    }
    return Rehearsal(parts, peak or {"activations": 10**6, "logits": 10**5}, NOTHING)


def needs(zero: Zero | None, gpus: int = 4, dtype: str = "bf16", **peak: int) -> Memory:
    settings = Settings("llm", "plain", (), dtype=dtype)
    return estimate(settings, rehearsal(**peak), zero, gpus, cuda=False)


@pytest.mark.parametrize(
    ("zero", "weights", "gradients", "optimizer"),
    [
        (Zero(1, bucket=0), 2 * (N + FROZEN), 6 * N, 12 * N // 4),
        (Zero(2, bucket=0), 2 * (N + FROZEN), 4 * N // 4, 12 * N // 4),
        (Zero(3, bucket=0, gathered=0), 2 * (N + FROZEN) // 4, 4 * N // 4, 12 * N // 4),
        (Zero(3, bucket=0, gathered=100), 2 * (N + FROZEN) // 4 + 200, N, 3 * N),
        (Zero(2, offload_optimizer=True, bucket=0), 2 * (N + FROZEN), 0, 0),
        (Zero(3, True, True, bucket=0, gathered=0), 0, 0, 0),
    ],
)
def test_bytes_of_each_stage(zero: Zero, weights: int, gradients: int, optimizer: int) -> None:
    memory = needs(zero)
    assert (memory.weights, memory.gradients, memory.optimizer) == (weights, gradients, optimizer)
    assert memory.activations == 10**6 and memory.logits == 10**5
    moved = (12 * N // 4 + 4 * N // 4) * zero.offload_optimizer
    moved += 2 * (N + FROZEN) // 4 * zero.offload_weights
    assert memory.host == moved
    assert memory.total == weights + gradients + optimizer + 10**6 + 10**5


def test_the_plain_engine_keeps_fp32_of_what_trains() -> None:
    memory = needs(None, activations=10**6, gradients=4 * N)
    assert memory.weights == 4 * N + 2 * FROZEN
    assert memory.gradients == 4 * N and memory.optimizer == 8 * N
    assert needs(None, dtype="fp32", activations=10**6).weights == 4 * (N + FROZEN)


@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw_8bit"])
def test_an_8_bit_optimizer_is_a_quarter(name: str) -> None:
    settings = Settings("llm", "plain", (), optimizer=name)
    assert estimate(settings, rehearsal(), None, 1).optimizer == int(N * (2 + 8 / 256))


def test_the_update_may_be_the_peak() -> None:
    memory = needs(Zero(2, bucket=0), activations=10)
    assert memory.activations == 0 and memory.gradients == 2 * N
    assert needs(None, activations=10).gradients == 4 * N


def test_buckets_are_workspace() -> None:
    assert needs(Zero(2, bucket=500, overlap=True)).workspace == 500 * 2 * 2
    assert needs(Zero(2, bucket=500)).workspace == 500 * 2
    assert needs(Zero(3, bucket=500, overlap=True)).workspace == 500 * 2
    assert needs(Zero(2, bucket=500), dtype="fp32").workspace == 500 * 4


@pytest.mark.parametrize(
    ("spec", "size"),
    [(dict(), 0.5162), (dict(double_quant=False), 0.5625), (dict(bits=8), 1.001)],
)
def test_a_quantised_base_is_small(spec: dict[str, Any], size: float) -> None:
    parts = {"llm": PartSize(1100, 100, 800, 50)}  # an adapter of 100, 200 in norms and embeddings
    settings = Settings("llm", "plain", (), freeze_llm=True, llm_quantization=spec)
    memory = estimate(settings, Rehearsal(parts, {"activations": 9999}, NOTHING), None, 1)
    assert memory.weights == int(4 * 100 + 2 * 200 + 800 * size)
    assert memory.activations == 9999 + 2 * 50


def test_shipped_configurations_are_read() -> None:
    settings = Settings("llm", "plain", ())
    for name, zero in STAGES.items():
        assert Zero.read(read_deepspeed_config(name, settings, 8)) == zero
    own = {"zero_optimization": {"stage": 3, "reduce_bucket_size": 5, "offload_param": None}}
    assert Zero.read(own) == Zero(3, bucket=5, overlap=True)


@pytest.mark.parametrize(
    "wrong",
    [{"reduce_bucket_size": "big"}, {"reduce_bucket_size": 1e999}, {"offload_optimizer": "cpu"}],
)
def test_a_configuration_with_a_value_of_a_wrong_kind(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="A value under zero_optimization is of a wrong kind"):
        Zero.read({"zero_optimization": {"stage": 2, **wrong}})


def test_batches_between_two_follow_a_line() -> None:
    low, high = rehearsal(activations=10, logits=4), rehearsal(activations=80, logits=32)
    assert between(low, high, 3 / 7).peak == {"activations": 40, "logits": 16}


def test_alternatives_keep_the_rows_of_a_step() -> None:
    settings = Settings("llm", "plain", (), batch_size=8, accumulative_counts=2)
    found = list(alternatives(settings, None, 1))
    for _, changed, _ in found:
        assert changed.batch_size * changed.accumulative_counts == 16
    texts = [text for text, _, _ in found]
    assert texts[0] == "batch_size = 4, accumulative_counts = 4"
    assert "--deepspeed deepspeed_zero2" not in texts  # of one GPU it shares out nothing
    assert any("QLoRA" in text for text in texts)
    assert any(
        text == "--deepspeed deepspeed_zero3" for text, _, _ in alternatives(settings, None, 2)
    )


def test_an_adapter_stays_as_it_is() -> None:
    lora = {"r": 512, "lora_alpha": 256}
    settings = Settings("llm", "plain", (), freeze_llm=True, llm_lora=lora, batch_size=1)
    found = {text: changed for text, changed, _ in alternatives(settings, None, 2)}
    assert found["llm_quantization = dict(bits=4)"].llm_lora == lora
    assert not [text for text in found if "lora" in text or "batch_size" in text]


@pytest.fixture(scope="module")
def phi3_mini(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Full fine-tuning of the published model, of which there is config.json alone."""
    root = tmp_path_factory.mktemp("configs")
    for name, values in (("phi3", PHI3), ("clip", CLIP)):
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(values))
    recipe = (
        "llava_phi3_mini_4k_instruct_full_clip_vit_large_p14_336_full_e2_gpu8_internvl_finetune"
    )
    settings = load_settings(recipe)
    names = str(root / "phi3"), str(root / "clip")
    return replace(settings, llm_name_or_path=names[0], visual_encoder_name_or_path=names[1])


@pytest.mark.slow
def test_phi3_mini_fits_eight_large_gpus_and_no_small_one(phi3_mini: Settings) -> None:
    eight = Forecast(phi3_mini, STAGES["deepspeed_zero2"], 8)
    assert 25 * GIB < eight.memory.total < 80 * GIB
    assert eight.memory.weights == 2 * (3_821_079_552 + 303_507_456 + 12_589_056)
    one = Forecast(replace(phi3_mini, batch_size=1), None, 1)
    assert one.memory.total > 60 * GIB  # 16 bytes a parameter alone
    counts, rate = eight.counts(800), GPUS["a100-80g"][0] * 1e12
    assert counts.tokens == 800 * phi3_mini.batch_size * phi3_mini.accumulative_counts * 8
    flops = eight.rehearsal.work.total(counts)
    assert flops == pytest.approx(6 * 3.8e9 * counts.tokens, rel=0.15)  # the rule of thumb
    assert eight.seconds(counts, rate, 0.5) == pytest.approx(flops / (8 * 312e12 * 0.5))


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "dtype"), [(1, "bf16"), (2, "bf16"), (3, "bf16"), (2, "fp32")])
def test_deepspeed_needs_what_is_estimated(tmp_path: Path, stage: int, dtype: str) -> None:
    command = [sys.executable, "-m", "tests.train.zero_peak", str(stage), dtype, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    real, estimated = map(int, result.stdout.splitlines()[-1].split())
    assert estimated == pytest.approx(real, rel=0.12)
