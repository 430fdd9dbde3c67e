"""LlavaModel against transformers' own LLaVA, and what it saves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from llava_tools.constants import IGNORE_ID, IMAGE_TOKEN_ID
from llava_tools.model.llava import LlavaModel
from llava_tools.model.projector import Projector
from llava_tools.model.vision import load_visual_encoder
from tests import tiny


def build(parts: Path, llm: str = "llama3", tower: str = "clip", depth: int = 2) -> LlavaModel:
    torch.manual_seed(3)
    visual_encoder = load_visual_encoder(str(parts / tower))
    return LlavaModel(
        AutoModelForCausalLM.from_pretrained(parts / llm, dtype=torch.float32),
        visual_encoder,
        Projector(visual_encoder.config.hidden_size, 32, depth=depth),
    ).eval()


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(4)
    ids = torch.tensor([[1, 9, IMAGE_TOKEN_ID, 5, 6, 7], [1, IMAGE_TOKEN_ID, 8, 9, 0, 0]])
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    return ids, mask, torch.randn(2, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)


@torch.no_grad()
@pytest.mark.parametrize("llm", ["llama3", "phi3"])
def test_logits_equal_transformers_llava(parts: Path, llm: str) -> None:
    ours = build(parts, llm)
    ids, mask, pixels = batch()
    image_id = ours.llm.config.vocab_size - 1
    config = LlavaConfig(
        vision_config=ours.visual_encoder.config,
        text_config=ours.llm.config,
        image_token_index=image_id,
        vision_feature_layer=-2,
    )
    theirs = LlavaForConditionalGeneration(config).eval()
    theirs.model.language_model.load_state_dict(ours.llm.model.state_dict())
    theirs.lm_head.load_state_dict(ours.llm.lm_head.state_dict())
    theirs.model.vision_tower.load_state_dict(ours.visual_encoder.vision_model.state_dict())
    linears = ours.projector.model[0], ours.projector.model[2]
    theirs.model.multi_modal_projector.linear_1.load_state_dict(linears[0].state_dict())
    theirs.model.multi_modal_projector.linear_2.load_state_dict(linears[1].state_dict())
    logits = ours(ids, mask, pixels).logits
    for row in range(2):
        expanded = []
        for token in ids[row][mask[row]].tolist():
            expanded += [image_id] * tiny.NUM_PATCHES if token == IMAGE_TOKEN_ID else [token]
        alone = theirs(torch.tensor([expanded]), pixel_values=pixels[row : row + 1]).logits[0]
        assert torch.allclose(logits[row, : len(expanded)], alone, atol=1e-5)


@torch.no_grad()
def test_loss_is_the_summed_cross_entropy_of_the_llm(parts: Path) -> None:
    model = build(parts)
    ids, mask, pixels = batch()
    labels = torch.where(mask & (ids > 5), ids, IGNORE_ID)
    output = model(ids, mask, pixels, labels)
    merged = model.embed(ids, mask, pixels, labels)
    reference = model.llm(
        inputs_embeds=merged.embeds_BTD,
        attention_mask=merged.attention_mask_BT,
        labels=merged.labels_BT,
    )
    assert output.num_tokens == int((merged.labels_BT[:, 1:] != IGNORE_ID).sum()) > 0
    assert output.loss_sum / output.num_tokens == pytest.approx(float(reference.loss), rel=1e-6)


@torch.no_grad()
def test_siglip_keeps_its_first_patch(parts: Path) -> None:
    model = build(parts, tower="siglip")
    features = model.encode_images(torch.randn(1, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE))
    assert features.shape == (1, tiny.NUM_PATCHES, 32)


@torch.no_grad()
def test_select_layer_takes_the_blocks_output_without_the_class_token(parts: Path) -> None:
    model = build(parts)
    pixels = torch.randn(1, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)
    tower = CLIPVisionModel.from_pretrained(parts / "clip")
    hidden = tower(pixel_values=pixels, output_hidden_states=True).hidden_states
    for layer in (-2, -1, 1):
        assert torch.equal(model.visual_encoder(pixels, layer), hidden[layer][:, 1:])


def test_text_only_batch_keeps_the_projector_in_the_graph(parts: Path) -> None:
    model = build(parts).train()
    ids = torch.tensor([[1, 5, 6, 7]])
    output = model(ids, ids > 0, None, ids)
    output.loss_sum.backward()
    for parameter in model.projector.parameters():
        assert parameter.grad is not None and not parameter.grad.any()
    plain = model.llm(ids, labels=ids).loss.item()
    assert output.loss_sum.item() / output.num_tokens == pytest.approx(plain, rel=1e-6)


def test_a_batch_without_supervision_has_loss_zero_and_a_graph(parts: Path) -> None:
    model = build(parts).train()
    ids = torch.tensor([[1, 5, 6, 7]])
    output = model(ids, ids > 0, None, torch.full_like(ids, IGNORE_ID))
    output.loss_sum.backward()
    assert output.num_tokens == 0 and output.loss_sum.item() == 0.0


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_projector_names_shapes_and_values(depth: int) -> None:
    projector = Projector(6, 8, depth=depth)
    names = [name for name, _ in projector.named_parameters()]
    assert names == [f"model.{2 * i}.{kind}" for i in range(depth) for kind in ("weight", "bias")]
    x = torch.randn(5, 6)
    expected = projector.model[0](x)
    for i in range(1, depth):
        expected = projector.model[2 * i](torch.nn.functional.gelu(expected))
    assert torch.equal(projector(x), expected)
    again = Projector.from_config(projector.to_config())
    assert [p.shape for p in again.parameters()] == [p.shape for p in projector.parameters()]


def saved_parts(model: LlavaModel) -> set[str]:
    return {name.split(".")[0] for name in model.trained_state_dict()}


def test_checkpoint_filter(parts: Path) -> None:
    model = build(parts)
    model.visual_encoder.requires_grad_(False)
    model.llm.requires_grad_(False)
    assert len(model.trained_state_dict()) == 4 and saved_parts(model) == {"projector"}
    model.llm.requires_grad_(True)
    assert saved_parts(model) == {"projector", "llm"}
    assert len(model.trained_state_dict()) == 4 + len(model.llm.state_dict())
    model.visual_encoder.requires_grad_(True)
    assert set(model.trained_state_dict()) == set(model.state_dict())
    assert "visual_encoder.vision_model.pre_layrnorm.weight" in model.trained_state_dict()


def test_checkpoint_filter_of_lora_keeps_the_adapter_alone(parts: Path) -> None:
    model = build(parts)
    model.requires_grad_(False)
    model.projector.requires_grad_(True)
    model.llm = get_peft_model(model.llm, LoraConfig(r=2, target_modules="all-linear"))
    saved = [name for name in model.trained_state_dict() if name.startswith("llm.")]
    assert saved and all(".lora_" in name and ".default." in name for name in saved)
