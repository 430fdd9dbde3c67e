"""The xtuner format: complete folders that transformers' own classes load part by part."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, CLIPVisionModel

from llava_tools import __version__
from llava_tools.converters.convert import convert
from llava_tools.converters.to_xtuner import image_processor
from llava_tools.model.projector import Projector
from llava_tools.model.source import open_source

Exported = Callable[[str, str], Path]


def test_every_part_is_there_also_what_was_frozen(
    runs: dict[str, Path], parts: Path, exported: Exported
) -> None:
    folder = exported("phi3", "xtuner")
    source = open_source(runs["phi3"])
    llm = load_file(folder / "model.safetensors")
    assert all(torch.equal(source.tensors[f"llm.{n}"].read(), t) for n, t in llm.items())
    tower = load_file(folder / "visual_encoder/model.safetensors")
    base = load_file(parts / "clip/model.safetensors")
    assert all(torch.equal(tower[f"vision_model.{name}"], t) for name, t in base.items())
    projector = load_file(folder / "projector/model.safetensors")
    assert set(projector) == {f"model.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}
    assert len(source.tensors) == len(llm) + len(tower) + len(projector)


def test_the_llm_keeps_its_architecture_and_loads(exported: Exported) -> None:
    model, report = AutoModelForCausalLM.from_pretrained(
        exported("phi3", "xtuner"), output_loading_info=True
    )
    assert type(model).__name__ == "Phi3ForCausalLM"
    assert not report["missing_keys"] and not report["unexpected_keys"]
    config = json.loads((exported("llama3", "xtuner") / "config.json").read_text())
    assert config["rope_theta"] == 500000.0 and config["torch_dtype"] == "float32"


def test_the_tower_loads_by_its_class(exported: Exported) -> None:
    _, report = CLIPVisionModel.from_pretrained(
        exported("phi3", "xtuner") / "visual_encoder", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]


def test_the_projector_loads_by_the_code_beside_it(exported: Exported) -> None:
    folder = exported("phi3", "xtuner") / "projector"
    theirs = AutoModel.from_pretrained(folder, trust_remote_code=True)
    ours = Projector.from_config(json.loads((folder / "config.json").read_text()))
    ours.load_state_dict(load_file(folder / "model.safetensors"))
    features = torch.randn(2, 4, 24)
    with torch.no_grad():
        assert torch.equal(theirs(features), ours(features))


def test_the_tokenizer_is_the_bases(parts: Path, exported: Exported) -> None:
    before = (parts / "phi3/tokenizer.json").read_bytes()
    assert (exported("phi3", "xtuner") / "tokenizer.json").read_bytes() == before
    AutoTokenizer.from_pretrained(exported("phi3", "xtuner"))


def test_notes_say_how_the_model_was_trained(exported: Exported) -> None:
    notes = json.loads((exported("phi3", "xtuner") / "llava_tools.json").read_text())
    assert notes == {
        "format": "xtuner",
        "prompt_template": "phi3_chat",
        "visual_select_layer": -2,
        "pad_image_to_square": True,
        "visual_encoder": None,
        "llava_tools_version": __version__,
    }


@pytest.mark.parametrize("to", ["xtuner", "hf"])
def test_a_text_model_becomes_a_plain_folder(parts: Path, tmp_path: Path, to: str) -> None:
    convert(parts / "phi3", tmp_path / "x", to, verify=True)
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "x", output_loading_info=True)
    assert type(model).__name__ == "Phi3ForCausalLM" and not report["missing_keys"]
    assert not (tmp_path / "x/projector").exists()
    wanted = load_file(parts / "phi3/model.safetensors")
    found = load_file(tmp_path / "x/model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_preprocessing_of_every_age_is_understood(runs: dict[str, Path]) -> None:
    source = open_source(runs["phi3"])
    old = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 28, "crop_size": 28}
    assert image_processor(replace(source, image_processor=old)) == {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 28},
        "crop_size": {"height": 28, "width": 28},
    }
    for name in ("CLIPImageProcessorFast", "CLIPImageProcessorPil", "CLIPImageProcessor"):
        new = replace(source, image_processor={"image_processor_type": name})
        assert image_processor(new)["image_processor_type"] == "CLIPImageProcessor"
    siglip = image_processor(open_source(runs["siglip"]))
    assert siglip["image_processor_type"] == "SiglipImageProcessor"
