"""Writing: the same bits, in shards, one dtype, compared."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from llava_tools.converters.folder import new_folder
from llava_tools.converters.writer import Writer, export_cast, parse_size
from llava_tools.errors import UserError
from llava_tools.model.lazy import LazyTensor

TENSORS = {
    "a": torch.randn(10, 8),
    "half": torch.randn(6).half(),
    "view": torch.randn(8, 4).t(),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
    "numbers": torch.arange(5),
}


def lazy(tensors: dict[str, torch.Tensor] | None = None) -> dict[str, LazyTensor]:
    return {n: LazyTensor.of(t) for n, t in (TENSORS if tensors is None else tensors).items()}


def writer(folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Writer:
    folder.mkdir(exist_ok=True)
    return Writer(folder, folder, dtype, **options)


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GB", 2 * 10**9), ("500 MB", 5 * 10**8), ("1.5gib", 1610612736), ("64", 64)],
)
def test_sizes_are_read_as_hugging_face_does(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "2 XB", "1e9"])
def test_a_wrong_size_is_an_error(text: str) -> None:
    with pytest.raises(UserError, match="is no size"):
        parse_size(text)


def test_one_file_holds_the_same_bits_and_one_dtype(tmp_path: Path) -> None:
    out = writer(tmp_path / "x", torch.bfloat16)
    out.weights(lazy())
    out.compare()
    found = load_file(tmp_path / "x/model.safetensors")
    for name, tensor in TENSORS.items():
        wanted = tensor.bfloat16() if tensor.is_floating_point() else tensor
        assert found[name].dtype == wanted.dtype and torch.equal(found[name], wanted)
    with safe_open(tmp_path / "x/model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_shards_stay_under_the_limit_and_the_index_finds_them(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.randn(10) for i in range(7)} | {"big": torch.randn(100)}
    out = writer(tmp_path / "x", max_shard_bytes=100)
    out.weights(lazy(tensors))
    out.compare()
    index = json.loads((tmp_path / "x/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(4 * t.numel() for t in tensors.values())
    assert set(index["weight_map"]) == set(tensors)
    for name, file in index["weight_map"].items():
        held = load_file(tmp_path / "x" / file)
        assert torch.equal(held[name], tensors[name])
        assert len(held) == 1 or sum(4 * t.numel() for t in held.values()) <= 100
    names = sorted(file.name for file in (tmp_path / "x").glob("*.safetensors"))
    assert names == [f"model-{i:05d}-of-00005.safetensors" for i in range(1, 6)]


def test_progress_counts_every_byte_written_and_compared(tmp_path: Path) -> None:
    counts: list[int] = []
    out = writer(tmp_path / "x", advance=counts.append)
    out.weights(lazy())
    total = sum(counts)
    out.compare()
    assert (
        total == sum(t.to(torch.float32).nbytes for n, t in TENSORS.items() if n != "numbers") + 40
    )
    assert sum(counts) == 2 * total


@pytest.mark.parametrize("fault", ["bit", "name", "shape"])
def test_what_did_not_arrive_unchanged_is_found(tmp_path: Path, fault: str) -> None:
    out = writer(tmp_path / "x")
    out.weights(lazy({"a": torch.ones(2, 3)}))
    file = tmp_path / "x/model.safetensors"
    data = bytearray(file.read_bytes())
    if fault == "bit":
        data[-1] ^= 1
    old, new = {"name": (b'"a"', b'"b"'), "shape": (b"[2,3]", b"[3,2]")}.get(fault, (b"", b""))
    file.write_bytes(bytes(data).replace(old, new) if old else bytes(data))
    with pytest.raises(UserError, match="a did not arrive unchanged"):
        out.compare()


def test_equality_is_of_bits_also_for_nan(tmp_path: Path) -> None:
    out = writer(tmp_path / "x")
    out.weights(lazy({"a": torch.tensor([float("nan"), -0.0])}))
    out.compare()


def test_a_value_that_overflows_is_an_error_naming_the_weight() -> None:
    big = LazyTensor.of(torch.tensor([1.0, 7e4]))
    assert torch.equal(export_cast("w", big, torch.bfloat16).read(), big.read().bfloat16())
    with pytest.raises(UserError, match="w has values up to 7e.04, which overflow float16"):
        export_cast("w", big, torch.float16).read()
    broken = LazyTensor.of(torch.tensor([float("inf")]))
    assert export_cast("w", broken, torch.float16).read().isinf().all()  # as it was


def test_room_for_the_weights_is_asked_for_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def ask(file: int, start: int, size: int) -> None:
        asked.append(size)
        raise OSError(errno.EOPNOTSUPP, "not on this file system")

    monkeypatch.setattr(os, "posix_fallocate", ask)
    writer(tmp_path / "x").weights(lazy())
    file = tmp_path / "x/model.safetensors"
    assert asked == [file.stat().st_size]
    assert set(load_file(file)) == set(TENSORS)
    monkeypatch.delattr(os, "posix_fallocate")  # as on macOS
    writer(tmp_path / "y").weights(lazy())
    assert (tmp_path / "y/model.safetensors").read_bytes() == file.read_bytes()


def test_a_limit_of_file_sizes_is_told(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with (
            pytest.raises(UserError, match="File too large. Nothing was written") as caught,
            new_folder(tmp_path / "x") as folder,
        ):
            Writer(folder, folder, torch.float32).weights(lazy({"a": torch.ones(10_000)}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "ulimit -f" in caught.value.hint and list(tmp_path.iterdir()) == []
