"""LoRA kept apart: peft loads what we write, we merge what peft writes, nothing is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CLIPVisionModel

from llava_tools.cli.entry import run as command
from llava_tools.converters.convert import convert
from llava_tools.converters.merge import merge, split
from llava_tools.errors import UserError
from llava_tools.model.adapters import read_adapter
from llava_tools.model.base_mark import base_mark, pack_mark
from llava_tools.model.parts import read_llm
from llava_tools.model.source import open_source
from llava_tools.model.weights import read_weights
from tests.model.checkpoints import edit_json, make_run
from tests.model.test_lora import LORA, adapt, put

CLASSES: dict[str, Any] = {"llm": AutoModelForCausalLM, "visual_encoder": CLIPVisionModel}
BASES = {"llm": "phi3", "visual_encoder": "clip"}


@pytest.fixture
def run(parts: Path, tmp_path: Path) -> Path:
    """A run with LoRA in the LLM (packed in 4 bits then: QLoRA) and in the tower."""
    run = make_run(
        tmp_path / "run",
        parts,
        trains=(),
        llm_lora=LORA,
        llm_quantization={"bits": 4},
        visual_encoder_lora=LORA,
    )
    for part, base in BASES.items():
        adapter, _ = adapt(part, CLASSES[part].from_pretrained(parts / base))
        start = "visual_encoder.vision_model." if part == "visual_encoder" else "llm."
        put(run, {start + name: tensor for name, tensor in adapter.items()})
    return run


def test_peft_loads_what_is_written(run: Path, parts: Path, tmp_path: Path) -> None:
    convert(run, tmp_path / "x", "xtuner", dtype="fp32", adapter_only=True)
    names = {path.name for path in (tmp_path / "x").iterdir()}
    assert names == {"llm_adapter", "visual_encoder_adapter", "projector", "llava_tools.json"}
    whole = open_source(run).tensors
    for part, base in BASES.items():
        model = CLASSES[part].from_pretrained(parts / base)
        adapted = PeftModel.from_pretrained(model, tmp_path / "x" / f"{part}_adapter")
        prefix = "llm." if part == "llm" else "visual_encoder.vision_model."
        for name, tensor in adapted.merge_and_unload().state_dict().items():
            assert torch.allclose(whole[prefix + name].read(), tensor, atol=1e-6), name


def test_there_and_back_gives_the_same_bits(run: Path, tmp_path: Path) -> None:
    """An adapter of a quantized base is merged into the unquantized one, apart or not."""
    convert(run, tmp_path / "x", "xtuner", dtype="keep", adapter_only=True)
    found, wanted = open_source(tmp_path / "x"), open_source(run)
    assert set(found.tensors) == set(wanted.tensors)
    for name, tensor in wanted.tensors.items():
        assert torch.equal(found.tensors[name].read(), tensor.read()), name
    assert found.llm_config == wanted.llm_config
    convert(tmp_path / "x", tmp_path / "llava", "hf", verify=True)
    config = str(run.parent / "config.py")  # in place of the base that the folder names
    edit_json(tmp_path / "x/llm_adapter/adapter_config.json", base_model_name_or_path=None)
    edit_json(tmp_path / "x/llava_tools.json", base=None)
    with pytest.raises(UserError, match="which models it started from is unknown"):
        open_source(tmp_path / "x")
    assert set(open_source(tmp_path / "x", config).tensors) == set(wanted.tensors)


def test_a_part_that_was_trained_whole_lies_beside(parts: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", parts, visual_encoder_lora=LORA)
    adapter, _ = adapt("visual_encoder", CLIPVisionModel.from_pretrained(parts / "clip"))
    put(run, {f"visual_encoder.{name}": tensor for name, tensor in adapter.items()})
    convert(run, tmp_path / "x", "xtuner", dtype="keep", adapter_only=True)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "x").config.model_type == "phi3"
    assert not (tmp_path / "x/visual_encoder").exists()
    found, wanted = open_source(tmp_path / "x").tensors, open_source(run).tensors
    assert all(torch.equal(found[name].read(), tensor.read()) for name, tensor in wanted.items())


def test_adapter_only_needs_an_adapter(parts: Path, run: Path, tmp_path: Path) -> None:
    full = make_run(tmp_path / "full", parts)
    for source, to, message in (
        (full, "xtuner", "holds no adapter: it was trained without LoRA"),
        (parts / "phi3", "xtuner", "is no checkpoint; what was trained of it is not known"),
        (run, "hf", "The hf format has no place for adapters"),
    ):
        with pytest.raises(UserError, match=message):
            convert(source, tmp_path / "x", to, adapter_only=True)
    assert not (tmp_path / "x").exists()


def saved(parts: Path, part: str, folder: Path, **options: Any) -> Any:
    """Let peft write an adapter, and return the model that it makes."""
    torch.manual_seed(3)
    targets = ["qkv_proj", "down_proj"] if part == "llm" else ["q_proj", "fc1"]
    config = LoraConfig(r=4, lora_alpha=6, target_modules=targets, **options)
    model = get_peft_model(CLASSES[part].from_pretrained(parts / BASES[part]), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return model.merge_and_unload()


@pytest.mark.parametrize("part", BASES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"down_proj": 2, "fc1": 2}, "alpha_pattern": {"down_proj": 3, "fc1": 3}},
    ],
    ids=str,
)
def test_merge_does_what_peft_does(
    parts: Path, tmp_path: Path, part: str, options: dict[str, Any]
) -> None:
    wanted = saved(parts, part, tmp_path / "adapter", **options).half().state_dict()
    is_clip = part != "llm"
    merge(str(parts / BASES[part]), str(tmp_path / "adapter"), tmp_path / "out", is_clip)
    found = CLASSES[part].from_pretrained(tmp_path / "out").state_dict()
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_old_names_of_a_tower_are_known(parts: Path, tmp_path: Path) -> None:
    saved(parts, "visual_encoder", tmp_path / "adapter")
    file = tmp_path / "adapter/adapter_model.safetensors"
    state = load_file(file)
    old = "base_model.model.vision_model."
    save_file({n.replace("base_model.model.", old): t for n, t in state.items()}, file)
    new = read_adapter(tmp_path / "adapter", "visual_encoder").factors
    assert len(new) == 6 and all(set(pair) == {"A", "B"} for pair in new.values())
    pickled = {n.replace("base_model.model.", old): t for n, t in state.items()}
    torch.save(pickled, tmp_path / "adapter/adapter_model.bin")
    file.unlink()
    assert set(read_adapter(tmp_path / "adapter", "visual_encoder").factors) == set(new)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "its kind is IA3"),
        ({"use_dora": True}, r"it scales directions \(DoRA\)"),
        ({"modules_to_save": 7}, "has no list of names as its modules_to_save"),
        ({"modules_to_save": ["lm_head"]}, "lacks 'lm_head', which its adapter_config.json lists"),
    ],
)
def test_other_adapters_are_refused(
    parts: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    saved(parts, "llm", tmp_path / "adapter")
    edit_json(tmp_path / "adapter/adapter_config.json", **changes)
    with pytest.raises(UserError, match=message):
        merge(str(parts / "phi3"), str(tmp_path / "adapter"), tmp_path / "out")


def test_damaged_and_foreign_adapters_are_named(parts: Path, tmp_path: Path) -> None:
    saved(parts, "llm", tmp_path / "adapter")
    with pytest.raises(UserError, match="does not fit the base model"):
        merge(str(parts / "vicuna"), str(tmp_path / "adapter"), tmp_path / "out")
    wrong = [{"lora_alpha": "much"}, {"alpha_pattern": {"(": 1}}, {"alpha_pattern": ["a"]}]
    for changes in wrong:
        shutil.copytree(tmp_path / "adapter", tmp_path / "wrong", dirs_exist_ok=True)
        edit_json(tmp_path / "wrong/adapter_config.json", **changes)
        with pytest.raises(UserError, match="lora_alpha or alpha_pattern of a wrong kind"):
            merge(str(parts / "phi3"), str(tmp_path / "wrong"), tmp_path / "out")
    file = tmp_path / "adapter/adapter_model.safetensors"
    state = load_file(file)
    for held, message in (
        (dict(list(state.items())[1:]), "only half of the adapter"),
        ({**state, "base_model.model.lm_head.weight": torch.ones(1)}, "cannot be merged: base_m"),
        ({}, "holds no weights"),
    ):
        save_file(held, file)
        with pytest.raises(UserError, match=message):
            merge(str(parts / "phi3"), str(tmp_path / "adapter"), tmp_path / "out")
    file.unlink()
    with pytest.raises(UserError, match="holds no adapter_model.safetensors"):
        merge(str(parts / "phi3"), str(tmp_path / "adapter"), tmp_path / "out")


def test_a_quantized_base_is_refused(parts: Path, tmp_path: Path) -> None:
    saved(parts, "llm", tmp_path / "adapter")
    shutil.copytree(parts / "phi3", tmp_path / "packed")
    edit_json(tmp_path / "packed/config.json", quantization_config={"load_in_4bit": True})
    with pytest.raises(UserError, match="holds quantized weights"):
        merge(str(tmp_path / "packed"), str(tmp_path / "adapter"), tmp_path / "out")


def test_split_puts_every_tensor_in_a_file_of_its_own(parts: Path, tmp_path: Path) -> None:
    report = split(parts / "phi3", tmp_path / "x")
    files = list((tmp_path / "x").glob("model-*.safetensors"))
    wanted = read_llm(parts / "phi3").tensors
    assert len(files) == report["tensors"] == len(wanted)
    assert all(len(load_file(file)) == 1 for file in files)
    assert json.loads((tmp_path / "x/config.json").read_text())["model_type"] == "phi3"
    assert (tmp_path / "x/tokenizer.json").is_file()
    found, kept = read_weights(tmp_path / "x"), read_weights(parts / "phi3")
    assert all(torch.equal(found[n].read(), t.read()) for n, t in kept.items())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "x")
    assert model.config.model_type == "phi3"


def test_split_takes_all_of_a_llava_along(run: Path, tmp_path: Path) -> None:
    convert(run, tmp_path / "x", "xtuner", dtype="fp32")
    report = split(tmp_path / "x", tmp_path / "y")
    found, wanted = open_source(tmp_path / "y"), open_source(tmp_path / "x")
    assert set(found.tensors) == set(wanted.tensors) and len(wanted.tensors) == report["tensors"]
    assert all(torch.equal(found.tensors[n].read(), t.read()) for n, t in wanted.tensors.items())
    assert all(len(load_file(file)) == 1 for file in (tmp_path / "y").rglob("*.safetensors"))
    assert (found.prompt_template, found.image_processor) == ("phi3_chat", wanted.image_processor)
    (tmp_path / "x/images").mkdir()
    (tmp_path / "x/images/cat.txt").write_text("a cat")
    (tmp_path / "x/conversion.json").write_text("{}")  # tells the hashes of other files
    split(tmp_path / "x", tmp_path / "y", overwrite=True)
    assert (tmp_path / "y/images/cat.txt").read_text() == "a cat"
    assert not (tmp_path / "y/conversion.json").exists()


@pytest.mark.parametrize("part", BASES)
def test_an_adapter_of_another_base_is_refused_or_told(
    run: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    """By shapes where they differ, else by values; of foreign files by the base's name."""
    convert(run, tmp_path / "x", "xtuner", adapter_only=True)
    adapter, flags = tmp_path / "x" / f"{part}_adapter", ["--is-clip"] * (part != "llm")
    alike = shutil.copytree(parts / BASES[part], tmp_path / "alike")
    state = load_file(alike / "model.safetensors")
    save_file({n: t + 0.1 for n, t in state.items()}, alike / "model.safetensors", {"format": "pt"})
    others = {alike: "was trained on other weights than these"}
    others |= {
        parts / n: "does not fit the base model" for n in ("vicuna", "qwen2") if part == "llm"
    }
    if part != "llm":  # of the same sizes as the CLIP
        others[parts / "siglip"] = "was trained on other weights than these"
    for base, message in others.items():
        out = [str(tmp_path / "out"), *flags]
        assert command(["convert", "merge", str(base), str(adapter), *out]) == 2
        said = capsys.readouterr().err
        assert message in said and str(parts / BASES[part]) in said
    (adapter / "llava_tools.json").write_text("{}")  # as peft's own: it tells no values
    (tmp_path / "x/llava_tools.json").write_text("{}")
    assert command(["convert", "merge", str(alike), str(adapter), *out]) == 0
    assert "only shapes tell whether it fits" in capsys.readouterr().err


