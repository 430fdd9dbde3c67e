"""The key tables against the names that the real architectures have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionModel,
)

from llava_tools.errors import UserError
from llava_tools.model.keymap import convert, invert
from llava_tools.model.lazy import LazyTensor
from llava_tools.model.tables import (
    HF_READ,
    LLM_FOLDER,
    VISION,
    VISION_FOLDER_READ,
    WRITE,
    check_complete,
    llama_rows,
    phi3_to_llama,
)

TOWERS: dict[str, Any] = {"clip": CLIPVisionModel, "siglip": SiglipVisionModel}


def lazy(state: dict[str, torch.Tensor]) -> dict[str, LazyTensor]:
    return {name: LazyTensor.of(tensor) for name, tensor in state.items()}


def llm(parts: Path, family: str) -> tuple[dict[str, LazyTensor], dict[str, Any]]:
    model = AutoModelForCausalLM.from_pretrained(parts / family)
    return convert(lazy(model.state_dict()), LLM_FOLDER, family), model.config.to_dict()


def tower(parts: Path, kind: str) -> tuple[dict[str, LazyTensor], dict[str, Any]]:
    model = TOWERS[kind].from_pretrained(parts / kind)
    return convert(lazy(model.state_dict()), VISION_FOLDER_READ, kind), model.config.to_dict()


@pytest.mark.parametrize("family", ["phi3", "llama3", "vicuna"])
def test_the_llm_tables_are_total(parts: Path, family: str) -> None:
    tensors, config = llm(parts, family)
    check_complete(tensors, family, config)
    for name in tensors:
        if name != "llm.lm_head.weight":
            rest = {key: value for key, value in tensors.items() if key != name}
            with pytest.raises(UserError, match="lacks a weight"):
                check_complete(rest, family, config)
    with pytest.raises(UserError, match="unknown name"):
        check_complete({**tensors, "llm.model.extra": tensors[name]}, family, config)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_vision_tables_are_total(parts: Path, kind: str) -> None:
    tensors, config = tower(parts, kind)
    check_complete(tensors, kind, None, config)
    for name in tensors:
        if ".head." not in name:
            rest = {key: value for key, value in tensors.items() if key != name}
            with pytest.raises(UserError, match="lacks a weight"):
                check_complete(rest, kind, None, config)


def test_both_names_of_a_vision_tower_are_read(parts: Path) -> None:
    plain = {n: t.read() for n, t in tower(parts, "clip")[0].items()}
    for prefix in ("vision_model.", ""):
        state = {prefix + name.removeprefix(VISION): tensor for name, tensor in plain.items()}
        read = convert(lazy(state), VISION_FOLDER_READ, "x")
        assert set(read) == set(plain)


def test_of_a_whole_clip_the_vision_half_is_read() -> None:
    names = ("text_model.embeddings.x", "text_projection.weight", "visual_projection.weight")
    state = dict.fromkeys(
        (*names, "logit_scale", "vision_model.post_layernorm.bias"), torch.ones(1)
    )
    assert list(convert(lazy(state), VISION_FOLDER_READ, "x")) == [VISION + "post_layernorm.bias"]


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_phi3_splits_by_head_counts_not_thirds(kv_heads: int) -> None:
    settings = {"model_type": "phi3", "hidden_size": 32, "num_attention_heads": 4}
    settings |= {"num_key_value_heads": kv_heads, "num_hidden_layers": 2, "vocab_size": 16}
    config = AutoConfig.for_model(**settings, intermediate_size=64, pad_token_id=0)
    model = AutoModelForCausalLM.from_config(config)
    before = convert(lazy(model.state_dict()), LLM_FOLDER, "x")
    after = convert(before, phi3_to_llama(config.to_dict()), "x", layers=2)
    assert after["llm.model.layers.0.self_attn.k_proj.weight"].shape == (8 * kv_heads, 32)
    check_complete(after, "x", {**config.to_dict(), "model_type": "llama"})
    back = convert(after, invert(phi3_to_llama(config.to_dict())), "x", layers=2)
    assert all(torch.equal(back[name].read(), tensor.read()) for name, tensor in before.items())


def test_a_tied_llama_may_lack_its_head() -> None:
    config = {"tie_word_embeddings": True}
    assert [row.optional for row in llama_rows(config) if row.left == "llm.lm_head.weight"] == [
        True
    ]


@pytest.fixture(scope="module")
def composite(parts: Path) -> LlavaForConditionalGeneration:
    text = AutoConfig.from_pretrained(parts / "vicuna")
    vision = AutoConfig.from_pretrained(parts / "clip")
    return LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision))


def layouts(composite: LlavaForConditionalGeneration) -> dict[str, dict[str, torch.Tensor]]:
    """Return the weights under the names of every release (memory of 5.23 is the last one)."""
    memory = dict(composite.state_dict())
    tower = "model.vision_tower."
    deep = {
        name.replace(tower, tower + "vision_model."): tensor
        for name, tensor in memory.items()
        if "vision_model" not in name
    }

    def classic(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        renamed = {}
        for name, tensor in state.items():
            name = name.replace("model.language_model.", "language_model.model.")
            name = name.replace("lm_head.", "language_model.lm_head.")
            renamed[name.removeprefix("model.")] = tensor
        return renamed

    return {"A": classic(deep), "B": deep, "C": classic(memory), "5.23": memory}


@pytest.mark.parametrize("layout", ["A", "B", "C", "5.23"])
def test_every_hf_layout_is_read(composite: LlavaForConditionalGeneration, layout: str) -> None:
    state = layouts(composite)[layout]
    read = convert(lazy(state), HF_READ, layout)
    assert len(read) == len(state)
    config = composite.config
    projector = {"depth": 2, "bias": True}
    check_complete(
        read, layout, config.text_config.to_dict(), config.vision_config.to_dict(), projector
    )
    head = read["llm.lm_head.weight"].read()
    assert torch.equal(head, composite.state_dict()["lm_head.weight"])


def test_what_is_written_is_the_classic_layout(composite: LlavaForConditionalGeneration) -> None:
    every = layouts(composite)
    read = convert(lazy(every["5.23"]), HF_READ, "x")
    assert set(convert(read, WRITE["hf"], "x")) == set(every["A"])
