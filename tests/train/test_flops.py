"""FLOPs against torch's own counter: equal, but for what the formula leaves out on purpose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GemmaConfig, GPT2Config, MistralConfig, Qwen2Config

from llava_tools.config import load_settings
from llava_tools.data.collate import Batch, Example, collate
from llava_tools.model.llava import LlavaModel
from llava_tools.train.build import build_model
from llava_tools.train.flops import Counts, matmul_rate, workload
from llava_tools.train.kernels import choose_kernels
from tests.train.runs import write_config

LORA = dict(r=2, lora_alpha=4)
IMAGES, PATCHES, WIDTH = 2, 4, 24  # of the tiny tower


def build(folder: Path, parts: Path, **changes: Any) -> LlavaModel:
    settings = load_settings(str(write_config(folder, parts, **changes)))
    model = build_model(settings).train()
    choose_kernels(model, settings)
    return model


def two_rows(image: bool = True) -> Batch:
    """Rows of 46 and 91 positions, the first 20 tokens of each not supervised."""
    head = [1, -200] if image else [1, 2]
    examples = []
    for end in (45, 90):
        ids = torch.tensor(head + list(range(5, end)))
        labels = ids.masked_fill(torch.arange(len(ids)) < 20, -100)
        examples.append(Example(ids, labels, torch.randn(int(image), 3, 28, 28), 0))
    return collate(examples, PATCHES)


def count(model: LlavaModel, batch: Batch) -> tuple[float, float]:
    """Return what torch counts forward, and forward and backward."""
    with FlopCounterMode(display=False) as counter:
        loss = model(**batch.tensors("cpu")).loss_sum
        forward = counter.get_total_flops()
        loss.backward()
    return forward, counter.get_total_flops()


def counts_of(batch: Batch) -> Counts:
    lengths = batch.layout.lengths()
    squares = sum(length**2 for length in lengths)
    return Counts(sum(lengths), squares, batch.layout.images, batch.supervised)


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(freeze_llm=False),
        dict(llm_lora=LORA),
        dict(freeze_llm=False, freeze_visual_encoder=False),
        dict(freeze_visual_encoder=False, visual_select_layer=-1),
        dict(visual_encoder_lora=LORA),
    ],
    ids=lambda changes: " ".join(f"{name}={value}" for name, value in changes.items()) or "pre",
)
@pytest.mark.parametrize(("llm", "tower"), [("phi3", "clip"), ("vicuna", "siglip")])
def test_equal_to_torchs_count(
    parts: Path, tmp_path: Path, llm: str, tower: str, changes: dict[str, Any]
) -> None:
    """torch counts both halves of causal attention, and 2.5 forwards in attention's backward, whose
    kernels compute the scores again: 7 quarters of ours forward and backward too many.
    """
    names = dict(
        llm_name_or_path=str(parts / llm),
        visual_encoder_name_or_path=str(parts / tower),
        prompt_template="phi3_chat" if llm == "phi3" else "vicuna",
    )
    model = build(tmp_path, parts, **names, **changes)
    batch = two_rows()
    forward, both = count(model, batch)
    work, seen = workload(model), counts_of(batch)
    ours = work.parts(seen)
    attention = work.llm.attend(seen.squares, seen.tokens, causal=True).forward
    assert forward == sum(cost.forward for cost in ours.values()) + attention
    extra = 2 * attention * 3.5 - 3 * attention
    positions = IMAGES * work.tower_positions
    squares = positions * work.tower_positions
    if work.tower.differentiated:
        extra += 0.5 * work.tower.attend(squares, positions, causal=False).forward
    if "visual_encoder_lora" in changes:  # nothing trains before the first layer's q, k and v
        extra -= 2 * positions * 3 * (WIDTH * WIDTH + WIDTH * LORA["r"])
    assert both == sum(cost.total for cost in ours.values()) + extra


@pytest.mark.parametrize("kind", [Qwen2Config, MistralConfig, GemmaConfig])
def test_any_causal_lm_is_counted_by_its_layers(kind: Any) -> None:
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, vocab_size=100)
    heads = dict(num_attention_heads=4, num_key_value_heads=2, head_dim=16, pad_token_id=0)
    config = kind(**sizes, **heads)
    model = LlavaModel(AutoModelForCausalLM.from_config(config)).train()
    model.padding_free = model.llm.set_attn_implementation("segments") is None
    batch = two_rows(image=False)
    forward, both = count(model, batch)
    work, seen = workload(model), counts_of(batch)
    ours = work.parts(seen)
    attention = work.llm.attend(seen.squares, seen.tokens, causal=True).forward
    assert forward == sum(cost.forward for cost in ours.values()) + attention
    assert both == sum(cost.total for cost in ours.values()) + 4 * attention
    assert ours["visual_encoder"].total == ours["projector"].total == 0


def test_gpt2_has_linear_layers_of_another_name() -> None:
    with torch.device("meta"):
        config = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=100)
        work = workload(LlavaModel(AutoModelForCausalLM.from_config(config))).llm
    assert work.applied == work.trained == 2 * (4 + 8) * 32 * 32


def test_the_meta_device_counts_alike(parts: Path, tmp_path: Path) -> None:
    model = build(tmp_path, parts, llm_lora=LORA)
    assert workload(model) == workload(model.to("meta"))


def test_a_window_bounds_the_pairs() -> None:
    config = MistralConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, vocab_size=100,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=10,
    )  # fmt: skip
    with torch.device("meta"):
        work = workload(LlavaModel(AutoModelForCausalLM.from_config(config))).llm
    assert work.attend(8 * 8, 8, causal=True).forward == 4 * work.attention * 8 * 8 / 2
    assert work.attend(1000 * 1000, 1000, causal=True).forward == 4 * work.attention * 1000 * 10


def test_padding_and_the_unsupervised_cost_nothing(parts: Path, tmp_path: Path) -> None:
    work = workload(build(tmp_path, parts))
    few, many = (work.parts(Counts(100, 5000, 1, n)) for n in (10, 20))
    assert many["head"].total == 2 * few["head"].total
    assert many["llm"] == few["llm"]


def test_the_rate_is_that_of_a_matrix_product() -> None:
    rate = matmul_rate(torch.device("cpu"), torch.float32)
    assert 1e9 < rate < 1e14
