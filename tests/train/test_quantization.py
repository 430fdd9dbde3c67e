"""QLoRA and quantised pretraining: real runs in bitsandbytes' packed weights, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from llava_tools.cli.entry import run as run_command
from llava_tools.config import load_settings
from llava_tools.errors import UserError
from llava_tools.model.llava import LlavaModel
from llava_tools.model.load import load_llm, load_model
from llava_tools.model.source import open_source
from llava_tools.train.build import build_model
from llava_tools.train.place import place
from tests.train.runs import load, losses, run, same, write_config

bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

NF4 = {"bits": 4, "quant_type": "nf4", "double_quant": True}
KINDS: dict[str, dict[str, Any]] = {
    "nf4, double": NF4,
    "nf4": NF4 | {"double_quant": False},
    "fp4": {"bits": 4, "quant_type": "fp4", "double_quant": False},
    "8 bit": {"bits": 8},
}
QLORA = {"llm_quantization": NF4, "llm_lora": {"r": 4, "lora_alpha": 8}}


def build(folder: Path, parts: Path, **changes: Any) -> LlavaModel:
    return build_model(load_settings(str(write_config(folder, parts, **changes))))


def packed(part: nn.Module) -> dict[str, nn.Linear]:
    kinds = (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)
    return {name: module for name, module in part.named_modules() if isinstance(module, kinds)}


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_llms_layers_are_packed_and_place_leaves_them_alone(
    parts: Path, tmp_path: Path, kind: str
) -> None:
    lora = {"r": 4}
    model = build(
        *(tmp_path, parts),
        llm_quantization=KINDS[kind],
        llm_lora=lora,
        visual_encoder_lora=lora,
        dtype="bf16",
    )
    before = {name: layer.weight.data.clone() for name, layer in packed(model).items()}
    place(model, torch.device("cpu"), trained=torch.float32, frozen=torch.bfloat16)
    assert len(before) == 2 * 4 and all(name.startswith("llm.") for name in before)
    assert not any("lm_head" in name for name in before)
    assert all("visual_encoder" not in name and "projector" not in name for name in before)
    for name, layer in packed(model).items():
        assert layer.weight.dtype in (torch.uint8, torch.int8)
        assert torch.equal(layer.weight.data, before[name])
        assert getattr(layer, "compute_dtype", torch.bfloat16) == torch.bfloat16
    floating = [p for p in model.parameters() if p.is_floating_point()]
    assert {p.dtype for p in floating if not p.requires_grad} == {torch.bfloat16}
    assert {p.dtype for p in floating if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize("kind", ["nf4, double", "8 bit"])
def test_packed_layers_are_not_trained_as_a_whole(parts: Path, tmp_path: Path, kind: str) -> None:
    options = {"r": 4, "target_modules": ["o_proj"], "modules_to_save": ["norm", "mlp"]}
    with pytest.raises(UserError, match="name mlp, whose weights llm_quantization packs"):
        build(tmp_path, parts, llm_quantization=KINDS[kind], llm_lora=options)


@pytest.mark.parametrize("kind", ["nf4, double", "nf4", "fp4"])
def test_four_bits_compute_what_bitsandbytes_unpacks(parts: Path, kind: str) -> None:
    quantized = load_llm(str(parts / "phi3"), dtype=torch.float32, quantization=KINDS[kind])
    original = load_llm(str(parts / "phi3"), dtype=torch.float32)
    plain, checked = dict(original.named_modules()), []
    torch.manual_seed(0)
    for name, layer in packed(quantized).items():
        assert layer.compute_dtype == torch.float32
        assert layer.weight.quant_state.nested is KINDS[kind]["double_quant"]
        assert layer.weight.quant_state.quant_type == KINDS[kind]["quant_type"]
        weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        x = torch.randn(5, layer.in_features)
        assert torch.allclose(layer(x), F.linear(x, weight), rtol=1e-5, atol=1e-6)
        if layer.in_features % 64:  # bitsandbytes' CPU code unpacks rows of half a block wrongly
            continue
        error = (weight - plain[name].weight).norm() / plain[name].weight.norm()
        checked.append(0.05 < error.item() < 0.15)  # lossy, as four bits are
    assert checked == [True, True]


@pytest.mark.parametrize("kind", KINDS)
def test_a_qlora_run_trains_and_saves_the_adapter_and_projector(
    parts: Path, tmp_path: Path, kind: str
) -> None:
    work = run(tmp_path, parts, **QLORA | {"llm_quantization": KINDS[kind]}, max_epochs=6)
    found = losses(work)
    assert found[-1] < found[0] - 0.3
    state = load(next(work.glob("iter_*.pth")))["state_dict"]
    assert all("lora_" in name or name.startswith("projector.") for name in state)
    assert sum("lora_A" in name for name in state) == 2 * 4
    assert sum(name.startswith("projector.") for name in state) == 4
    assert all(tensor.is_floating_point() for tensor in state.values())


def test_a_sample_answer_does_not_end_the_training(parts: Path, tmp_path: Path) -> None:
    """On some CPUs bitsandbytes would lay the weights out anew, for answers alone."""
    model = build(tmp_path, parts, **QLORA)
    layers, ids = packed(model), torch.tensor([[5, 6, 7, 8]])
    assert not any(getattr(layer, "support_avx512bf16_for_cpu", False) for layer in layers.values())
    before = {name: layer.weight.data.clone() for name, layer in layers.items()}
    with torch.no_grad():
        answered = model.eval().llm(input_ids=ids).logits
    assert all(torch.equal(layer.weight.data, before[name]) for name, layer in layers.items())
    trained = model.train().llm(input_ids=ids).logits
    assert torch.allclose(answered, trained, atol=1e-5)
    trained.square().sum().backward()
    assert all(p.grad is not None for n, p in model.llm.named_parameters() if "lora_" in n)


def test_pretraining_before_a_quantized_llm(parts: Path, tmp_path: Path) -> None:
    work = run(tmp_path, parts, llm_quantization=NF4, max_epochs=6, activation_checkpointing=True)
    found = losses(work)
    assert found[-1] < found[0]
    state = load(next(work.glob("iter_*.pth")))["state_dict"]
    assert {name.split(".")[0] for name in state} == {"projector"} and len(state) == 4
    start = str(next(work.glob("iter_*.pth")))
    model = build(tmp_path / "second", parts, **QLORA, pretrained_pth=start)
    assert torch.equal(
        model.state_dict()["projector.model.0.weight"], state["projector.model.0.weight"]
    )


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_resume_of_qlora_is_exact(parts: Path, tmp_path: Path, dtype: str) -> None:
    options = QLORA | {"dtype": dtype, "save_steps": 3, "max_epochs": 2, "save_total_limit": 9}
    options |= {"llm_lora": {**QLORA["llm_lora"], "lora_dropout": 0.2}}
    whole = run(tmp_path / "whole", parts, **options)
    ends = sorted(whole.glob("iter_*.pth"), key=lambda path: int(path.stem[5:]))
    assert [path.name for path in ends] == ["iter_3.pth", "iter_6.pth"]
    again = run(tmp_path / "again", parts, resume=str(ends[0]), **options)
    assert same(load(ends[1]), load(again / "iter_6.pth"))
    assert losses(whole)[3:] == losses(again)


def test_gradients_with_activation_checkpointing_are_the_same(parts: Path, tmp_path: Path) -> None:
    """Also for a text-only LLM, whose inputs nothing in front of them makes require a gradient."""
    gradients = []
    for i, recompute in enumerate((False, True)):
        model = build(
            *(tmp_path / str(i), parts),
            **QLORA,
            visual_encoder_name_or_path=None,
            activation_checkpointing=recompute,
        ).train()
        model.llm(input_ids=torch.tensor([[5, 6, 7, 8]])).logits.square().sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    plain, recomputed = gradients
    assert plain.keys() == recomputed.keys() and len(plain) == 16
    assert all(grad is not None for grad in plain.values())
    assert any(grad.abs().sum() > 0 for grad in plain.values())
    assert same(plain, recomputed)


def test_convert_merges_onto_the_unquantized_base(parts: Path, tmp_path: Path) -> None:
    work = run(tmp_path, parts, **QLORA, max_epochs=3)
    checkpoint, out = next(work.glob("iter_*.pth")), tmp_path / "out"
    arguments = ["convert", str(checkpoint), str(out), "--to", "xtuner", "--dtype", "fp32"]
    assert run_command(arguments) == 0
    exported = load_model(open_source(out), torch.float32).llm.state_dict()
    base = load_llm(str(parts / "phi3"), dtype=torch.float32).state_dict()
    trained = load(checkpoint)["state_dict"]
    assert exported.keys() == base.keys()
    changed = 0
    for name, weight in base.items():
        stem = f"llm.base_model.model.{name.removesuffix('.weight')}"
        if f"{stem}.lora_A.default.weight" not in trained:
            assert torch.equal(exported[name], weight)
            continue
        down, up = (trained[f"{stem}.lora_{x}.default.weight"] for x in "AB")
        assert torch.allclose(exported[name], weight + 8 / 4 * (up @ down), rtol=0, atol=1e-6)
        changed += not torch.equal(exported[name], weight)
    assert changed == 2 * 4


def test_without_bitsandbytes_the_extra_is_named(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llava_tools.model.quantization.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs bitsandbytes, which is not installed") as caught:
        build(tmp_path, parts, llm_quantization=NF4)
    assert "llava-tools[quantization]" in caught.value.hint


@pytest.mark.parametrize("packing", [NF4, None], ids=["qlora", "lora"])
def test_every_factor_trains_with_activation_checkpointing(
    parts: Path, tmp_path: Path, packing: dict[str, Any] | None
) -> None:
    """B starts at zero: where it still is, a layer was silently left out."""
    options = QLORA | {"llm_quantization": packing, "activation_checkpointing": True}
    work = run(tmp_path, parts, **options)
    state = load(max(work.glob("iter_*.pth")))["state_dict"]
    ups = {name: tensor for name, tensor in state.items() if "lora_B" in name}
    assert len(ups) == 2 * 4
    assert all(bool(tensor.any()) for tensor in ups.values())
