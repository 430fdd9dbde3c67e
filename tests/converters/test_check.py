"""`convert check`: equal models pass whatever their format, every difference is listed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_tools.cli.entry import run as command
from llava_tools.converters.check import check, tensor_sha256, verdict
from llava_tools.converters.convert import convert
from llava_tools.errors import UserError
from llava_tools.model.lazy import LazyTensor
from llava_tools.model.source import open_source

Exported = Callable[[str, str], Path]


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("phi3", "xtuner", "hf"),  # as Llamas
        ("llama3", "llava", "xtuner"),
        ("vicuna", "hf", "llava"),
        ("siglip", "xtuner", "hf"),
    ],
)
def test_a_model_equals_itself_in_every_format(
    exported: Exported, name: str, first: str, second: str
) -> None:
    record = check(exported(name, first), exported(name, second))
    assert record["passed"] and record["logits_equal"] and len(record["greedy_tokens"]) == 8
    assert record["missing"] == record["extra"] == record["changed"] == []
    assert record["equal"] == len(record["sha256"]) > 40
    assert {"torch", "transformers"} <= set(record["versions"])
    verdict(record)


def test_a_checkpoint_equals_its_export_as_it_was_rounded(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    convert(runs["vicuna"], tmp_path / "x", "xtuner")
    record = check(runs["vicuna"], tmp_path / "x", str(runs["vicuna"].parent / "config.py"))
    assert record["passed"] and record["other_dtype"] == record["equal"]
    name = "llm.model.norm.weight"
    found = open_source(tmp_path / "x").tensors[name]
    assert record["sha256"][name] == sha256(found.read().numpy().tobytes()).hexdigest()


@pytest.fixture
def other(exported: Exported, tmp_path: Path) -> Path:
    """A copy of a model."""
    shutil.copytree(exported("vicuna", "xtuner"), tmp_path / "other")
    return tmp_path / "other"


def test_a_changed_value_is_named(exported: Exported, other: Path) -> None:
    file = other / "projector/model.safetensors"
    state = load_file(file)
    state["model.2.bias"][3] += 1e-6
    save_file(state, file)
    record = check(exported("vicuna", "xtuner"), other)
    assert not record["passed"] and record["changed"] == ["projector.model.2.bias"]
    assert "logits_equal" not in record
    with pytest.raises(UserError, match=r"1 changed; for example projector.model.2.bias"):
        verdict(record)


def test_missing_and_extra_tensors_are_named(exported: Exported, other: Path) -> None:
    file = other / "model.safetensors"
    state = load_file(file)
    state["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(32)
    save_file(state, file)
    name = "llm.model.layers.0.self_attn.q_proj.bias"
    assert check(exported("vicuna", "xtuner"), other)["extra"] == [name]
    assert check(other, exported("vicuna", "xtuner"))["missing"] == [name]


def test_a_wrong_config_shows_in_the_logits(exported: Exported, other: Path) -> None:
    config = json.loads((other / "config.json").read_text())
    config["rope_theta"] = config["rope_parameters"]["rope_theta"] = 3.0
    (other / "config.json").write_text(json.dumps(config))
    record = check(exported("vicuna", "xtuner"), other)
    assert not record["passed"] and not record["changed"] and not record["logits_equal"]
    with pytest.raises(UserError, match="differ .other logits."):
        verdict(record)
    assert check(exported("vicuna", "xtuner"), other, logits=False)["passed"]


def test_a_grown_vocabulary_on_the_wrong_side_is_called_so(exported: Exported, other: Path) -> None:
    weights = load_file(other / "model.safetensors")
    names = ["model.embed_tokens.weight", "lm_head.weight"]
    grown = {name: torch.cat([weights[name], weights[name][:8]]) for name in names}
    save_file({**weights, **grown}, other / "model.safetensors", {"format": "pt"})
    config = json.loads((other / "config.json").read_text())
    config["vocab_size"] += 8
    (other / "config.json").write_text(json.dumps(config))
    bare = exported("vicuna", "xtuner")
    assert len(check(bare, other, logits=False)["more_rows"]) == 2
    record = check(other, bare, logits=False)
    assert record["changed"] == record["fewer_rows"] and len(record["changed"]) == 2
    with pytest.raises(UserError, match=r"(?s)changed.*more rows of vocabulary.*compare B with A"):
        verdict(record)


def test_the_command_fails_when_they_differ(
    exported: Exported, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same, bare = str(exported("vicuna", "xtuner")), "--no-logits"
    assert command(["convert", "check", same, str(other), bare]) == 0
    assert json.loads(capsys.readouterr().out)["passed"]
    file = other / "projector/model.safetensors"
    save_file({name: -tensor for name, tensor in load_file(file).items()}, file)
    assert command(["convert", "check", same, str(other), bare]) == 2
    assert len(json.loads(capsys.readouterr().out)["changed"]) == 4


def test_the_certificate_of_a_conversion_has_a_digest_a_tensor(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    convert(runs["phi3"], tmp_path / "x", "xtuner", verify=True)
    record = json.loads((tmp_path / "x/conversion.json").read_text())
    tensors = load_file(tmp_path / "x/projector/model.safetensors")
    for name, tensor in tensors.items():
        assert record["tensors"][f"projector/{name}"] == tensor_sha256(LazyTensor.of(tensor))
    assert record["missing"] == record["extra"] == record["changed"] == []
