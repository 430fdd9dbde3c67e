"""Every recipe loads, and the published ones have the published values and iteration counts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from llava_tools.config import find_config, iterations, load_settings, planned_rows, recipes

ROOT = Path(__file__).parents[1]
PHI3, LLAMA3 = "llava_phi3_mini_4k_instruct", "llava_llama3_8b_instruct"
CLIP = "clip_vit_large_p14_336"
FAMILIES = {
    PHI3: ("microsoft/Phi-3-mini-4k-instruct", "phi3_chat"),
    LLAMA3: ("meta-llama/Meta-Llama-3-8B-Instruct", "llama3_chat"),
}

# data -> (rows, max_length, first file)
PT = (558128, 1472, "./data/llava_data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json")
S4V = (1246901, 3520, "./data/sharegpt4v/share-captioner_coco_lcs_sam_1246k_1107.json")
MIX = (665298, 1472, "./data/llava_data/LLaVA-Instruct-150K/llava_v1_5_mix665k.json")
IVL = (1267819, 3520, "./data/internvl_sft/sharegpt4v_instruct_gpt4-vision_cap100k.jsonl")

# name -> stage, tower, lr, batch x accumulation, epochs, data, save, start, (micro-batches, steps)
TABLE: dict[str, tuple[Any, ...]] = {
    f"{PHI3}_{CLIP}_e1_gpu8_pretrain": (
        ("pretrain", "frozen", 1e-3, 32, 1, 1, PT, 500, None, (2181, 2181))
    ),
    f"{PHI3}_{CLIP}_e1_gpu8_sharegpt4v_pretrain": (
        ("pretrain", "frozen", 1e-3, 16, 2, 1, S4V, 1000, None, (9742, 4871))
    ),
    f"{PHI3}_full_{CLIP}_e1_gpu8_finetune": (
        ("finetune", "frozen", 2e-5, 8, 2, 1, MIX, 1000, "e1_gpu8_pretrain", (10396, 5198))
    ),
    f"{PHI3}_full_{CLIP}_full_e2_gpu8_internvl_finetune": (
        (
            "finetune",
            "full",
            2e-5,
            8,
            2,
            2,
            IVL,
            5000,
            "e1_gpu8_sharegpt4v_pretrain",
            (39620, 19810),
        )
    ),
    f"{LLAMA3}_{CLIP}_e1_gpu8_pretrain": (
        ("pretrain", "frozen", 1e-3, 32, 1, 1, PT, 500, None, (2181, 2181))
    ),
    f"{LLAMA3}_{CLIP}_e1_gpu8_sharegpt4v_pretrain": (
        ("pretrain", "frozen", 1e-3, 16, 2, 1, S4V, 1000, None, (9742, 4871))
    ),
    f"{LLAMA3}_full_{CLIP}_e1_gpu8_finetune": (
        ("finetune", "frozen", 2e-5, 8, 2, 1, MIX, 1000, "e1_gpu8_pretrain", (10396, 5198))
    ),
}
INTERNVL = {
    "sharegpt4v_instruct_gpt4-vision_cap100k": ("data", 102025),
    "llava_instruct_150k_zh": ("data/coco", 157712),
    "sharegpt4v_mix665k_cap23k_coco-ap9k_lcs3k_sam9k_div2k": ("data", 665058),
    "dvqa_train_200k": ("data/dvqa", 200000),
    "chartqa_train_18k": ("data/chartqa", 18317),
    "ai2d_train_12k": ("data/ai2d", 12413),
    "docvqa_train_10k": ("data/docvqa", 10211),
    "geoqa+": ("data/geoqa+", 72318),
    "synthdog_en": ("data/synthdog-en", 29765),
}


@pytest.mark.parametrize("name", sorted(TABLE))
def test_published_values(name: str) -> None:
    stage, tower, lr, batch, accumulation, epochs, data, save, start, counts = TABLE[name]
    settings = load_settings(name)
    family = next(family for family in FAMILIES if name.startswith(family))
    assert (settings.llm_name_or_path, settings.prompt_template) == FAMILIES[family]
    assert settings.visual_encoder_name_or_path == "openai/clip-vit-large-patch14-336"
    assert settings.freeze_llm is (stage == "pretrain")
    assert settings.freeze_visual_encoder is (tower == "frozen")
    assert settings.sampler == {"pretrain": "shuffle", "finetune": "length_grouped"}[stage]
    assert {d.pad_image_to_square for d in settings.datasets} == {stage == "finetune"}
    assert (settings.lr, settings.batch_size, settings.accumulative_counts) == (
        *(lr, batch, accumulation),
    )
    assert settings.max_epochs == epochs
    assert (settings.save_steps, settings.evaluation_freq) == (save, save)
    rows, max_length, first = data
    assert settings.max_length == max_length and settings.datasets[0].data_path == first
    assert planned_rows(settings) == rows
    assert iterations(settings, rows, 8) == counts
    if start is None:
        assert settings.pretrained_pth is None
    else:
        before = f"{family}_{CLIP}_{start}"
        micro_batches = TABLE[before][-1][0]
        assert settings.pretrained_pth == f"./work_dirs/{before}/iter_{micro_batches}.pth"


@pytest.mark.parametrize("name", sorted(TABLE))
def test_values_that_all_share(name: str) -> None:
    settings = load_settings(name)
    assert settings.betas == (0.9, 0.999) and settings.weight_decay == 0.0
    assert settings.max_norm == 1.0 and settings.warmup_ratio == 0.03
    assert settings.save_total_limit == 2 and settings.log_interval == 10
    assert settings.num_workers == 4 and settings.visual_select_layer == -2
    assert settings.projector_depth == 2 and settings.system == "" and settings.dtype == "bf16"


def test_the_nine_internvl_sets() -> None:
    settings = load_settings(f"{PHI3}_full_{CLIP}_full_e2_gpu8_internvl_finetune")
    found = {
        Path(d.data_path).stem: (d.image_folder.removeprefix("./data/internvl_sft/"), d.rows)
        for d in settings.datasets
    }
    assert found == INTERNVL


@pytest.mark.parametrize("name", sorted(recipes()))
def test_every_recipe_is_short_and_loads(name: str) -> None:
    settings = load_settings(name)
    assert settings.datasets
    assert len(find_config(name).read_text().splitlines()) <= 40


def test_recipe_names_are_unique() -> None:
    stems = [
        file.stem
        for file in (ROOT / "configs").rglob("*.py")
        if file.name != "__init__.py" and file.parts[-2] != "base"
    ]
    assert len(stems) == len(set(stems)) == len(recipes())


def test_configs_inherit_by_relative_import_only() -> None:
    for file in (ROOT / "configs").rglob("*.py"):
        imports = re.findall(r"^\s*(?:from|import) (\S+)", file.read_text(), re.MULTILINE)
        assert all(name.startswith("..") or name == "mmengine.config" for name in imports), file


def test_deepspeed_zero2_leaves_to_the_config_what_the_config_decides() -> None:
    config = json.loads((ROOT / "configs/deepspeed/deepspeed_zero2.json").read_text())
    assert config["zero_optimization"] == {"stage": 2, "overlap_comm": True}
    assert config["zero_allow_untested_optimizer"] is True
    assert config["zero_force_ds_cpu_optimizer"] is False
    for key in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        assert config[key] == "auto"
    assert config["gradient_clipping"] == config["bf16"]["enabled"] == "auto"
    assert "optimizer" not in config  # DeepSpeed would compile one of its own
