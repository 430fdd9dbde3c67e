"""LoRA over any LLM: merged as peft adds it, with its vocabulary, and never on another base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llava_tools.converters.convert import convert
from llava_tools.converters.merge import merge
from llava_tools.errors import UserError
from llava_tools.model.adapted import read_llm_adapter
from llava_tools.model.base_mark import base_mark
from llava_tools.model.load import load_assistant
from llava_tools.model.parts import read_llm
from llava_tools.model.source import detect, open_source
from tests import tiny
from tests.model.checkpoints import edit_json

IDS = torch.arange(3, 40)[None]


def write_adapter(base: Path, folder: Path, grow: int = 0, **options: Any) -> torch.Tensor:
    """Let peft write an adapter with random factors; return its logits in fp32."""
    torch.manual_seed(3)
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    if grow:
        model.resize_token_embeddings(model.config.vocab_size + grow, mean_resizing=False)
    config = LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", **options)
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            bias = name.endswith(".bias") and parameter.requires_grad
            if "lora_" in name or "modules_to_save" in name or bias or (grow and "embed" in name):
                parameter.add_(0.2 * torch.randn_like(parameter))
        adapted.save_pretrained(folder)
        return adapted.eval()(input_ids=IDS).logits


def logits(path: Path, **options: Any) -> torch.Tensor:
    """Return the logits of what `load_assistant` makes of a folder."""
    options = {"dtype": "fp32", "template": "vicuna"} | options
    with torch.no_grad():
        return load_assistant(path, **options).model.llm(input_ids=IDS).logits.float()


DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the relative error, of all values together."""
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("family", ["phi3", "llama3", "qwen2", "mistral", "gemma"])
@pytest.mark.parametrize(("dtype", "within"), [("fp32", 1e-6), ("fp16", 1e-3), ("bf16", 1e-2)])
def test_merged_is_as_adapted(
    parts: Path, tmp_path: Path, family: str, dtype: str, within: float
) -> None:
    wanted = write_adapter(parts / family, tmp_path / "lora")
    found = logits(tmp_path / "lora", dtype=dtype)
    base = AutoModelForCausalLM.from_pretrained(parts / family, dtype=getattr(torch, DTYPES[dtype]))
    with torch.no_grad():
        beside = PeftModel.from_pretrained(base, tmp_path / "lora").eval()(input_ids=IDS).logits
    own = error(beside.float(), wanted)  # of the adapter beside its base in that dtype
    assert error(found, wanted) <= max(3 * within, 1.5 * own)
    if dtype == "fp32":
        assert float((found - logits(parts / family)).abs().max()) > 0.01


def test_an_adapter_folder_is_a_model_and_goes_over_any_copy_of_its_base(
    parts: Path, tmp_path: Path
) -> None:
    wanted = write_adapter(parts / "vicuna", tmp_path / "lora")
    assert detect(tmp_path / "lora") == "adapter"
    shutil.copytree(parts / "vicuna", tmp_path / "base")
    assert torch.allclose(logits(tmp_path / "base", adapter=tmp_path / "lora"), wanted, atol=1e-5)
    edit_json(tmp_path / "lora/adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(UserError, match="does not tell the adapter's base model"):
        logits(tmp_path / "lora")
    edit_json(tmp_path / "lora/adapter_config.json", base_model_name_or_path=str(tmp_path / "lora"))
    with pytest.raises(UserError, match="names its own folder as the base"):
        logits(tmp_path / "lora")
    edit_json(tmp_path / "lora/adapter_config.json", base_model_name_or_path="/gone/base")
    with pytest.raises(UserError, match="The base of .*lora' is not here: '/gone/base'"):
        logits(tmp_path / "lora")


@pytest.mark.parametrize("family", ["vicuna", "qwen2"])
@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["norm"]},
        {"bias": "lora_only"},
        {"grow": 5},
    ],
    ids=str,
)
def test_what_was_trained_as_a_whole_is_carried(
    parts: Path, tmp_path: Path, family: str, options: dict[str, Any]
) -> None:
    wanted = write_adapter(parts / family, tmp_path / "lora", **options)
    found = logits(parts / family, adapter=tmp_path / "lora")
    assert found.shape == wanted.shape
    assert torch.allclose(found, wanted, atol=5e-5)


