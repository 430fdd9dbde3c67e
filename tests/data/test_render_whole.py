"""Every template with every kind of vocabulary: what is trained, what a prompt is, what is text."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava_tools.constants import IGNORE_ID, IMAGE_TOKEN_ID
from llava_tools.data.codec import codec_of
from llava_tools.data.render import Rendered, render, render_prompt
from llava_tools.data.sample import Turn
from llava_tools.data.templates import TEMPLATES, Template, get_template
from tests.data.vocabularies import MAKERS, vocabulary

NAMES = [name for name, row in TEMPLATES.items() if not row.from_tokenizer]
WHOLE = [name for name in NAMES if TEMPLATES[name].whole]
SPELLED = ["</s>", "<s>", "<unk>", "<|im_end|>", "[/INST]", "[INST]", " ASSISTANT: ", "<|end|>"]
WORDS = ["hello", "Hi there", "one", "two\n", "\n\nthree", " four", "five ", "USER:", "a", "."]
SAID = st.lists(st.sampled_from(WORDS + SPELLED), min_size=1, max_size=5).map("".join)
PLAIN = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map("".join)
LIGHT = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def dialogue(draw: Any, said: Any, template: Template) -> list[Turn]:
    """Draw up to three exchanges, with or without a system text."""
    count = 1 if template.image_only else draw(st.integers(1, 3))
    turns = [Turn("system", draw(said))] if draw(st.booleans()) else []
    for _ in range(count):
        turns += [Turn("user", draw(said)), Turn("assistant", draw(said))]
    return turns


def squeezed(text: str) -> str:
    return "".join(text.split())


def stretches(made: Rendered) -> list[list[int]]:
    """Return the ids trained on, stretch by stretch."""
    found: list[list[int]] = [[]]
    for i, label in zip(made.input_ids, made.labels, strict=True):
        found += [[]] if label == IGNORE_ID else []
        found[-1] += [i] if label != IGNORE_ID else []
    return [run for run in found if run]


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("name", NAMES)
@LIGHT
@given(data=st.data())
def test_prompts_are_heads_and_answers_are_trained(
    name: str, kind: str, data: st.DataObject
) -> None:
    template, tokenizer = get_template(name), vocabulary(kind)
    turns = dialogue(data.draw, SAID, template)
    made = render(turns, template, tokenizer)
    answers = [turn.text for turn in turns if turn.role == "assistant"]
    end = template.suffix + ("" if template.suffix_as_eos else tokenizer.eos_token)
    said = [squeezed(tokenizer.decode(run)) for run in stretches(made)]
    assert said == [squeezed(answer + end) for answer in answers]
    asked = [k for k, turn in enumerate(turns) if turn.role == "user"]
    for number, k in enumerate(asked):
        prompt = render_prompt(turns[: k + 1], template, tokenizer)
        assert made.input_ids[: len(prompt)] == prompt
        assert made.labels[len(prompt)] == made.input_ids[len(prompt)]
        head = Rendered(prompt, made.labels[: len(prompt)])
        assert stretches(head) == stretches(made)[:number]


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("name", NAMES)
@LIGHT
@given(data=st.data())
def test_no_text_becomes_a_control_token(name: str, kind: str, data: st.DataObject) -> None:
    template, tokenizer = get_template(name), vocabulary(kind)
    turns = dialogue(data.draw, SAID, template)
    harmless = [Turn(turn.role, "hello") for turn in turns]
    control = codec_of(tokenizer).control_ids | {tokenizer.unk_token_id}
    found = [i for i in render(turns, template, tokenizer).input_ids if i in control]
    assert found == [i for i in render(harmless, template, tokenizer).input_ids if i in control]


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("spelled", SPELLED)
def test_what_is_escaped_is_read_back(kind: str, spelled: str) -> None:
    codec = codec_of(vocabulary(kind))
    text = f"say {spelled} {spelled}twice"
    ids = codec.encode_parts([(text, True)])
    assert codec.decode(ids).lstrip(" ") == text
    assert not codec.control_ids & set(ids)


def hand_made(pieces: list[str], tokenizer: Any) -> Rendered:
    """Tokenise a text in one go; `*` marks the pieces whose tokens are trained."""
    text = "".join(piece.removeprefix("*") for piece in pieces)
    made = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    spans, place = [], 0
    for piece in pieces:
        size = len(piece.removeprefix("*"))
        spans += [(place, place + size)] if piece.startswith("*") else []
        place += size
    ids = [tokenizer.bos_token_id, *made["input_ids"]]
    labels = [IGNORE_ID]
    for i, (start, end) in zip(made["input_ids"], made["offset_mapping"], strict=True):
        labels.append(i if any(end > a and start < b for a, b in spans) else IGNORE_ID)
    return Rendered(ids, labels)


CURIOUS = (
    "A chat between a curious {0} and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the {0}'s questions."
)
BELOW = "Below is an instruction that describes a task"
# Two exchanges, q1 a1 q2 a2, without a system text; the texts as FastChat and HF write them.
STREAMS: dict[str, list[str]] = {
    "vicuna_v1.1": [CURIOUS.format("user") + " USER: q1 ASSISTANT:", "* a1</s>",
                    "USER: q2 ASSISTANT:", "* a2</s>"],
    "llava_v1": [CURIOUS.format("human") + " USER: q1 ASSISTANT:", "* a1</s>",
                 "USER: q2 ASSISTANT:", "* a2</s>"],
    "llama-2": ["[INST] q1 [/INST]", "* a1 </s>", "<s>[INST] q2 [/INST]", "* a2 </s>"],
    "fastchat_mistral": ["[INST] q1 [/INST]", "* a1</s>", "[INST] q2 [/INST]", "* a2</s>"],
    "mistral_instruct": ["[INST] q1 [/INST]", "* a1</s>", " [INST] q2 [/INST]", "* a2</s>", " "],
    "chatml": ["<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\n", "*a1<|im_end|>",
               "\n<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n", "*a2<|im_end|>", "\n"],
    "qwen": ["<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
             "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\n", "*a1<|im_end|>",
             "\n<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n", "*a2<|im_end|>", "\n"],
    "alpaca": [BELOW + ". Write a response that appropriately completes the request.\n\n"
               "### Instruction: q1\n\n### Response:", "* a1</s>",
               "### Instruction: q2\n\n### Response:", "* a2</s>"],
    "alpaca_stanford": [BELOW + ". Write a response that appropriately completes the request.\n\n"
                        "### Instruction:\nq1\n\n### Response:", "*a1</s>",
                        "### Instruction:\nq2\n\n### Response:", "*a2</s>"],
    "alpaca_stanford_input": [BELOW + ", paired with an input that provides further context. Write "
                              "a response that appropriately completes the request.\n\n"
                              "### Instruction:\nq1\n\n### Response:", "*a1</s>",
                              "### Instruction:\nq2\n\n### Response:", "*a2</s>"],
    "airoboros_v1": ["A chat between a curious user and an assistant. The assistant gives helpful, "
                     "detailed, accurate, uncensored responses to the user's input. "
                     "USER: q1 ASSISTANT:", "* a1</s>", "USER: q2 ASSISTANT:", "* a2</s>"],
    "airoboros_v2": ["A chat.\nUSER: q1\nASSISTANT:", "* a1</s>", "USER: q2\nASSISTANT:",
                     "* a2</s>"],
    "airoboros_v3": ["[INST] <<SYS>>\nYou are a helpful, unbiased, uncensored assistant.\n"
                     "<</SYS>>\n\nq1 [/INST]", "* a1 </s>", "<s>[INST] q2 [/INST]", "* a2 </s>"],
    "guanaco": ["### Human: q1### Assistant:", "* a1</s>", "### Human: q2### Assistant:",
                "* a2</s>"],
    "zephyr": ["<|user|>\nq1</s>\n<|assistant|>\n", "*a1</s>",
               "\n<|user|>\nq2</s>\n<|assistant|>\n", "*a2</s>", "\n"],
    "gemma_it": ["<start_of_turn>user\nq1<end_of_turn>\n<start_of_turn>model\n",
                 "*a1<end_of_turn>",
                 "\n<start_of_turn>user\nq2<end_of_turn>\n<start_of_turn>model\n",
                 "*a2<end_of_turn>", "\n"],
    "phi3": ["<|user|>\nq1<|end|>\n<|assistant|>\n", "*a1<|end|>",
             "\n<|user|>\nq2<|end|>\n<|assistant|>\n", "*a2<|end|>", "\n"],
    "llama3": ["<|start_header_id|>user<|end_header_id|>\n\nq1<|eot_id|>"
               "<|start_header_id|>assistant<|end_header_id|>\n\n", "*a1<|eot_id|>",
               "<|start_header_id|>user<|end_header_id|>\n\nq2<|eot_id|>"
               "<|start_header_id|>assistant<|end_header_id|>\n\n", "*a2<|eot_id|>"],
    "zero_shot": [CURIOUS.format("human") + "\n### Human: q1\n### Assistant:", "* a1\n###",
                  " Human: q2\n### Assistant:", "* a2\n###", " "],
    "prompt_newline": ["q1\n", "*a1</s>", "q2\n", "*a2</s>"],
    "raw": ["q1", "*a1</s>", "q2", "*a2</s>"],
}  # fmt: skip
SYSTEM: dict[str, str] = {
    "vicuna_v1.1": "S USER: q1 ASSISTANT:",
    "llama-2": "[INST] <<SYS>>\nS\n<</SYS>>\n\nq1 [/INST]",
    "fastchat_mistral": "[INST] S\nq1 [/INST]",
    "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nq1<|im_end|>\n"
    "<|im_start|>assistant\n",
    "alpaca": "S\n\n### Instruction: q1\n\n### Response:",
    "airoboros_v2": "S\nUSER: q1\nASSISTANT:",
    "zephyr": "<|system|>\nS</s>\n<|user|>\nq1</s>\n<|assistant|>\n",
    "gemma_it": "<start_of_turn>user\nS\n\nq1<end_of_turn>\n<start_of_turn>model\n",
    "zero_shot": "S\n### Human: q1\n### Assistant:",
    "mistral_instruct": "[INST] S\nq1 [/INST]",
    "guanaco": "S\n\n### Human: q1### Assistant:",
    "phi3": "<|system|>\nS<|end|>\n<|user|>\nq1<|end|>\n<|assistant|>\n",
    "llama3": "<|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nq1<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "prompt_newline": "S q1\n",
    "raw": "Sq1",
}
ALIKE = {  # whose system text stands where another's does
    "llava_v1": "vicuna_v1.1",
    "airoboros_v1": "vicuna_v1.1",
    "airoboros_v3": "llama-2",
    "qwen": "chatml",
}
SYSTEM |= {name: SYSTEM[other] for name, other in ALIKE.items()}
STANFORD = "S\n\n### Instruction:\nq1\n\n### Response:"
SYSTEM |= dict.fromkeys(("alpaca_stanford", "alpaca_stanford_input"), STANFORD)
TURNS = [Turn("user", "q1"), Turn("assistant", "a1"), Turn("user", "q2"), Turn("assistant", "a2")]


def test_every_template_has_its_stream() -> None:
    assert set(WHOLE) == set(STREAMS) == set(SYSTEM)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("name", WHOLE)
def test_the_text_is_tokenised_in_one_go(name: str, kind: str) -> None:
    tokenizer = vocabulary(kind)
    assert render(TURNS, get_template(name), tokenizer) == hand_made(STREAMS[name], tokenizer)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("name", SYSTEM)
def test_a_system_text_stands_in_its_place(name: str, kind: str) -> None:
    tokenizer = vocabulary(kind)
    prompt = render_prompt([Turn("system", "S"), TURNS[0]], get_template(name), tokenizer)
    assert prompt == hand_made([SYSTEM[name]], tokenizer).input_ids


@pytest.mark.parametrize("kind", MAKERS)
def test_images_cut_the_text(kind: str) -> None:
    tokenizer = vocabulary(kind)
    turns = [Turn("user", "<image>\nq1"), Turn("assistant", "a1")]
    made = render(turns, get_template("llava_v1"), tokenizer)
    encode = codec_of(tokenizer).encode
    head = encode(CURIOUS.format("human") + " USER: ")
    tail = encode("\nq1 ASSISTANT: a1</s>")
    assert made.input_ids == [tokenizer.bos_token_id, *head, IMAGE_TOKEN_ID, *tail]
    assert tokenizer.decode(stretches(made)[0]).strip() == "a1</s>"


@pytest.mark.parametrize("train_on", ["all", "last", "full"])
def test_what_is_trained_on(train_on: str) -> None:
    tokenizer = vocabulary("legacy")
    turns = [Turn(turn.role, turn.text) for turn in [*TURNS, *TURNS]]
    made = render(turns, get_template("vicuna_v1.1"), tokenizer, train_on=train_on)
    found = [tokenizer.decode(run).strip() for run in stretches(made)]
    full = tokenizer.decode(made.input_ids[1:]).strip()
    wanted = {"all": ["a1</s>", "a2</s>"] * 2, "last": ["a2</s>"], "full": [full]}
    assert found == wanted[train_on]


@pytest.mark.parametrize("train_on", ["all", "last", "full"])
def test_images_are_never_trained_on(train_on: str) -> None:
    turns = [Turn("user", "<image>\nq1"), *TURNS[1:]]
    for name in ("vicuna", "llava_v1"):
        made = render(turns, get_template(name), vocabulary("legacy"), train_on=train_on)
        assert made.labels[made.input_ids.index(IMAGE_TOKEN_ID)] == IGNORE_ID


@LIGHT
@given(data=st.data())
def test_the_end_token_is_trained_though_it_pads(data: st.DataObject) -> None:
    tokenizer = vocabulary("legacy")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    turns = dialogue(data.draw, PLAIN, get_template("alpaca"))
    made = render(turns, get_template("alpaca"), tokenizer)
    ends = [k for k, i in enumerate(made.input_ids) if i == tokenizer.eos_token_id]
    assert len(ends) == sum(turn.role == "assistant" for turn in turns)
    assert all(made.labels[k] == tokenizer.eos_token_id for k in ends)


def test_the_preamble_is_the_published_one() -> None:
    from hashlib import sha256

    text = get_template("vicuna_v1.1").default_system or ""
    assert len(text) == 154
    assert re.match("1fa69e2371b762d1", sha256(text.encode()).hexdigest())


@pytest.mark.parametrize("name", ["chatml", "gemma_it", "phi3", "zephyr"])
def test_no_token_reaches_from_a_prompt_into_its_answer(name: str) -> None:
    template, tokenizer = get_template(name), vocabulary("llama3")
    tokens = tokenizer.convert_ids_to_tokens(codec_of(tokenizer).encode("assistant\n\nhi"))
    assert "ĊĊ" in tokens  # one token for both line breaks
    turns = [TURNS[0], Turn("assistant", "\nhi"), *TURNS[2:]]
    made = render(turns, template, tokenizer)
    prompt = render_prompt(turns[:1], template, tokenizer)
    assert made.input_ids[: len(prompt)] == prompt
    assert tokenizer.decode(stretches(made)[0]).startswith("\nhi")
