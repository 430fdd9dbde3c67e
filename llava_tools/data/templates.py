"""The prompt templates by name; which one fits a tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from llava_tools.data.codec import codec_of
from llava_tools.data.own_template import Refused
from llava_tools.data.template_rows import XTUNER, Template
from llava_tools.data.whole_rows import WHOLE
from llava_tools.errors import UserError, did_you_mean

__all__ = [
    "TEMPLATES",
    "Template",
    "check_template",
    "fit_template",
    "get_template",
    "guess_template",
    "template_to_ask",
]

log = logging.getLogger(__name__)

TEMPLATES = {row.name: row for row in (*XTUNER, *WHOLE)}


def get_template(name: str) -> Template:
    """Return a template by name. Raises UserError that names the nearest one."""
    if name not in TEMPLATES:
        raise UserError(f"Unknown prompt template '{name}'.", did_you_mean(name, TEMPLATES))
    return TEMPLATES[name]


def template_to_ask(name: str, tokenizer: Any) -> Template:
    """Return a template by name that a model is to be asked by. Raises UserError.

    One of images alone is warned of: it leaves out all words of a question.
    """
    template = check_template(get_template(name), tokenizer)
    if template.image_only:
        log.warning("The prompt template '%s' asks with images alone, without any words.", name)
    return template


def fit_template(name: str, tokenizer: Any) -> Template:
    """Return a template by name; the tokenizer's own with its stop word. Raises UserError."""
    template = get_template(name)
    return _own(template, tokenizer) if template.from_tokenizer else template


def guess_template(tokenizer: Any) -> str | None:
    """Return the first template all of whose control strings are tokens, None when none is."""
    for row in XTUNER:
        if row.control and not _missing(row.control, tokenizer):
            return row.name
    return None


def check_template(template: Template, tokenizer: Any) -> Template:
    """Return the template if the tokenizer knows its control strings and has an end token.

    The tokenizer's own gets its stop word. Raises UserError naming what does not fit.
    """
    if template.from_tokenizer:
        return _own(template, tokenizer)
    fitting = guess_template(tokenizer)
    advice = f"The tokenizer fits prompt_template = '{fitting}'." if fitting else ""
    for text in _missing(template.control, tokenizer):
        raise UserError(
            f"The prompt template '{template.name}' does not fit the tokenizer: "
            f"'{text}' is no single token there.",
            advice or "Choose the template that the model was trained with, for example 'vicuna'.",
        )
    if template.whole and not codec_of(tokenizer).gives_spans:
        raise UserError(
            f"The prompt template '{template.name}' needs a tokenizer with a tokenizer.json, which "
            "says where in a text its tokens are.",
            advice or "Choose a template of XTuner's, for example 'vicuna'.",
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
    return template


def _own(template: Template, tokenizer: Any) -> Template:
    codec = codec_of(tokenizer)
    try:
        if not codec.gives_spans:
            raise Refused("the tokenizer has no tokenizer.json, which says where tokens are")
        return replace(template, stop_words=(codec.own_template.check(),))
    except Refused as reason:
        fitting = guess_template(tokenizer)
        names = f"'{fitting}', which fits" if fitting else "'vicuna_v1.1'"
        raise UserError(
            f"The tokenizer's own chat template cannot be used: {reason}.",
            f"Name a template of ours instead, for example {names}.",
        ) from reason


def _missing(strings: Iterable[str], tokenizer: Any) -> list[str]:
    """Return the strings that the tokenizer does not hold as one token."""
    codec = codec_of(tokenizer)
    unknown = tokenizer.unk_token_id
    return [s for s in strings if len(ids := codec.encode(s)) != 1 or ids[0] == unknown]
