"""Loading finished models and parts: complete or an error, and tokenizers as their files say."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llava_tools.data.codec import codec_of
from llava_tools.errors import UserError
from llava_tools.model.load import load_assistant, load_llm, load_tokenizer
from llava_tools.model.vision import load_visual_encoder, read_num_patches
from tests import tiny


@pytest.fixture
def model(parts: Path, tmp_path: Path) -> Path:
    return tiny.save_xtuner(tmp_path / "model", parts)


def test_every_part_is_filled_from_the_files(model: Path, parts: Path) -> None:
    assistant = load_assistant(model)
    reference = AutoModelForCausalLM.from_pretrained(parts / "phi3", dtype=torch.float32)
    state = assistant.model.state_dict()
    for name, tensor in reference.state_dict().items():
        assert torch.equal(state[f"llm.{name}"], tensor), name
    projector = load_file(model / "projector" / "model.safetensors")
    for name, tensor in projector.items():
        assert torch.equal(state[f"projector.{name}"], tensor), name
    ids = torch.tensor([[1, 5, 6, 7, 300]])
    with torch.no_grad():
        wanted = reference.eval()(ids).logits[0]
        assert torch.equal(assistant.model.logits(ids[0].tolist()), wanted)
    assert assistant.template.name == "phi3_chat"
    assert not any(parameter.is_meta for parameter in assistant.model.parameters())


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_dtype_is_the_users(model: Path, dtype: str) -> None:
    kinds = {p.dtype for p in load_assistant(model, dtype=dtype).model.parameters()}
    assert kinds == {{"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]}


def test_missing_unexpected_and_misshapen_weights_are_named(model: Path) -> None:
    file = model / "projector" / "model.safetensors"
    good = load_file(file)
    save_file({k: v for k, v in good.items() if k != "model.2.bias"}, file)
    with pytest.raises(UserError, match=r"model\.2\.bias"):
        load_assistant(model)
    save_file(good | {"model.9.bias": torch.zeros(1)}, file)
    with pytest.raises(UserError, match=r"model\.9\.bias"):
        load_assistant(model)
    save_file(good | {"model.2.bias": torch.zeros(7)}, file)
    with pytest.raises(UserError, match=r"model\.2\.bias"):
        load_assistant(model)


def test_an_unknown_dtype_or_device_or_template(model: Path) -> None:
    with pytest.raises(UserError, match="Unknown dtype 'int3'"):
        load_assistant(model, dtype="int3")
    with pytest.raises(UserError, match="Unknown prompt template 'phi3_chats'"):
        load_assistant(model, template="phi3_chats")
    with pytest.raises(UserError, match="does not fit the tokenizer"):
        load_assistant(model, template="llama3_chat")
    (model / "llava_tools.json").write_text('{"prompt_template": 3}')
    with pytest.raises(UserError, match="Unknown prompt template '3'"):
        load_assistant(model)
    for name in ("banana", "meta", "hpu"):  # torch knows the latter two
        with pytest.raises(UserError, match=f"There is no device '{name}'"):
            load_assistant(model, device=name)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="torch sees no GPU"):
            load_assistant(model, device="cuda")


def test_a_template_of_images_alone_is_told(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_assistant(model)
    assert "without any words" not in caplog.text
    load_assistant(model, template="plain")
    assert "The prompt template 'plain' asks with images alone, without any words" in caplog.text


def test_a_byte_level_tokenizer_keeps_its_spaces_under_any_class_name(
    parts: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "llama3"
    shutil.copytree(parts / "llama3", folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings | {"tokenizer_class": "LlamaTokenizerFast"})
    )
    tokenizer = load_tokenizer(folder)
    text = "What is\n\nin the picture?"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize("legacy", [None, False, True])
def test_a_sentencepiece_model_alone_is_read_as_it_is_meant(
    tmp_path: Path, legacy: bool | None
) -> None:
    """As MobileLLaMA and Vicuna come, without a tokenizer.json; one even without its config."""
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(tiny.CORPUS),
        model_writer=file,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(file.getvalue())
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    if legacy is not None:
        special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        config = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy, **special}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = sentencepiece.SentencePieceProcessor(model_proto=file.getvalue())
    tokenizer = load_tokenizer(tmp_path)
    for text in ("A chat", "cat dog ", "USER: What is ünknown?", "A. one\nB. two\n"):
        assert codec_of(tokenizer).encode(text) == theirs.encode(text), text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)


@pytest.mark.parametrize("name", ["nobody/nothing", "/no/such/folder"])
def test_parts_that_are_not_there(name: str) -> None:
    with pytest.raises(UserError, match="No language model at"):
        load_llm(name, dtype=torch.float32)
    with pytest.raises(UserError, match="No vision tower at"):
        load_visual_encoder(name)
    with pytest.raises(UserError, match="No usable tokenizer at"):
        load_tokenizer(name)


def test_an_llm_is_no_vision_tower(parts: Path) -> None:
    with pytest.raises(UserError, match="a model of type 'phi3', not a vision tower"):
        load_visual_encoder(str(parts / "phi3"))


def test_an_incomplete_folder_is_not_filled_with_random_weights(
    parts: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "phi3"
    shutil.copytree(parts / "phi3", folder)
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    save_file({k: v for k, v in weights.items() if k != name}, folder / "model.safetensors")
    with pytest.raises(UserError, match=name):
        load_llm(str(folder), dtype=torch.float32)


def test_the_patches_of_a_whole_clip_are_those_of_its_vision_half(
    parts: Path, tmp_path: Path
) -> None:
    vision = {"image_size": 42, "patch_size": 14}
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "clip", "vision_config": vision})
    )
    assert read_num_patches(str(tmp_path)) == 9
    with pytest.raises(UserError, match="a model of type 'phi3', not a vision tower"):
        read_num_patches(str(parts / "phi3"))
