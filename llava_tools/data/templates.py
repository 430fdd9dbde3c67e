"""The prompt templates, as one table, with XTuner's names and strings.

To add a template, add a row: `instruction` with `{input}`, `system` with `{system}`, and what
follows an answer. `control` names the strings that a fitting tokenizer holds as single tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from llava_tools.data.codec import codec_of
from llava_tools.errors import UserError, did_you_mean

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Template:
    """A prompt format: turn = system? + instruction | answer + suffix (+ eos) | sep.

    The part between the bars is trained on. `suffix_as_eos` says that the suffix ends the answer;
    otherwise the tokenizer's own end token follows it, and the next turn begins with BOS again.
    """

    name: str
    instruction: str
    system: str = "{system}"
    suffix: str = ""
    suffix_as_eos: bool = False
    sep: str = ""
    stop_words: tuple[str, ...] = ()
    control: tuple[str, ...] = ()
    image_only: bool = False  # of a question only its images are kept: captions, LLaVA's stage 1


_LLAMA3_HEADER = "<|start_header_id|>{role}<|end_header_id|>\n\n"
_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    "{system}\n "
)
_LLAMA2_SYSTEM = (
    "[INST] <<SYS>>\n You are a helpful, respectful and honest assistant. Always answer as "
    "helpfully as possible, while being safe. Your answers should not include any harmful, "
    "unethical, racist, sexist, toxic, dangerous, or illegal content. Please ensure that your "
    "responses are socially unbiased and positive in nature.\n{system}\n<</SYS>>\n [/INST] "
)
_CHATML = Template(
    name="internlm2_chat",
    system="<|im_start|>system\n{system}<|im_end|>\n",
    instruction="<|im_start|>user\n{input}<|im_end|>\n<|im_start|>assistant\n",
    suffix="<|im_end|>",
    suffix_as_eos=True,
    sep="\n",
    stop_words=("<|im_end|>",),
    control=("<|im_start|>", "<|im_end|>"),
)
_MISTRAL = Template(
    name="mistral",
    system="[INST] {system} [/INST]\n",
    instruction="[INST] {input} [/INST]",
    sep="\n",
)

# In the order in which `guess_template` tries them: of two that fit, the stricter one first.
_ROWS = (
    Template(
        name="phi3_chat",
        system="<|system|>\n{system}<|end|>\n",
        instruction="<|user|>\n{input}<|end|>\n<|assistant|>\n",
        suffix="<|end|>",
        suffix_as_eos=True,
        sep="\n",
        stop_words=("<|end|>",),
        control=("<|user|>", "<|end|>", "<|assistant|>"),
    ),
    Template(
        name="llama3_chat",
        system=_LLAMA3_HEADER.format(role="system") + "{system}<|eot_id|>",
        instruction=_LLAMA3_HEADER.format(role="user")
        + "{input}<|eot_id|>"
        + _LLAMA3_HEADER.format(role="assistant"),
        suffix="<|eot_id|>",
        suffix_as_eos=True,
        stop_words=("<|eot_id|>",),
        control=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    replace(
        _CHATML,
        name="qwen_chat",
        stop_words=("<|im_end|>", "<|endoftext|>"),
        control=("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    ),
    _CHATML,
    Template(
        name="internlm_chat",
        system="<|System|>:{system}\n",
        instruction="<|User|>:{input}<eoh>\n<|Bot|>:",
        suffix="<eoa>",
        suffix_as_eos=True,
        sep="\n",
        stop_words=("<eoa>",),
        control=("<eoh>", "<eoa>"),
    ),
    Template(
        name="gemma",
        system="<start_of_turn>system\n{system}<end_of_turn>\n",
        instruction="<start_of_turn>user\n{input}<end_of_turn>\n<start_of_turn>model\n",
        suffix="<end_of_turn>",
        sep="\n",
        stop_words=("<end_of_turn>",),
        control=("<start_of_turn>", "<end_of_turn>"),
    ),
    Template(
        name="vicuna", system=_VICUNA_SYSTEM, instruction="USER: {input} ASSISTANT:", sep="\n"
    ),
    Template(
        name="llama2_chat", system=_LLAMA2_SYSTEM, instruction="[INST] {input} [/INST]", sep="\n"
    ),
    _MISTRAL,
    replace(_MISTRAL, name="mixtral"),
    Template(
        name="default",
        system="<|System|>:{system}\n",
        instruction="<|User|>:{input}\n<|Bot|>:",
        sep="\n",
    ),
    # LLaVA's own stage-1 format, which XTuner lacks: image, caption, newline, no end token.
    Template(
        name="plain",
        system="",
        instruction="{input}",
        suffix="\n",
        suffix_as_eos=True,
        stop_words=("\n",),
        image_only=True,
    ),
)

TEMPLATES = {row.name: row for row in _ROWS}


def get_template(name: str) -> Template:
    """Return a template by name. Raises UserError that names the nearest one."""
    if name not in TEMPLATES:
        raise UserError(f"Unknown prompt template '{name}'.", did_you_mean(name, TEMPLATES))
    return TEMPLATES[name]


def guess_template(tokenizer: Any) -> str | None:
    """Return the first template all of whose control strings are tokens, None when none is."""
    for row in _ROWS:
        if row.control and not _missing(row.control, tokenizer):
            return row.name
    return None


def check_template(template: Template, tokenizer: Any) -> None:
    """Check that the tokenizer knows the template's control strings and has an end token.

    Raises UserError naming the control string that would be split into pieces of text.
    """
    fitting = guess_template(tokenizer)
    advice = f"The tokenizer fits prompt_template = '{fitting}'." if fitting else ""
    for text in _missing(template.control, tokenizer):
        raise UserError(
            f"The prompt template '{template.name}' does not fit the tokenizer: "
            f"'{text}' is no single token there.",
            advice or "Choose the template that the model was trained with, for example 'vicuna'.",
        )
    if not template.suffix_as_eos and tokenizer.eos_token_id is None:
        raise UserError(
            f"The prompt template '{template.name}' ends answers with the tokenizer's end token, "
            "but this tokenizer has none.",
            advice or "Choose a template with an end string of its own, for example 'phi3_chat'.",
        )
    if fitting and not template.control and not template.image_only:
        log.warning(
            "The tokenizer has the control tokens of '%s', but the prompt template is '%s'.",
            fitting,
            template.name,
        )


def _missing(strings: Iterable[str], tokenizer: Any) -> list[str]:
    """Return the strings that the tokenizer does not hold as one token."""
    codec = codec_of(tokenizer)
    unknown = tokenizer.unk_token_id
    return [s for s in strings if len(ids := codec.encode(s)) != 1 or ids[0] == unknown]
