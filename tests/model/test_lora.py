"""LoRA checkpoints: merged as peft merges them, whatever the names, and never silently ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, CLIPVisionModel

from llava_tools.errors import UserError
from llava_tools.model.source import open_source
from tests.model.checkpoints import make_run

LORA = {"r": 4, "lora_alpha": 6}
TARGETS = {
    "llm": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "visual_encoder": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
}


def adapt(part: str, model: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return an adapter (names within the part), and the weights after peft's own merge."""
    torch.manual_seed(5)
    adapted = get_peft_model(model, LoraConfig(**LORA, target_modules=TARGETS[part]))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    saved = {n: t.detach().clone() for n, t in adapted.state_dict().items() if "lora_" in n}
    return saved, adapted.merge_and_unload().state_dict()


def put(run: Path, tensors: dict[str, torch.Tensor]) -> None:
    saved = torch.load(run, weights_only=True)
    saved["state_dict"] |= tensors
    torch.save(saved, run)


def test_an_llm_adapter_is_merged_as_peft_does(parts: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", parts, trains=(), llm_lora=LORA)
    adapter, wanted = adapt("llm", AutoModelForCausalLM.from_pretrained(parts / "phi3"))
    put(run, {f"llm.{name}": tensor for name, tensor in adapter.items()})
    source = open_source(run)
    before = open_source(parts / "phi3").tensors
    changed = 0
    for name, tensor in wanted.items():
        found = source.tensors[f"llm.{name}"].read()
        assert torch.allclose(found, tensor, atol=1e-6)
        changed += not torch.equal(found, before[f"llm.{name}"].read())
    assert changed == 2 * len(TARGETS["llm"])
    assert set(source.tensors) == set(open_source(make_run(tmp_path / "full", parts)).tensors)


@pytest.mark.parametrize(
    "prefix",
    [
        "visual_encoder.base_model.model.vision_model.",  # XTuner, transformers 4
        "visual_encoder.base_model.model.",  # the same since transformers 5.6
        "visual_encoder.vision_model.base_model.model.",  # ours
    ],
)
def test_a_tower_adapter_is_merged_under_every_name(
    parts: Path, tmp_path: Path, prefix: str
) -> None:
    run = make_run(tmp_path / "run", parts, trains=(), visual_encoder_lora=LORA)
    adapter, wanted = adapt("visual_encoder", CLIPVisionModel.from_pretrained(parts / "clip"))
    put(run, {n.replace("base_model.model.", prefix, 1): t for n, t in adapter.items()})
    source = open_source(run)
    for name, tensor in wanted.items():
        found = source.tensors[f"visual_encoder.vision_model.{name}"]
        assert torch.allclose(found.read(), tensor, atol=1e-6)


LAYER = "llm.base_model.model.model.layers.0.self_attn.o_proj"
FACTORS = {
    f"{LAYER}.lora_A.default.weight": torch.ones(2, 32),
    f"{LAYER}.lora_B.default.weight": torch.ones(32, 2),
}


@pytest.mark.parametrize(
    ("tensors", "lora", "message"),
    [
        (FACTORS, None, "holds an adapter, but the config has no llm_lora"),
        ({}, LORA, "lacks the adapter of llm_lora"),
        (dict(list(FACTORS.items())[:1]), LORA, "only half of the adapter of llm.model.layers.0"),
        (
            FACTORS | {f"{LAYER}.lora_B.default.weight": torch.ones(33, 2)},
            LORA,
            "the adapter of llm.model.layers.0.self_attn.o_proj.weight does not fit",
        ),
        (
            {f"{LAYER}.lora_magnitude_vector.default.weight": torch.ones(32)},
            LORA,
            "a kind of adapter that cannot be merged",
        ),
        (
            FACTORS
            | {"llm.base_model.model.lm_head.modules_to_save.default.weight": torch.ones(2, 2)},
            LORA,
            r"llm.lm_head.weight has shape \(2, 2\), in the base model",
        ),
    ],
)
def test_adapters_that_do_not_fit_are_errors(
    parts: Path,
    tmp_path: Path,
    tensors: dict[str, torch.Tensor],
    lora: dict[str, int] | None,
    message: str,
) -> None:
    run = make_run(tmp_path / "run", parts, trains=(), llm_lora=lora)
    put(run, tensors)
    with pytest.raises(UserError, match=message):
        open_source(run)