def test_a_checkpoint_of_another_base_is_refused(run: Path, parts: Path, tmp_path: Path) -> None:
    """Exports of LoRA and QLoRA alike: by shapes, and by the values that training marked."""
    for name in ("vicuna", "llama3", "qwen2"):
        with pytest.raises(UserError, match="adapter of llm.* does not fit the base model"):
            base = f"llm_name_or_path={parts / name}"
            convert(run, tmp_path / "x", "hf", cfg_options=[base])
    mark = base_mark(read_llm(parts / "phi3").tensors, ["llm.model.layers.0.mlp.down_proj.weight"])
    saved = torch.load(run, weights_only=True)
    saved["meta"] |= pack_mark(mark)
    torch.save(saved, run)
    convert(run, tmp_path / "good", "hf")
    alike = shutil.copytree(parts / "phi3", tmp_path / "alike")
    state = load_file(alike / "model.safetensors")
    save_file({n: t + 0.1 for n, t in state.items()}, alike / "model.safetensors", {"format": "pt"})
    for to in ("xtuner", "llava", "hf"):
        with pytest.raises(UserError, match="was trained on other weights than these") as caught:
            convert(run, tmp_path / "x", to, cfg_options=[f"llm_name_or_path={alike}"])
        assert str(alike) in caught.value.hint
    assert not (tmp_path / "x").exists()


