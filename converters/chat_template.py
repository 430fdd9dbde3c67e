"""A row of our template table as the Jinja text that transformers and servers render."""

from __future__ import annotations

import json

from llava_tools.constants import IMAGE_TOKEN
from llava_tools.data.templates import Template

# A message's content is text, or a list of {"type": "image"} and {"type": "text", "text": ...}.
# As in training, the images come first, each on a line of its own.
_TEXT = (
    "{%- set ns = namespace(text='') -%}"
    "{%- if message['content'] is string -%}{%- set ns.text = message['content'] -%}"
    "{%- else -%}"
    "{%- for item in message['content'] if item['type'] == 'image' -%}"
    "{%- set ns.text = ns.text + IMAGE -%}{%- endfor -%}"
    "{%- for item in message['content'] if item['type'] == 'text' -%}"
    "{%- set ns.text = ns.text + item['text'] -%}{%- endfor -%}"
    "{%- endif -%}"
)


def chat_template(template: Template, has_bos: bool) -> str:
    """Return Jinja that renders a dialogue as training did.

    A question ends where the answer starts, so `add_generation_prompt` makes no difference. The
    text begins with BOS if the tokenizer has one: do not let the tokenizer add another.
    """
    before, after = template.instruction.split("{input}")
    if after[-1:] not in ("", "\n", ">"):
        after += " "  # SentencePiece gives an answer that is encoded by itself a leading space
    first, last = template.system.split("{system}") if template.system else ("", "")
    bos = "{{- bos_token -}}" if has_bos else ""
    # Where the tokenizer's own end token closes an answer, the next turn begins with BOS again.
    again = "" if template.suffix_as_eos else "{%- if not loop.first -%}" + bos + "{%- endif -%}"
    end = _print(template.suffix) + ("" if template.suffix_as_eos else "{{- eos_token -}}")
    return (
        bos
        + "{%- for message in messages -%}"
        + _TEXT.replace("IMAGE", json.dumps(IMAGE_TOKEN + "\n"))
        + "{%- if message['role'] == 'system' -%}"
        + _print(first)
        + "{{- ns.text -}}"
        + _print(last)
        + "{%- elif message['role'] == 'user' -%}"
        + again
        + _print(before)
        + "{{- ns.text -}}"
        + _print(after)
        + "{%- else -%}{{- ns.text -}}"
        + end
        + _print(template.sep)
        + "{%- endif -%}{%- endfor -%}"
    )


def _print(text: str) -> str:
    return "{{- " + json.dumps(text) + " -}}" if text else ""
