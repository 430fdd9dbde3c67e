"""Generation in batches: left-padded prompts, images merged in, answers as new token ids."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from llava_tools.data.layout import lay_out
from llava_tools.errors import UserError
from llava_tools.model.llava import LlavaModel

if TYPE_CHECKING:
    from llava_tools.model.load import Assistant

# What it warns of is what we want: the penalty is for what the answer says again, not the prompt.
warnings.filterwarnings("ignore", message="Passing `repetition_penalty` with `inputs_embeds`")

# At lower temperatures fp32 overflows; the likeliest token has all the probability before that.
COLDEST = 1e-5

OnTokens = Callable[[list[int]], bool | None]


@dataclass(frozen=True)
class GenerationSettings:
    """How to answer. Temperature 0 is greedy decoding; `stop_words` add to the template's own."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop_words: tuple[str, ...] = ()


@torch.no_grad()
def generate(
    assistant: Assistant,
    prompts: Sequence[Sequence[int]],
    pixels: Sequence[torch.Tensor | None] | None = None,
    settings: GenerationSettings | None = None,
    *,
    features: Sequence[torch.Tensor | None] | None = None,
    on_tokens: OnTokens | None = None,
) -> list[list[int]]:
    """Answer every prompt (ids with IMAGE_TOKEN_ID once an image); return the new token ids.

    The images of a row come as preprocessed `pixels` [k, 3, H, W], or as `features` [k, P, D] that
    `assistant.encode` made before. Greedy answers in fp32 do not depend on the batch.
    `on_tokens` gets the new id of each row after every step; what it returns true ends generation.
    """
    settings = settings or GenerationSettings()
    model = assistant.model
    if features is None and pixels is not None:
        features = [None if p is None else assistant.encode(p) for p in pixels]
    embeds, mask = left_padded(model, prompts, features)
    return decode_rows(assistant, {"inputs_embeds": embeds}, mask, settings, on_tokens=on_tokens)


def decode_rows(
    assistant: Assistant,
    inputs: dict[str, Any],
    mask: torch.Tensor,
    settings: GenerationSettings,
    *,
    on_tokens: OnTokens | None = None,
    drop: int = 0,
) -> list[list[int]]:
    """Return the new token ids of left-padded rows; `mask` [B, T] says what is no padding.

    `inputs` go to transformers' `generate`; `drop` is how many ids of a prompt it gives back.
    """
    stop_ids, stop_strings = stop_rules(assistant, settings)
    torch.manual_seed(settings.seed)
    output = assistant.model.llm.generate(
        **inputs,
        attention_mask=mask,
        eos_token_id=stop_ids or None,
        pad_token_id=_pad_id(assistant, stop_ids),
        bos_token_id=None,
        max_new_tokens=settings.max_new_tokens,
        repetition_penalty=settings.repetition_penalty,
        stop_strings=list(stop_strings) or None,
        tokenizer=assistant.tokenizer if stop_strings else None,
        stopping_criteria=[_Observer(on_tokens)] if on_tokens else None,
        use_cache=True,
        **_sampling(settings),
    )
    return [_cut(row[drop:], stop_ids) for row in output.tolist()]


def _sampling(settings: GenerationSettings) -> dict[str, Any]:
    if settings.temperature < COLDEST:
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {
        "do_sample": True,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
    }


def check_prompt(ids: Sequence[int]) -> None:
    """Raise UserError for a prompt without tokens, after which there is nothing to go on from."""
    if not ids:
        raise UserError(
            "The prompt has no tokens: it is empty, or its template shows images alone.",
            "Ask something; of a text, --prompt-template raw shows the text itself, plain nothing.",
        )


def left_padded(
    model: LlavaModel,
    prompts: Sequence[Sequence[int]],
    features: Sequence[torch.Tensor | None] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all prompts, padded on the left: embeds [B, T, D], mask [B, T]."""
    for ids in prompts:
        check_prompt(ids)
    layout = lay_out([np.array(ids) for ids in prompts], model.num_patches)
    given = [f.to(model.device) for f in features or () if f is not None and len(f)]
    embeds = model.embed(
        layout.text_ids.to(model.device),
        layout.source.to(model.device),
        features=torch.cat(given) if given else None,
    )
    lengths = layout.lengths()
    rows = list(embeds.split(lengths))
    places = torch.arange(layout.longest, device=model.device)
    padding = layout.longest - torch.tensor(lengths, device=model.device)
    mask = (places >= padding[:, None]).long()
    return pad_sequence(rows, batch_first=True, padding_side="left"), mask


def stop_rules(assistant: Assistant, settings: GenerationSettings) -> tuple[list[int], list[str]]:
    """Return (token ids that end an answer, stop strings that are more than one token)."""
    tokenizer = assistant.tokenizer
    ids = {tokenizer.eos_token_id} - {None}
    strings = []
    for word in (*assistant.template.stop_words, *settings.stop_words):
        encoded = tokenizer.encode(word, add_special_tokens=False)
        if len(encoded) == 1 and encoded[0] in tokenizer.all_special_ids:
            ids.add(encoded[0])
        elif len(encoded) == 1 and encoded[0] in tokenizer.added_tokens_decoder:
            ids.add(encoded[0])
        else:
            strings.append(word)
    if not ids and not strings:
        raise UserError(
            f"Nothing would end an answer of '{assistant.path}': its tokenizer has no end token.",
            "Choose the model's own template with --prompt-template, or give --stop-words.",
        )
    return sorted(ids), strings


def _pad_id(assistant: Assistant, stop_ids: list[int]) -> int:
    pad = assistant.tokenizer.pad_token_id
    return int(pad) if pad is not None else (stop_ids[0] if stop_ids else 0)


def _cut(ids: list[int], stop_ids: list[int]) -> list[int]:
    """Drop the first end token and everything after it (the padding of finished rows)."""
    ends = [i for i, token in enumerate(ids) if token in stop_ids]
    return ids[: ends[0]] if ends else ids


def answer_text(
    assistant: Assistant, ids: Sequence[int], settings: GenerationSettings | None = None
) -> str:
    """Decode an answer without control tokens, stop words and surrounding space."""
    text: str = assistant.tokenizer.decode(list(ids), skip_special_tokens=True)
    for word in (*assistant.template.stop_words, *(settings.stop_words if settings else ())):
        text = text.split(word)[0]
    return text.strip()


class _Observer:
    """A stopping criterion that shows every step's tokens and may end the generation."""

    def __init__(self, on_tokens: OnTokens) -> None:
        self.on_tokens = on_tokens

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        stop = bool(self.on_tokens(input_ids[:, -1].tolist()))
        return torch.full((input_ids.shape[0],), stop, device=input_ids.device)
