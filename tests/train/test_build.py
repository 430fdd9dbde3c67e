"""The model of a run is the one that is exported later, and what cannot be built is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from llava_tools.config import load_settings
from llava_tools.data.collate import Example, collate
from llava_tools.data.prepare import Limits
from llava_tools.errors import UserError
from llava_tools.model.llava import LlavaModel
from llava_tools.model.load import build_assistant
from llava_tools.model.source import open_source
from llava_tools.train.build import build_limits, build_model
from llava_tools.train.kernels import choose_kernels
from llava_tools.train.run import run_training
from tests.train.runs import write_config

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.0},
    "llama3": LLAMA3 | {"original_max_position_embeddings": 64},
}


@pytest.mark.parametrize("wanted", [None, 1000, 5000])
@pytest.mark.parametrize("kind", ROPES)
def test_rotary_positions_are_exported_as_trained(
    parts: Path, tmp_path: Path, kind: str, wanted: int | None
) -> None:
    shutil.copytree(parts / "llama3", tmp_path / "llm")
    file = tmp_path / "llm" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"rope_parameters": {"rope_theta": 5e5, **ROPES[kind]}}))
    path = write_config(
        tmp_path,
        parts,
        llm_name_or_path=str(tmp_path / "llm"),
        prompt_template="llama3_chat",
        max_position_embeddings=wanted,
    )
    model = build_model(load_settings(str(path)))
    checkpoint = tmp_path / "iter_1.pth"
    torch.save({"state_dict": model.trained_state_dict()}, checkpoint)
    exported = build_assistant(open_source(checkpoint, str(path))).model
    trained, read = (m.llm.model.rotary_emb for m in (model, exported))
    assert torch.equal(trained.inv_freq, read.inv_freq)
    assert trained.attention_scaling == read.attention_scaling
    for m in (model, exported):
        assert m.llm.config.max_position_embeddings == (wanted or 512)


def test_a_row_beyond_the_old_context_sees_positions_half_as_far_apart(
    parts: Path, tmp_path: Path
) -> None:
    """1000 positions of 512 are stretched twice; the model as it was is asked at p / 2."""
    path = write_config(
        tmp_path,
        parts,
        llm_name_or_path=str(parts / "llama3"),
        prompt_template="llama3_chat",
        max_position_embeddings=1000,
    )
    settings = load_settings(str(path))
    model = build_model(settings)
    ids = torch.randint(3, 200, (900,), generator=torch.Generator().manual_seed(0))
    plain = AutoModelForCausalLM.from_pretrained(parts / "llama3", dtype=torch.float32)
    places = dict(position_ids=torch.arange(900)[None] / 2, attention_mask=torch.ones(1, 900))
    expected = plain(input_ids=ids[None], **places).logits[0]
    assert torch.allclose(model.logits(ids.tolist()), expected, atol=1e-4)
    choose_kernels(model, settings)
    batch = collate([Example(ids, ids, torch.zeros(0, 3, 56, 56), row=0)], model.num_patches)
    loss = model(**batch.tensors("cpu")).loss_sum
    wanted = F.cross_entropy(expected[:-1], ids[1:], reduction="sum")
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)


def test_positions_that_cannot_be_stretched_are_refused(parts: Path, tmp_path: Path) -> None:
    """Phi-3 knows no linear scaling: a folder written with it could not be read."""
    path = write_config(tmp_path, parts, max_position_embeddings=1000)
    with pytest.raises(
        UserError, match=r"phi3' \(phi3\) cannot be stretched from 512 to 1000.*linear"
    ):
        build_model(load_settings(str(path)))


def lora_model(parts: Path, tmp_path: Path, **changes: Any) -> LlavaModel:
    """Build a run that trains the projector and LoRA on the frozen tiny Phi-3."""
    return build_model(load_settings(str(write_config(tmp_path, parts, **changes))))


@pytest.mark.parametrize("targets", [["q_proj"], ["qkv_proj", "q_proj"], "q_proj", ["norm"]])
def test_lora_on_layers_that_are_not_there(parts: Path, tmp_path: Path, targets: Any) -> None:
    """Phi-3 has its q, k and v in one layer."""
    with pytest.raises(UserError, match="name no linear layer of Phi3ForCausalLM: ") as caught:
        lora_model(parts, tmp_path, llm_lora={"r": 4, "target_modules": targets})
    assert "qkv_proj" not in caught.value.message
    assert "down_proj, gate_up_proj, o_proj, qkv_proj" in caught.value.hint


@pytest.mark.parametrize("name", ["lm_heads", "self_attn.norm"])
def test_whole_modules_that_are_not_there(parts: Path, tmp_path: Path, name: str) -> None:
    """peft trains what it finds of them, and says nothing of the rest."""
    with pytest.raises(UserError, match=f"name no part of Phi3ForCausalLM: {name}") as caught:
        lora_model(parts, tmp_path, llm_lora={"r": 4, "modules_to_save": ["lm_head", name]})
    assert "embed_tokens" in caught.value.hint and " 0" not in caught.value.hint


def test_a_lora_pattern_that_is_none(parts: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"target_modules = '\*_proj' is no regular expression"):
        lora_model(parts, tmp_path, llm_lora={"r": 4, "target_modules": "*_proj"})


@pytest.mark.parametrize(
    ("targets", "found"),
    [
        (["qkv_proj"], {"qkv_proj"}),
        (["self_attn.o_proj"], {"o_proj"}),
        (r".*\.layers\.0\..*_proj", {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
        ("all-linear", {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
        (None, {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
    ],
)
def test_lora_is_put_where_it_is_wanted(
    parts: Path, tmp_path: Path, targets: Any, found: set[str]
) -> None:
    model = lora_model(parts, tmp_path, llm_lora={"r": 4, "target_modules": targets})
    names = [name.split(".") for name in model.trained_state_dict() if "lora_A" in name]
    assert {name[name.index("lora_A") - 1] for name in names} == found


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_frozen_base_is_never_held_in_a_larger_dtype(
    parts: Path, tmp_path: Path, dtype: str
) -> None:
    """Two bytes a weight of a large LLM are what decides whether it fits; LoRA trains in fp32."""
    model = lora_model(parts, tmp_path, llm_lora={"r": 4}, dtype=dtype)
    weights = list(model.llm.parameters())
    frozen = torch.bfloat16 if dtype == "bf16" else torch.float32
    assert {p.dtype for p in weights if not p.requires_grad} == {frozen}
    assert {p.dtype for p in weights if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize(
    ("changes", "limits"),
    [
        ({}, Limits(512, 4)),
        ({"visual_encoder_name_or_path": "siglip"}, Limits(512, 4)),
        ({"visual_encoder_name_or_path": None, "freeze_llm": False}, Limits(512, 1)),
        ({"llm_name_or_path": "vicuna", "max_position_embeddings": 100}, Limits(512, 4)),
        ({"llm_name_or_path": "vicuna", "max_position_embeddings": 1000}, Limits(1000, 4)),
    ],
)
def test_the_models_limits_are_read_from_its_configs(
    parts: Path, tmp_path: Path, changes: dict[str, Any], limits: Limits
) -> None:
    named = ("llm_name_or_path", "visual_encoder_name_or_path")
    full = {k: str(parts / v) if k in named and v else v for k, v in changes.items()}
    settings = load_settings(str(write_config(tmp_path, parts, **full)))
    assert build_limits(settings) == limits
    model = build_model(settings)
    assert limits.context == model.llm.config.max_position_embeddings
    tower = model.visual_encoder
    assert limits.image_positions == (tower.num_patches if tower else 1)


def test_training_leaves_out_rows_beyond_the_models_context(parts: Path, tmp_path: Path) -> None:
    """120 images are 120 tokens of max_length, and 480 of the model's 512 positions."""
    question = {"from": "human", "value": "<image>" * 120}
    turns = [question, {"from": "gpt", "value": "Many."}]
    rows = json.loads((parts / "llava.json").read_text())
    rows.append({"id": "many", "image": ["0.png"] * 120, "conversations": turns})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    data = dict(data_path=str(tmp_path / "rows.json"), image_folder=str(parts / "images"))
    path = write_config(tmp_path, parts, datasets=[data], max_length=400, max_skipped=0.5)
    assert run_training(load_settings(str(path)), tmp_path / "work") == 0
    (skip,) = (tmp_path / "work" / "skipped.jsonl").read_text().splitlines()
    assert json.loads(skip)["reason"] == "beyond_context"


@pytest.mark.parametrize("template", ["phi3_chat", "tokenizer"])
def test_a_template_whose_tokens_have_no_embeddings_is_refused(
    parts: Path, tmp_path: Path, template: str
) -> None:
    """As where tokens were added to a tokenizer, and the model was left as it was."""
    shutil.copytree(parts / "phi3", tmp_path / "llm")
    rows = AutoTokenizer.from_pretrained(parts / "phi3").convert_tokens_to_ids("<|end|>")
    file = tmp_path / "llm/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"vocab_size": rows}))
    own = tmp_path / "llm/tokenizer_config.json"
    said = "{% for m in messages %}{{ '<|user|>' + m.content + '<|end|>' }}{% endfor %}"
    own.write_text(json.dumps(json.loads(own.read_text()) | {"chat_template": said}))
    changes = {"llm_name_or_path": str(tmp_path / "llm"), "prompt_template": template}
    settings = load_settings(str(write_config(tmp_path, parts, **changes)))
    with pytest.raises(UserError, match=rf"has {rows} embeddings, but '<.*>' of the prompt"):
        run_training(settings, tmp_path / "work")
