"""The tokenizer and the random parts load as those of the real models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

from llava_tools.data.templates import check_template, get_template, guess_template
from llava_tools.model.load import load_image_processor, load_llm, load_tokenizer
from llava_tools.model.vision import load_visual_encoder
from llava_tools.quickstart import parts, rows
from llava_tools.quickstart.digits import SIDE, WORDS
from llava_tools.quickstart.prepare import texts


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    made = rows.text_rows(1000, np.random.default_rng(0))
    return parts.train_tokenizer(texts(made))


def encode(tokenizer: Tokenizer, text: str) -> list[str]:
    return list(tokenizer.encode(text, add_special_tokens=False).tokens)


@pytest.mark.parametrize(
    "text",
    [
        rows.TEXT_EXAMPLE,
        rows.ASK_LETTER,
        "A handwritten seven.",
        "Unknown: Ä, 数, 🙂 and  two spaces\n\nand lines",
    ],
)
def test_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("word", WORDS)
def test_a_word_is_one_token_wherever_it_stands(tokenizer: Tokenizer, word: str) -> None:
    for text in (f"A handwritten {word}.", f"\nA. {word}\nB. x", f"The picture shows a {word}"):
        assert f"▁{word}" in encode(tokenizer, text)


def test_the_instruction_is_short(tokenizer: Tokenizer) -> None:
    assert len(encode(tokenizer, f"one\n{rows.ASK_LETTER}")) <= 12


def test_the_vocabulary_has_all_bytes_and_the_control_tokens(tokenizer: Tokenizer) -> None:
    vocabulary = tokenizer.get_vocab()
    assert all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
    assert [encode(tokenizer, token) for token in parts.CONTROL] == [[t] for t in parts.CONTROL]


def test_the_llm_loads_and_fits_the_template(tokenizer: Tokenizer, tmp_path: Path) -> None:
    parts.write_llm(tmp_path, tokenizer, seed=0)
    loaded = load_tokenizer(tmp_path)
    assert guess_template(loaded) == "phi3_chat"
    check_template(get_template("phi3_chat"), loaded)
    llm = load_llm(str(tmp_path), dtype=torch.float32)
    assert llm.config.model_type == "phi3" and llm.config.architectures == ["Phi3ForCausalLM"]
    assert llm.get_input_embeddings().weight.std().item() == pytest.approx(
        parts.INITIALIZER_RANGE, rel=0.1
    )
    assert llm.config.eos_token_id == loaded.eos_token_id


def test_weights_follow_from_the_seed(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        parts.write_llm(tmp_path / name, tokenizer, seed)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_the_tower_loads_and_takes_a_picture_as_it_is(tmp_path: Path) -> None:
    parts.write_tower(tmp_path, seed=0)
    tower = load_visual_encoder(str(tmp_path))
    pixels = load_image_processor(str(tmp_path))(Image.new("RGB", (SIDE, SIDE)), False)
    features = tower(pixels[None], -2)
    assert features.shape == (1, (SIDE // parts.PATCH) ** 2, parts.WIDTH)
