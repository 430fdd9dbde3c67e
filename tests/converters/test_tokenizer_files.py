"""Tokenizer files of an export: edited in place, consistent with each other."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from llava_tools.converters.tokenizer_files import (
    add_image_tokens,
    copy_tokenizer,
    end_tokens,
    generation_config,
    template_of,
)
from llava_tools.errors import UserError
from llava_tools.model.source import Source, open_source


@pytest.fixture
def source(runs: dict[str, Path]) -> Source:
    return open_source(runs["phi3"])


def test_every_file_agrees(source: Source, tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    shutil.copytree(source.tokenizer_dir, origin)
    (origin / "special_tokens_map.json").write_text('{"eos_token": "<|endoftext|>"}')
    (origin / "added_tokens.json").write_text('{"<|end|>": 423}')
    folder = tmp_path / "x"
    folder.mkdir()
    copy_tokenizer(replace(source, tokenizer_dir=origin), folder)
    image, pad = add_image_tokens(source, folder)
    top = max(PreTrainedTokenizerFast.from_pretrained(origin).get_vocab().values())
    assert (image, pad) == (top + 1, top + 2)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["added_tokens_decoder"][str(image)]["content"] == "<image>"
    assert settings["added_tokens_decoder"][str(pad)]["special"] is True
    special = json.loads((folder / "special_tokens_map.json").read_text())
    assert special == {"eos_token": "<|endoftext|>", "pad_token": "<pad>"}
    added = json.loads((folder / "added_tokens.json").read_text())
    assert added == {"<|end|>": 423, "<image>": image, "<pad>": pad}


def test_tokens_that_are_there_keep_their_ids(source: Source, tmp_path: Path) -> None:
    copy_tokenizer(source, tmp_path)
    first = add_image_tokens(source, tmp_path)
    before = (tmp_path / "tokenizer.json").read_bytes()
    assert add_image_tokens(source, tmp_path) == first
    assert (tmp_path / "tokenizer.json").read_bytes() == before


def test_a_folder_whose_tokenizer_cannot_be_made_is_an_error(
    source: Source, tmp_path: Path
) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    (origin / "tokenizer.model").write_bytes(b"broken")
    with pytest.raises(UserError, match="has no tokenizer.json, and none could be made"):
        add_image_tokens(replace(source, tokenizer_dir=origin), tmp_path)


def test_end_tokens_are_the_bases_and_the_templates(source: Source) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(source.tokenizer_dir)
    ends = [tokenizer.convert_tokens_to_ids(word) for word in ("<|endoftext|>", "<|end|>")]
    assert end_tokens(source) == ends[1:]
    assert generation_config(source)["eos_token_id"] == ends
    other = replace(source, prompt_template="vicuna")
    assert end_tokens(other) == []
    assert generation_config(other)["eos_token_id"] == ends[0]


def test_without_a_name_the_template_is_what_the_tokenizer_implies(
    source: Source, runs: dict[str, Path]
) -> None:
    implied = template_of(replace(source, prompt_template=None))
    assert implied is not None and implied.name == "phi3_chat"
    vicuna = open_source(runs["vicuna"])
    assert template_of(replace(vicuna, prompt_template=None)) is None


def test_a_broken_tokenizer_is_named(source: Source, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(UserError, match="tokenizer.json' cannot be read"):
        add_image_tokens(source, tmp_path)


def test_sampling_settings_stay_with_text_models(runs: dict[str, Path], tmp_path: Path) -> None:
    source = open_source(runs["llama3"])
    origin = tmp_path / "origin"
    shutil.copytree(source.tokenizer_dir, origin)
    held = {"do_sample": True, "temperature": 0.6, "eos_token_id": 401, "transformers_version": "4"}
    (origin / "generation_config.json").write_text(json.dumps(held))
    source = replace(source, tokenizer_dir=origin)
    assert "temperature" not in generation_config(source)
    text = generation_config(replace(source, vision_config=None))
    assert text["temperature"] == 0.6 and "transformers_version" not in text
    assert text["eos_token_id"] == generation_config(source)["eos_token_id"] == [401, 404]