def test_the_commands_are_xtuners(
    run: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, y, z, phi = (str(tmp_path / name) for name in ("x", "y", "z", "phi"))
    assert command(["convert", str(run), x, "--to", "xtuner", "--adapter-only"]) == 0
    assert (tmp_path / "x/llm_adapter").is_dir()
    base = str(parts / "phi3")
    assert command(["convert", "merge", base, f"{x}/llm_adapter", y, "--device", "auto"]) == 0
    tower = [str(parts / "clip"), f"{x}/visual_encoder_adapter", z]
    assert command(["convert", "merge", *tower, "--is-clip", "--max-shard-size", "1MB"]) == 0
    assert command(["convert", y, f"{y}-llama", "--to", "hf", "--llama"]) == 0
    assert (
        command(["convert", "llama_to_phi", "--llama_path", f"{y}-llama", "--save_path", phi]) == 0
    )
    assert command(["convert", "check", y, phi]) == 0
    assert command(["convert", "split", phi, f"{phi}-split"]) == 0
    assert command(["convert", "check", y, f"{phi}-split", "--no-logits"]) == 0
    both = ["convert", y, f"{y}-both", "--to", "hf", "--llama", "--phi3"]
    assert command(both) == 2
    assert "exclude each other" in capsys.readouterr().err