def test_biases_that_were_not_saved_are_missed(parts: Path, tmp_path: Path) -> None:
    """As older releases of peft leave them out of what they save."""
    write_adapter(parts / "qwen2", tmp_path / "lora", bias="lora_only")
    file = tmp_path / "lora/adapter_model.safetensors"
    save_file({n: t for n, t in load_file(file).items() if not n.endswith("bias")}, file)
    with pytest.raises(UserError, match=r"trained biases, but lacks llm.model.layers.0.*\.bias"):
        logits(parts / "qwen2", adapter=tmp_path / "lora", template="qwen_chat")


def test_the_adapters_tokenizer_and_template_count(parts: Path, tmp_path: Path) -> None:
    write_adapter(parts / "vicuna", tmp_path / "lora")
    tiny.save_tokenizer(tmp_path / "lora", "vicuna")
    (tmp_path / "lora/llava_tools.json").write_text(json.dumps({"prompt_template": "llama2_chat"}))
    assistant = load_assistant(parts / "vicuna", adapter=tmp_path / "lora")
    assert assistant.template.name == "llama2_chat"
    assert open_source(tmp_path / "lora").tokenizer_dir == tmp_path / "lora"
    chosen = load_assistant(parts / "vicuna", adapter=tmp_path / "lora", template="vicuna")
    assert chosen.template.name == "vicuna"


def test_more_tokens_than_embeddings_are_refused(parts: Path, tmp_path: Path) -> None:
    write_adapter(parts / "vicuna", tmp_path / "lora")
    tiny.save_tokenizer(tmp_path / "lora", "vicuna")
    file = tmp_path / "lora/tokenizer.json"
    content = json.loads(file.read_text())
    last = max(content["model"]["vocab"].values())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"] += [
        {"id": last + i, "content": f"<|new{i}|>", "special": True, **flags} for i in range(1, 9)
    ]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"has \d+ tokens, the model \d+ embeddings"):
        load_assistant(parts / "vicuna", adapter=tmp_path / "lora", template="vicuna")
    with pytest.raises(UserError, match=r"has \d+ tokens, the model \d+ embeddings"):
        merge(str(parts / "vicuna"), str(tmp_path / "lora"), tmp_path / "merged")
    with pytest.raises(UserError, match=r"has \d+ tokens, the model \d+ embeddings"):
        convert(tmp_path / "lora", tmp_path / "merged", "hf")
    assert not (tmp_path / "merged").exists()


def test_other_weights_of_the_same_shape_are_refused(parts: Path, tmp_path: Path) -> None:
    wanted = write_adapter(parts / "vicuna", tmp_path / "lora")
    tensors = read_llm(parts / "vicuna").tensors
    mark = base_mark(tensors, read_llm_adapter(tmp_path / "lora").factors)
    assert len(mark) == 3
    (tmp_path / "lora/llava_tools.json").write_text(json.dumps({"base": {"mark": mark}}))
    tiny.save_llm(tmp_path / "other", "vicuna", seed=9)
    with pytest.raises(UserError, match="was trained on other weights than these") as caught:
        logits(tmp_path / "other", adapter=tmp_path / "lora")
    assert str(parts / "vicuna") in caught.value.hint
    for dtype in (torch.float16, torch.bfloat16):  # the same model, in another dtype
        copy = tmp_path / str(dtype)
        AutoModelForCausalLM.from_pretrained(parts / "vicuna", dtype=dtype).save_pretrained(copy)
        shutil.copy(parts / "vicuna/tokenizer.json", copy)
        shutil.copy(parts / "vicuna/tokenizer_config.json", copy)
        assert torch.allclose(logits(copy, adapter=tmp_path / "lora"), wanted, atol=0.05)


