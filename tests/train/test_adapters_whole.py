"""What LoRA trains beside its factors (modules_to_save, biases) is in all that is made of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, CLIPVisionModel

from llava_tools.config import load_settings
from llava_tools.converters.convert import convert
from llava_tools.model.load import load_assistant
from llava_tools.model.source import open_source
from llava_tools.train.build import build_model
from tests.train.runs import write_config

IDS = torch.arange(3, 40)[None]
TEMPLATES = {"vicuna": "vicuna_v1.1", "qwen2": "chatml"}  # apart and tied embeddings; with biases


def finished(folder: Path, parts: Path, **changes: Any) -> tuple[Path, Any]:
    """Write a run's checkpoint, as if it had trained; return it and the model."""
    settings = load_settings(str(write_config(folder, parts, **changes)))
    model = build_model(settings).eval()
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.1 * torch.randn_like(parameter))
    (folder / "config_under_test.py").rename(folder / "config.py")
    state = {"state_dict": model.trained_state_dict(), "meta": {"iter": 1}}
    torch.save(state, folder / "iter_1.pth")
    return folder / "iter_1.pth", model


def logits(llm: Any) -> torch.Tensor:
    with torch.no_grad():
        return llm.eval()(input_ids=IDS).logits.float()


@pytest.mark.parametrize(
    ("family", "option"),
    [
        ("vicuna", {"modules_to_save": ["embed_tokens", "lm_head"]}),
        ("qwen2", {"modules_to_save": ["lm_head"]}),
        ("qwen2", {"modules_to_save": ["embed_tokens", "norm", "mlp"]}),
        ("qwen2", {"bias": "lora_only"}),
        ("qwen2", {"bias": "all", "target_modules": ["q_proj", "down_proj"]}),
    ],
    ids=str,
)
def test_a_run_is_reloaded_converted_and_kept_apart(
    parts: Path, tmp_path: Path, family: str, option: dict[str, Any]
) -> None:
    made, model = finished(
        *(tmp_path / "run", parts),
        visual_encoder_name_or_path=None,
        llm_name_or_path=str(parts / family),
        prompt_template=TEMPLATES[family],
        llm_lora={"r": 4, **option},
    )
    wanted = logits(model.llm)
    assert not torch.allclose(
        wanted, logits(AutoModelForCausalLM.from_pretrained(parts / family)), atol=0.05
    )
    assert torch.allclose(logits(load_assistant(made, dtype="fp32").model.llm), wanted, atol=1e-5)
    convert(made, tmp_path / "hf", "hf", dtype="fp32")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert torch.allclose(logits(whole), wanted, atol=1e-5)
    convert(made, tmp_path / "x", "xtuner", dtype="fp32", adapter_only=True)
    adapter = tmp_path / "x/llm_adapter"
    for path, options in ((adapter, {}), (parts / family, {"adapter": adapter})):
        found = load_assistant(path, dtype="fp32", **options).model.llm
        assert torch.allclose(logits(found), wanted, atol=1e-5)
    base = AutoModelForCausalLM.from_pretrained(parts / family)
    assert torch.allclose(logits(PeftModel.from_pretrained(base, adapter)), wanted, atol=1e-5)


def test_a_towers_biases_too(parts: Path, tmp_path: Path) -> None:
    options = {"r": 4, "bias": "all", "modules_to_save": ["pre_layrnorm"]}
    made, model = finished(tmp_path / "run", parts, visual_encoder_lora=options)
    wanted = model.visual_encoder.merge_and_unload().state_dict()
    before = CLIPVisionModel.from_pretrained(parts / "clip").state_dict()
    found = open_source(made).tensors
    convert(made, tmp_path / "x", "xtuner", dtype="fp32", adapter_only=True)
    apart = open_source(tmp_path / "x").tensors
    changed = 0
    for name, tensor in wanted.items():
        name = name.removeprefix("vision_model.")
        for tensors in (found, apart):
            kept = tensors[f"visual_encoder.vision_model.{name}"].read()
            assert torch.allclose(kept, tensor, atol=1e-6), name
        changed += name.endswith("bias") and not torch.equal(before[name], tensor)
    assert changed > 10


@pytest.mark.parametrize("tower", [False, True])
def test_in_four_bits_the_factors_stay_beside_them(
    parts: Path, tmp_path: Path, tower: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """As QLoRA trained them: merged first, a small change would be rounded away."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    packed = {"bits": 4, "quant_type": "nf4", "double_quant": True}
    made, model = finished(
        *(tmp_path / "run", parts),
        visual_encoder_name_or_path=str(parts / "clip") if tower else None,
        llm_name_or_path=str(parts / "qwen2"),
        prompt_template="chatml",
        llm_lora={"r": 4, "lora_alpha": 6, "bias": "all", "modules_to_save": ["lm_head"]},
        llm_quantization=packed,
    )
    convert(made, tmp_path / "x", "xtuner", dtype="fp32", adapter_only=True)
    for path in (made, tmp_path / "x"):
        found = load_assistant(path, dtype="fp32", quantization=packed).model
        assert (found.visual_encoder is not None) is tower
        assert torch.allclose(logits(found.llm), logits(model.llm), atol=1e-5)
    assert "was trained beside weights" not in caplog.text
    for path in (made, tmp_path / "x"):
        caplog.clear()
        load_assistant(path, dtype="fp32", quantization=packed | {"quant_type": "fp4"})
        assert "in 4 bits (nf4, double quant); they are packed in 4 bits (fp4," in caplog.text
    plain = load_assistant(parts / "qwen2", quantization=packed, template="chatml").model.llm
    assert not torch.allclose(logits(plain), logits(model.llm), atol=1e-2)
