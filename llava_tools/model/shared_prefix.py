"""Answers to questions that begin alike: what they share goes through the LLM once.

The rolled copies of a multiple-choice question differ in the order of their options only, and many
questions are asked of one picture. The keys and values of a group's common head (image and
question) are computed once and copied to its rows; each row then adds its own tail.
"""

from __future__ import annotations

import os.path
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache

from llava_tools.constants import IMAGE_TOKEN_ID
from llava_tools.model.cache import roomy_cache
from llava_tools.model.generate import (
    GenerationSettings,
    decode_rows,
    generate,
    left_padded,
    stop_rules,
)
from llava_tools.model.load import Assistant

Prompt = Sequence[int]


@torch.no_grad()
def generate_groups(
    assistant: Assistant,
    prompts: Sequence[Prompt],
    groups: Sequence[int],
    features: Sequence[torch.Tensor | None],
    settings: GenerationSettings,
) -> list[list[int]]:
    """Answer as `generate` does; neighbours with the same number in `groups` may share their head.

    Rows of a group have the same `features` [k, P, D], or none. In fp32 the answers are those of
    `generate`. A model that cannot go on from a computed head answers without sharing.
    """
    heads = shared_heads(prompts, groups)
    longest = _longest(assistant, prompts, heads, settings)
    if not _pays(prompts, heads) or not _can_share(assistant, settings, longest):
        return generate(assistant, prompts, settings=settings, features=features)
    firsts = [i for i in range(len(prompts)) if not i or groups[i] != groups[i - 1]]
    embeds, head_mask = left_padded(
        assistant.model, [prompts[i][: heads[i]] for i in firsts], [features[i] for i in firsts]
    )
    cache = _computed(assistant.model.llm, embeds, head_mask)
    owner = torch.tensor(
        [n for n, i in enumerate(firsts) for _ in range(_size(groups, i))], device=embeds.device
    )
    cache.batch_select_indices(owner)
    tails = [torch.tensor(p[h:], device=embeds.device) for p, h in zip(prompts, heads, strict=True)]
    ids, mask = _continued(tails, head_mask[owner])
    inputs = {"input_ids": ids, "past_key_values": cache}
    return decode_rows(assistant, inputs, mask, settings, drop=ids.shape[1])


def shared_heads(prompts: Sequence[Prompt], groups: Sequence[int]) -> list[int]:
    """Return for each row how many ids all rows of its group begin with.

    At least one id of every row is left for its tail.
    """
    heads: list[int] = []
    for _, members in groupby(range(len(prompts)), key=lambda i: groups[i]):
        rows = [list(prompts[i]) for i in members]
        shared = len(os.path.commonprefix([row[:-1] for row in rows]))
        heads += [shared] * len(rows)
    return heads


def _pays(prompts: Sequence[Prompt], heads: Sequence[int]) -> bool:
    """Tell whether any group shares anything, and every image lies in a head."""
    images_inside = all(
        IMAGE_TOKEN_ID not in prompt[head:] for prompt, head in zip(prompts, heads, strict=True)
    )
    return images_inside and min(heads) > 0


def _longest(
    assistant: Assistant,
    prompts: Sequence[Prompt],
    heads: Sequence[int],
    settings: GenerationSettings,
) -> int:
    """Return how many places the longest row takes, padding and answer included."""
    more = assistant.model.num_patches - 1  # places of an image besides its own token
    shared = [prompt[:head] for prompt, head in zip(prompts, heads, strict=True)]
    head = max(len(ids) + more * list(ids).count(IMAGE_TOKEN_ID) for ids in shared)
    tail = max(len(prompt) - head for prompt, head in zip(prompts, heads, strict=True))
    return head + tail + settings.max_new_tokens


def _can_share(assistant: Assistant, settings: GenerationSettings, longest: int) -> bool:
    """Tell whether the LLM's attention reads a prepared cache, and nothing looks at the prompt.

    A window (Phi-3's is 2,047 places) does not matter to rows that it holds whole. Stop strings and
    repetition penalties would see the ids of the prompt too.
    """
    llm = assistant.model.llm
    config = llm.config
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds:
        kinds = {"sliding_attention" if window else "full_attention"}
    sees_all = kinds == {"full_attention"} or (
        kinds <= {"full_attention", "sliding_attention"} and window and longest <= window
    )
    known = type(llm).__module__.startswith("transformers.")
    _, strings = stop_rules(assistant, settings)
    return bool(known and sees_all) and not strings and settings.repetition_penalty == 1.0


def _size(groups: Sequence[int], first: int) -> int:
    size = 1
    while first + size < len(groups) and groups[first + size] == groups[first]:
        size += 1
    return size


def _computed(llm: Any, embeds_GTD: torch.Tensor, mask_GT: torch.Tensor) -> Cache:
    """Return the keys and values of the heads, without any logits."""
    cache = roomy_cache()
    positions = (mask_GT.cumsum(-1) - 1).clamp(min=0)
    llm.base_model(
        inputs_embeds=embeds_GTD,
        attention_mask=mask_GT,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    )
    return cache


def _continued(
    tails: list[torch.Tensor], head_mask_NT: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask of heads (any id: they are computed) and left-padded tails [N, T + S]."""
    ids = pad_sequence(tails, batch_first=True, padding_side="left")
    ones = [torch.ones_like(tail) for tail in tails]
    mask = pad_sequence(ones, batch_first=True, padding_side="left")
    computed = torch.zeros_like(head_mask_NT)
    return torch.cat([computed, ids], 1), torch.cat([head_mask_NT, mask], 1)
