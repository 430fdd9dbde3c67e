"""Batched answers equal single ones and transformers' own, and end where they must."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llava_tools.data.render import render_prompt
from llava_tools.data.sample import Turn
from llava_tools.errors import UserError
from llava_tools.model.generate import GenerationSettings, answer_text, generate
from llava_tools.model.load import Assistant, load_assistant
from tests import tiny

SHORT = GenerationSettings(max_new_tokens=12)


@pytest.fixture(scope="module")
def assistant(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Assistant:
    folder = tiny.save_xtuner(tmp_path_factory.mktemp("generate") / "model", parts)
    return load_assistant(folder)


def prompts(assistant: Assistant) -> tuple[list[list[int]], list[torch.Tensor | None]]:
    """Four prompts of different lengths: one image, none, two images, one image."""
    texts = [
        "<image>\nWhat is in the picture?",
        "one or two?",
        "<image>\n<image>\ncat or dog",
        "<image>\nA",
    ]
    ids = [
        render_prompt([Turn("user", text)], assistant.template, assistant.tokenizer)
        for text in texts
    ]
    torch.manual_seed(0)
    side = tiny.IMAGE_SIZE
    pixels = [torch.randn(t.count("<image>"), 3, side, side) for t in texts]
    return ids, [p if len(p) else None for p in pixels]


@pytest.mark.parametrize("size", [2, 3, 4])
def test_answers_do_not_depend_on_the_batch(assistant: Assistant, size: int) -> None:
    ids, pixels = prompts(assistant)
    alone = [generate(assistant, [i], [p], SHORT)[0] for i, p in zip(ids, pixels, strict=True)]
    assert len({tuple(answer) for answer in alone}) > 1
    batched = []
    for start in range(0, len(ids), size):
        part = slice(start, start + size)
        batched += generate(assistant, ids[part], pixels[part], SHORT)
    assert batched == alone


def test_greedy_answers_are_the_arg_max_of_the_logits(assistant: Assistant) -> None:
    ids, pixels = prompts(assistant)
    (answer,) = generate(assistant, ids[:1], pixels[:1], SHORT)
    sequence = list(ids[0])
    for token in answer:
        logits = assistant.model.logits(sequence, pixels[0])
        assert int(logits[-1].argmax()) == token
        sequence.append(token)


def test_features_computed_before_give_the_same_answer(assistant: Assistant) -> None:
    ids, pixels = prompts(assistant)
    features = [None if p is None else assistant.encode(p) for p in pixels]
    assert generate(assistant, ids, None, SHORT, features=features) == generate(
        assistant, ids, pixels, SHORT
    )


def test_an_end_token_ends_the_answer(assistant: Assistant) -> None:
    ids, pixels = prompts(assistant)
    end = assistant.tokenizer.convert_tokens_to_ids("<|end|>")
    head = assistant.model.llm.lm_head.weight
    before = head[end].clone()
    try:
        with torch.no_grad():
            head[end] = head.mean(dim=0) + 10 * head.std()
            hidden = generate(assistant, ids, pixels, SHORT)
    finally:
        with torch.no_grad():
            head[end] = before
    assert all(end not in answer for answer in hidden)


def test_stop_words_cut_the_text(assistant: Assistant) -> None:
    ids, pixels = prompts(assistant)
    (long,) = generate(assistant, ids[:1], pixels[:1], SHORT)
    text = answer_text(assistant, long)
    word = text[2:5]
    settings = GenerationSettings(max_new_tokens=12, stop_words=(word,))
    (short,) = generate(assistant, ids[:1], pixels[:1], settings)
    assert len(short) < len(long)
    assert answer_text(assistant, short, settings) == text.split(word)[0].strip()


def test_a_prompt_without_tokens_is_refused(assistant: Assistant) -> None:
    """The plain format shows no text, and some tokenizers have no BOS."""
    with pytest.raises(UserError, match="The prompt has no tokens") as caught:
        generate(assistant, [[5, 6], []], None, SHORT)
    assert "--prompt-template raw" in caught.value.hint


def test_sampling_follows_its_seed(assistant: Assistant) -> None:
    ids, pixels = prompts(assistant)
    hot = [GenerationSettings(max_new_tokens=12, temperature=1.5, seed=s) for s in (1, 1, 2)]
    first, again, other = (generate(assistant, ids, pixels, settings) for settings in hot)
    assert first == again != other


def test_tokens_are_shown_as_they_come_and_a_true_stops(assistant: Assistant) -> None:
    ids, pixels = prompts(assistant)
    seen: list[int] = []

    def watch(tokens: list[int]) -> bool:
        seen.extend(tokens)
        return len(seen) == 3

    (answer,) = generate(assistant, ids[:1], pixels[:1], SHORT, on_tokens=watch)
    assert answer == seen and len(seen) == 3
