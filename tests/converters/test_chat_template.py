"""The Jinja text renders a dialogue to the string that training renders."""

from __future__ import annotations

import jinja2
import pytest

from llava_tools.converters.chat_template import chat_template
from llava_tools.data.templates import TEMPLATES, get_template

CHAT = [
    {"role": "user", "content": [{"type": "text", "text": "What?"}, {"type": "image"}]},
    {"role": "assistant", "content": "Red."},
    {"role": "user", "content": 'And "it\'s"\n{{ x }}?'},
]
WANTED = {
    "phi3_chat": "<s><|user|>\n<image>\nWhat?<|end|>\n<|assistant|>\nRed.<|end|>\n"
    '<|user|>\nAnd "it\'s"\n{{ x }}?<|end|>\n<|assistant|>\n',
    "vicuna": "<s>USER: <image>\nWhat? ASSISTANT: Red.</s>\n"
    '<s>USER: And "it\'s"\n{{ x }}? ASSISTANT: ',
    "llama3_chat": "<s><|start_header_id|>user<|end_header_id|>\n\n<image>\nWhat?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nRed.<|eot_id|>"
    '<|start_header_id|>user<|end_header_id|>\n\nAnd "it\'s"\n{{ x }}?<|eot_id|>'
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
}


def render(name: str, messages: list[dict[str, object]], bos: bool = True) -> str:
    text = chat_template(get_template(name), bos)
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)  # as transformers does
    return environment.from_string(text).render(
        messages=messages, bos_token="<s>", eos_token="</s>", add_generation_prompt=True
    )


@pytest.mark.parametrize("name", WANTED)
def test_a_dialogue_is_rendered_as_in_training(name: str) -> None:
    assert render(name, CHAT) == WANTED[name]


def test_system_texts_and_tokenizers_without_bos() -> None:
    messages = [{"role": "system", "content": "Be brief."}, CHAT[2]]
    text = render("phi3_chat", messages, bos=False)
    assert text.startswith("<|system|>\nBe brief.<|end|>\n<|user|>\nAnd")


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_renders(name: str) -> None:
    text = render(name, [{"role": "system", "content": "S"}, *CHAT])
    assert "<image>\nWhat?" in text and "Red." in text
