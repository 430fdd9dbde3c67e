"""Weights in one file or in shards: found, mapped, and refused by name when broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llava_tools.errors import UserError
from llava_tools.model.weights import has_weights, read_json, read_tensors, read_weights


def shards(folder: Path, suffix: str = "safetensors") -> dict[str, torch.Tensor]:
    """Write two shards with an index; return the tensors."""
    tensors = {"a": torch.randn(2, 3), "b": torch.randn(4).half()}
    folder.mkdir(exist_ok=True)
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    places = {}
    for i, (name, tensor) in enumerate(tensors.items(), start=1):
        places[name] = f"{stem}-0000{i}-of-00002.{suffix}"
        if suffix == "safetensors":
            save_file({name: tensor}, folder / places[name])
        else:
            torch.save({name: tensor}, folder / places[name])
    index = {"metadata": {}, "weight_map": places}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return tensors


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_reads_shards_and_single_files(tmp_path: Path, suffix: str) -> None:
    wanted = shards(tmp_path / "many", suffix)
    single = tmp_path / "one"
    single.mkdir()
    if suffix == "safetensors":
        save_file(wanted, single / "model.safetensors")
    else:
        torch.save(wanted, single / "pytorch_model.bin")
    for folder in (tmp_path / "many", single):
        assert has_weights(folder)
        found = read_weights(folder)
        assert {name: (t.shape, t.dtype) for name, t in found.items()} == {
            name: (tuple(t.shape), t.dtype) for name, t in wanted.items()
        }
        assert all(torch.equal(found[name].read(), tensor) for name, tensor in wanted.items())


def test_a_folder_without_weights_is_an_error(tmp_path: Path) -> None:
    assert not has_weights(tmp_path)
    with pytest.raises(UserError, match="holds no weights"):
        read_weights(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    shards(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="No file '.*model-00002-of-00002.safetensors'"):
        read_weights(tmp_path)


def test_a_shard_that_lacks_what_the_index_promises_is_named(tmp_path: Path) -> None:
    shards(tmp_path)
    save_file({"c": torch.zeros(1)}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(UserError, match="00002.safetensors' lacks b, which the index promises"):
        read_weights(tmp_path)


def test_an_index_stays_in_its_folder(tmp_path: Path) -> None:
    shards(tmp_path / "x")
    index = tmp_path / "x/model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(UserError, match="points to '../secret.safetensors', outside its folder"):
        read_weights(tmp_path / "x")
    index.write_text("{}")
    with pytest.raises(UserError, match="has no weight_map"):
        read_weights(tmp_path / "x")


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.99])
def test_a_truncated_safetensors_file_is_named(tmp_path: Path, share: float) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.randn(500)}, file)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match="model.safetensors' is damaged or no safetensors file"):
        read_weights(tmp_path)


def test_a_huge_header_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    with pytest.raises(UserError, match="damaged"):
        read_weights(tmp_path)


def test_a_bin_with_more_than_tensors_is_an_error(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1), "epoch": 3}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds other things than tensors"):
        read_tensors(tmp_path / "pytorch_model.bin")


def test_a_missing_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="config.json' is missing"):
        read_json(tmp_path / "config.json")
