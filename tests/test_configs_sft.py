"""The recipes of text fine-tuning have the numbers of their sources, and run on tiny models."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llava_tools.config import find_config, load_settings, recipes
from llava_tools.config.settings import Settings
from llava_tools.data.templates import get_template
from llava_tools.train.optim import learning_rate
from llava_tools.train.run import run_training
from tests import tiny
from tests.train.runs import read_log

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
FALCON = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]


@dataclass(frozen=True)
class Row:
    """A run as its source has it: `data` are (format, first rows, longest row)."""

    llm: str
    data: list[tuple[str, int | None, int | None]]
    max_length: int
    epochs: int
    lr: float
    schedule: str
    batch: tuple[int, int]
    train_on: str
    held_out: int | None = None
    warmup: float | int = 0.03
    decay: float = 0.0


def three(rows: int) -> list[tuple[str, int | None, int | None]]:
    return [(name, rows, 500) for name in ("slimorca", "platypus", "airoboros")]


DOLPHIN: list[tuple[str, int | None, int | None]] = [("dolphin", 110000, None)]
INSTRUCT: list[tuple[str, int | None, int | None]] = [
    ("platypus", 5000, None),
    ("dolphin", 7500, None),
]
GUANACO: list[tuple[str, int | None, int | None]] = [("guanaco", None, None)]
SHAREGPT: list[tuple[str, int | None, int | None]] = [("auto", None, None)]
SELF: list[tuple[str, int | None, int | None]] = [("alpaca", None, None)]
LLAMA = "meta-llama/Llama-2-{}b-hf"
QLORA = {
    "llama2_70b_dolphin_qlora": Row(
        LLAMA.format(70), [("dolphin", 30000, None)], 2048, 1, 2e-4, "cosine", (8, 1), "full", 5000
    ),
    "falcon_180b_platypus_dolphin_qlora": Row(
        "tiiuae/falcon-180B", INSTRUCT, 1024, 1, 2e-4, "cosine", (8, 1), "full", 2500
    ),
    "mistral_7b_airoboros_qlora": Row(
        "mistralai/Mistral-7B-v0.1", [("airoboros", 22000, 400)], 512, 3, 3e-4, "cosine", (8, 1),
        "last", 1000,
    ),
    "mistral_7b_orca_platypus_airoboros_qlora": Row(
        "mistralai/Mistral-7B-v0.1", three(20000), 512, 2, 3e-4, "cosine", (8, 2), "last"
    ),
    "llama2_13b_orca_platypus_airoboros_qlora": Row(
        LLAMA.format(13), three(20000), 512, 2, 3e-4, "cosine", (8, 2), "last"
    ),
    "mixtral_8x7b_orca_platypus_airoboros_qlora": Row(
        "mistralai/Mixtral-8x7B-v0.1", three(40000), 512, 2, 3e-4, "cosine", (8, 2), "last"
    ),
    "llama2_7b_guanaco_qlora": Row(
        LLAMA.format(7), GUANACO, 4096, 1, 2e-4, "linear", (8, 1), "full"
    ),
    "llama2_13b_guanaco_qlora": Row(
        LLAMA.format(13), GUANACO, 4096, 1, 2e-4, "linear", (8, 1), "full"
    ),
    "llama2_13b_dolphin_qlora": Row(
        LLAMA.format(13), DOLPHIN, 4096, 1, 2e-4, "constant", (8, 1), "full", 10000
    ),
    "llama2_7b_platypus_dolphin_qlora": Row(
        LLAMA.format(7), INSTRUCT, 2048, 1, 2e-4, "constant", (8, 1), "full", 2500
    ),
}  # fmt: skip
QWEN = Row("Qwen/Qwen1.5-0.5B", SELF, 4096, 3, 1e-5, "cosine", (1, 64), "all", None, 100, 0.1)
WHOLE = {
    "mobilellama_1_4b_sft": Row(
        "mtgv/MobileLLaMA-1.4B-Base", SHAREGPT, 2048, 3, 2e-5, "cosine", (16, 2), "all", None, 0.04
    ),
    "mobilellama_2_7b_sft": Row(
        "mtgv/MobileLLaMA-2.7B-Base", SHAREGPT, 2048, 2, 3e-5, "cosine", (16, 2), "all", None, 0.04
    ),
    "mpt_7b_dolphin_full": Row(
        "mosaicml/mpt-7b", DOLPHIN, 2048, 1, 2e-5, "linear", (8, 1), "full", 10000
    ),
    "mpt_7b_guanaco_full": Row(
        "mosaicml/mpt-7b", GUANACO, 2048, 3, 5e-5, "linear", (8, 1), "full"
    ),
    "phi2_papers_full": Row(
        "microsoft/phi-2", [("text", 1000, None)], 256, 5, 5e-4, "cosine", (8, 1), "full", 250, 500,
        0.1,
    ),
    "tinyllama_1_1b_cherry_sft": Row(
        "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", SELF, 512, 3, 2e-5, "linear",
        (4, 4), "full", None, 0.0,
    ),
    "qwen1_5_0_5b_self_instruct_full": QWEN,
}  # fmt: skip
ADAPTED = {"qwen1_5_0_5b_self_instruct_lora": QWEN}
TABLE = QLORA | WHOLE | ADAPTED


def test_the_table_has_every_recipe_of_text() -> None:
    found = {name for name, path in recipes().items() if path.parent.name == "sft"}
    assert found == set(TABLE)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_the_numbers_are_those_of_the_source(name: str) -> None:
    row, settings = TABLE[name], load_settings(name)
    assert len(find_config(name).read_text().splitlines()) <= 40
    assert settings.llm_name_or_path == row.llm and settings.visual_encoder_name_or_path is None
    assert [(d.format, d.first_rows, d.max_tokens) for d in settings.datasets] == row.data
    assert (settings.max_length, settings.max_epochs) == (row.max_length, row.epochs)
    assert (settings.lr, settings.lr_schedule) == (row.lr, row.schedule)
    assert (settings.batch_size, settings.accumulative_counts) == row.batch
    assert (settings.train_on, settings.eval_rows) == (row.train_on, row.held_out)
    warmup = settings.warmup_ratio if settings.warmup_steps is None else settings.warmup_steps
    assert (warmup, settings.weight_decay) == (row.warmup, row.decay)
    assert settings.decay_bias_and_norm is not bool(row.decay)
    assert settings.max_norm == 1.0 and settings.dtype == "bf16"
    assert settings.seed == (43 if name.startswith("phi2") else 42)
    assert get_template(settings.prompt_template)
    assert settings.llm_from_scratch is settings.chunks is (name == "phi2_papers_full")
    # The [INST] format of the sources has no place for a system text.
    kept = settings.prompt_template != "mistral_instruct"
    assert all(spec.keep_system is kept for spec in settings.datasets)
    alone = name == "mpt_7b_guanaco_full"
    assert all(spec.first_round is alone for spec in settings.datasets)


def test_the_papers_are_chunks_without_tails_looked_at_as_often_as_there() -> None:
    settings = load_settings("phi2_papers_full")
    assert not settings.keep_tails
    assert (settings.log_interval, settings.eval_steps, settings.save_steps) == (25, 100, 300)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_what_trains(name: str) -> None:
    settings = load_settings(name)
    if name in WHOLE:
        assert not settings.freeze_llm and settings.llm_lora is None
        assert settings.optimizer == "adamw" and settings.llm_quantization is None
        return
    assert settings.freeze_llm and settings.llm_lora is not None
    if name in ADAPTED:
        assert (settings.llm_lora["r"], settings.llm_lora["lora_alpha"]) == (8, 16)
        return
    assert settings.llm_lora == {
        "r": 64, "lora_alpha": 16, "lora_dropout": 0.1, "bias": "none",
        "target_modules": FALCON if "falcon" in name else ATTENTION,
    }  # fmt: skip
    packed = {"bits": 4, "quant_type": "nf4", "double_quant": False}
    assert settings.llm_quantization == packed and settings.norm_fp32
    assert settings.optimizer == "paged_adamw_32bit"


@pytest.mark.parametrize("name", sorted(n for n in TABLE if n.startswith("mobilellama")))
def test_mobilellama_trains_256_dialogues_a_step(name: str) -> None:
    settings = load_settings(name)
    assert settings.batch_size * settings.accumulative_counts * 8 == 256
    assert settings.prompt_template == "vicuna_v1.1"
    assert settings.save_steps == 1800 * 2 and settings.save_total_limit == 8
    assert learning_rate(0, 735, settings) == pytest.approx(settings.lr * 1e-5)
    assert learning_rate(29, 735, settings) == settings.lr  # 0.04 of the steps are behind
    assert learning_rate(734, 735, settings) < settings.lr * 1e-5


ROWS: dict[str, dict[str, Any]] = {
    "auto": {
        "conversations": [{"from": "human", "value": "one?"}, {"from": "gpt", "value": "two"}]
    },
    "dolphin": {"instruction": "Answer.", "input": "one or two?", "output": "two"},
    "platypus": {"instruction": "one or two?", "input": "", "output": "two"},
    "airoboros": {"instruction": "one or two?", "response": "two", "system": "A chat."},
    "guanaco": {"text": "### Human: one or two?### Assistant: two"},
    "text": {"text": "one two three four five six seven eight nine " * 20},
    "alpaca": {"instruction": "one or two?", "input": "", "output": "two"},
}
ROWS["slimorca"] = ROWS["auto"]
# A recipe for each way of training, and the family of its tiny model.
RUNS = {
    "mobilellama_1_4b_sft": "vicuna",
    "mixtral_8x7b_orca_platypus_airoboros_qlora": "mixtral",
    "falcon_180b_platypus_dolphin_qlora": "falcon",
    "llama2_7b_guanaco_qlora": "vicuna",
    "mpt_7b_dolphin_full": "mpt",
    "phi2_papers_full": "phi",
    "tinyllama_1_1b_cherry_sft": "vicuna",
    "qwen1_5_0_5b_self_instruct_lora": "qwen2",
}
SIZES: dict[str, dict[str, Any]] = {
    "mixtral": dict(num_local_experts=2, intermediate_size=64, num_key_value_heads=4),
    "falcon": dict(new_decoder_architecture=False, multi_query=True),
    "mpt": dict(d_model=64, n_heads=4, n_layers=2, max_seq_len=512),
    "phi": dict(intermediate_size=64, num_key_value_heads=4),
}


def llm_of(family: str, parts: Path, folder: Path) -> Path:
    """Return a tiny LLM: one of the fixtures', or one of an architecture of these recipes alone."""
    if family not in SIZES:
        return parts / family
    usual = dict(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=512
    )
    vocabulary = tiny.save_tokenizer(folder, "vicuna")
    sizes = (usual if family != "mpt" else {}) | SIZES[family]
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=vocabulary, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def tiny_values(settings: Settings, folder: Path, llm: Path) -> dict[str, Any]:
    """Return what makes a recipe two steps on a tiny model: names, sizes, and two rows a step."""
    specs = []
    for i, spec in enumerate(settings.datasets):
        path = folder / f"{i}.jsonl"
        rows = [ROWS[spec.format] | {"id": str(n)} for n in range(6)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        values = dict(format=spec.format, max_tokens=spec.max_tokens, keep_system=spec.keep_system)
        specs.append(dict(data_path=str(path), **values))
    small = dict(batch_size=2, accumulative_counts=1, max_epochs=1, num_workers=0, log_interval=1)
    held = dict(eval_rows=None, save_steps=0, evaluation_freq=0, report_to=["none"])
    return dict(llm_name_or_path=str(llm), datasets=specs, dtype="fp32") | small | held


@pytest.mark.parametrize("name", sorted(RUNS))
def test_a_recipe_runs_on_a_tiny_model(name: str, parts: Path, tmp_path: Path) -> None:
    settings = load_settings(name)
    if settings.llm_quantization:
        pytest.importorskip("bitsandbytes")
    values = tiny_values(settings, tmp_path, llm_of(RUNS[name], parts, tmp_path / "llm"))
    config = tmp_path / "tiny.py"
    lines = [f"{key} = {value!r}\n" for key, value in ({"base": name} | values).items()]
    config.write_text("".join(lines))
    if settings.packing:
        config.write_text(config.read_text() + "max_length = 24\n")
    assert run_training(load_settings(str(config)), tmp_path / "work") == 0
    log = read_log(tmp_path / "work")
    assert log and all(0 < line["loss"] < 20 and line["grad_norm"] > 0 for line in log)