def test_a_mark_tells_a_little_training(parts: Path, tmp_path: Path) -> None:
    write_adapter(parts / "vicuna", tmp_path / "lora")
    tensors = read_llm(parts / "vicuna").tensors
    mark = base_mark(tensors, read_llm_adapter(tmp_path / "lora").factors)
    (tmp_path / "lora/llava_tools.json").write_text(json.dumps({"base": {"mark": mark}}))
    shutil.copytree(parts / "vicuna", tmp_path / "trained")
    file = tmp_path / "trained/model.safetensors"
    state = {name: tensor * 1.001 for name, tensor in load_file(file).items()}
    save_file(state, file, {"format": "pt"})
    with pytest.raises(UserError, match="trained on other weights"):
        logits(tmp_path / "trained", adapter=tmp_path / "lora")


def test_shapes_that_do_not_fit_are_refused(parts: Path, tmp_path: Path) -> None:
    write_adapter(parts / "vicuna", tmp_path / "lora", modules_to_save=["lm_head"])
    with pytest.raises(UserError, match="does not fit the base model"):
        logits(parts / "phi3", adapter=tmp_path / "lora", template="phi3_chat")
    file = tmp_path / "lora/adapter_model.safetensors"
    state = load_file(file)
    name = next(n for n in state if "lm_head" in n and "lora" not in n)
    save_file(state | {name: torch.ones(7, 5)}, file)
    with pytest.raises(UserError, match=r"lm_head.weight does not fit the base model"):
        logits(parts / "vicuna", adapter=tmp_path / "lora")
    save_file(state | {name: torch.ones(450, 32)}, file)
    with pytest.raises(UserError, match="holds embeddings of 450 tokens at one end"):
        logits(parts / "vicuna", adapter=tmp_path / "lora")
    save_file({n: t for n, t in state.items() if n != name}, file)
    with pytest.raises(UserError, match="lacks 'lm_head', which its adapter_config.json lists"):
        logits(parts / "vicuna", adapter=tmp_path / "lora")


def test_quantized_bases_are_refused(parts: Path, tmp_path: Path) -> None:
    write_adapter(parts / "vicuna", tmp_path / "lora")
    shutil.copytree(parts / "vicuna", tmp_path / "gptq")
    edit_json(tmp_path / "gptq/config.json", quantization_config={"quant_method": "gptq"})
    with pytest.raises(UserError, match=r"holds quantized weights \(gptq\)"):
        logits(tmp_path / "gptq", adapter=tmp_path / "lora")


def test_a_folder_with_vision_is_no_adapter(parts: Path, tmp_path: Path) -> None:
    write_adapter(parts / "vicuna", tmp_path / "x/llm_adapter")
    assert torch.equal(logits(tmp_path / "x"), logits(tmp_path / "x/llm_adapter"))
    (tmp_path / "x/projector").mkdir()
    with pytest.raises(UserError, match="holds more than the LLM's adapter"):
        logits(parts / "vicuna", adapter=tmp_path / "x")


def test_peft_gives_the_same_logits_for_bin_files(parts: Path, tmp_path: Path) -> None:
    wanted = write_adapter(parts / "vicuna", tmp_path / "lora")
    file = tmp_path / "lora/adapter_model.safetensors"
    torch.save(load_file(file), tmp_path / "lora/adapter_model.bin")
    file.unlink()
    assert torch.allclose(logits(tmp_path / "lora"), wanted, atol=1e-5)
    base = AutoModelForCausalLM.from_pretrained(parts / "vicuna")
    peft = PeftModel.from_pretrained(base, tmp_path / "lora").eval()
    with torch.no_grad():
        assert torch.allclose(peft(input_ids=IDS).logits, wanted, atol=1e-5)


def test_a_folder_that_is_no_adapter(parts: Path) -> None:
    with pytest.raises(UserError, match="is no adapter: it has no adapter_config.json"):
        read_llm_adapter(parts / "vicuna")


def test_a_checkpoint_is_no_adapters_folder(tmp_path: Path) -> None:
    (tmp_path / "iter_3.pth").write_bytes(b"")
    (tmp_path / "iter_6.pth").mkdir()
    (tmp_path / "iter_6.pth/mp_rank_00_model_states.pt").write_bytes(b"")
    for name in ("iter_3.pth", "iter_6.pth"):
        with pytest.raises(UserError, match="is a checkpoint, which names its own base") as caught:
            read_llm_adapter(tmp_path / name)
        assert "--adapter-only" in caught.value.hint
