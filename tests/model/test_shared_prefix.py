"""Heads that rows share are computed once, and the answers stay what they are."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_tools.constants import IMAGE_TOKEN_ID
from llava_tools.model import shared_prefix
from llava_tools.model.generate import GenerationSettings, generate
from llava_tools.model.load import Assistant, load_assistant
from llava_tools.model.shared_prefix import generate_groups, shared_heads
from tests import tiny

FAMILIES = ("phi3", "llama3", "vicuna", "qwen2", "mistral", "gemma")
SETTINGS = GenerationSettings(max_new_tokens=7)


@pytest.fixture(scope="module", params=FAMILIES)
def assistant(
    request: pytest.FixtureRequest, parts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Assistant:
    folder = tiny.save_xtuner(tmp_path_factory.mktemp("m") / "m", parts, request.param)
    return load_assistant(folder, template=None if request.param == "phi3" else "vicuna")


def material(assistant: Assistant) -> tuple[list[list[int]], list[int], list[torch.Tensor | None]]:
    """Return rows in groups of 4, 1, 2 and 3: with an image, alone, without one, with two."""
    draw = random.Random(0)

    def ids(count: int) -> list[int]:
        return [draw.randrange(10, 200) for _ in range(count)]

    torch.manual_seed(0)
    side = assistant.model.visual_encoder.config.image_size  # type: ignore[union-attr]
    prompts: list[list[int]] = []
    groups: list[int] = []
    features: list[torch.Tensor | None] = []
    for group, (size, images, shared) in enumerate([(4, 1, 9), (1, 1, 3), (2, 0, 5), (3, 2, 12)]):
        head = [1, *([IMAGE_TOKEN_ID, *ids(2)] * images), *ids(shared)]
        seen = assistant.encode(torch.randn(images, 3, side, side)) if images else None
        for _ in range(size):
            prompts.append(head + ids(draw.randrange(1, 9)))
            groups.append(group)
            features.append(seen)
    return prompts, groups, features


def count_calls(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that collects how many positions each pass through the LLM computes."""
    computed: list[int] = []
    base = assistant.model.llm.base_model
    original = base.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = kwargs.get("inputs_embeds")
        given = kwargs["input_ids"] if given is None else given
        computed.append(given.shape[0] * given.shape[1])
        return original(*args, **kwargs)

    monkeypatch.setattr(base, "forward", forward)
    return computed


def test_answers_are_those_of_whole_prompts(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, groups, features = material(assistant)
    plain = generate(assistant, prompts, settings=SETTINGS, features=features)
    computed = count_calls(assistant, monkeypatch)
    assert generate_groups(assistant, prompts, groups, features, SETTINGS) == plain
    shared = sum(computed)
    computed.clear()
    generate(assistant, prompts, settings=SETTINGS, features=features)
    assert shared < 0.7 * sum(computed), "heads are not shared"


@pytest.mark.parametrize("family", ["phi3", "gemma2"])
@pytest.mark.parametrize("spare", [0, -1])
def test_a_window_that_holds_the_rows_does_not_matter(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, spare: int
) -> None:
    """Phi-3-mini's is 2,047. One place less than the longest row takes, and nothing is shared."""
    folder = tiny.save_xtuner(tmp_path / "m", parts, family)
    template = None if family == "phi3" else "gemma"
    prompts, groups, features = material(load_assistant(folder, template=template))
    heads = shared_heads(prompts, groups)
    head = max(h + 3 * p[:h].count(IMAGE_TOKEN_ID) for p, h in zip(prompts, heads, strict=True))
    tail = max(len(p) - h for p, h in zip(prompts, heads, strict=True))
    config = json.loads((folder / "config.json").read_text())
    window = {"sliding_window": head + tail + SETTINGS.max_new_tokens + spare}
    (folder / "config.json").write_text(json.dumps(config | window))
    assistant = load_assistant(folder, template=template)
    plain = generate(assistant, prompts, settings=SETTINGS, features=features)
    if spare < 0:
        monkeypatch.setattr(shared_prefix, "roomy_cache", None)  # nobody may prepare one
    computed = count_calls(assistant, monkeypatch)
    assert generate_groups(assistant, prompts, groups, features, SETTINGS) == plain
    shared = sum(computed)
    computed.clear()
    generate(assistant, prompts, settings=SETTINGS, features=features)
    assert (shared < 0.7 * sum(computed)) == (spare == 0)


def test_a_row_alone_and_a_whole_batch_agree(assistant: Assistant) -> None:
    prompts, groups, features = material(assistant)
    together = generate_groups(assistant, prompts, groups, features, SETTINGS)
    for i, prompt in enumerate(prompts):
        assert generate_groups(assistant, [prompt], [0], [features[i]], SETTINGS) == [together[i]]


def test_heads() -> None:
    rows = [[1, 2, 3, 4], [1, 2, 3, 5], [1, 2], [7, 8], [7, 8, 9]]
    assert shared_heads(rows, [0, 0, 0, 1, 1]) == [1, 1, 1, 1, 1]
    assert shared_heads(rows[:2], [0, 0]) == [3, 3]
    assert shared_heads(rows[:2], [0, 1]) == [3, 3], "a row alone leaves one id"


@pytest.mark.parametrize(
    "case", ["image in the tail", "stop strings", "window", "penalty", "remote code"]
)
def test_what_cannot_share_is_answered_whole(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    assistant = load_assistant(tiny.save_xtuner(tmp_path / "m", parts, "phi3"))
    prompts, groups, features = material(assistant)
    settings = SETTINGS
    if case == "image in the tail":
        prompts = [[1, i, *prompt] for i, prompt in enumerate(prompts)]
    elif case == "stop strings":
        settings = GenerationSettings(max_new_tokens=7, stop_words=("never said",))
    elif case == "penalty":
        settings = GenerationSettings(max_new_tokens=7, repetition_penalty=1.3)
    elif case == "window":
        monkeypatch.setattr(assistant.model.llm.config, "sliding_window", 4)
    else:
        monkeypatch.setattr(type(assistant.model.llm), "__module__", "transformers_modules.x")
    monkeypatch.setattr(shared_prefix, "roomy_cache", None)  # nobody may prepare one
    plain = generate(assistant, prompts, settings=settings, features=features)
    assert generate_groups(assistant, prompts, groups, features, settings) == plain
