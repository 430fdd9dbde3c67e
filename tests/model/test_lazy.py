"""Lazy tensors: every way to read a part gives what reading the whole gives."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from llava_tools.errors import UserError
from llava_tools.model.file_bytes import FileBytes
from llava_tools.model.lazy import LazyTensor
from llava_tools.model.safetensors_file import read_safetensors

SHAPES = st.lists(st.integers(0, 5), min_size=1, max_size=3).map(tuple)


def stored(tensor: torch.Tensor) -> LazyTensor:
    flat = tensor.reshape(-1)
    return LazyTensor.stored(tuple(tensor.shape), tensor.dtype, lambda a, b: flat[a:b])


def whole(tensor: torch.Tensor) -> LazyTensor:
    return LazyTensor.of(tensor)


@given(SHAPES, st.integers(1, 40), st.sampled_from([stored, whole]))
def test_blocks_are_the_values_in_order(shape: tuple[int, ...], nbytes: int, kind) -> None:  # type: ignore[no-untyped-def]
    tensor = torch.randn(shape)
    blocks = list(kind(tensor).blocks(nbytes))
    assert all(block.nbytes <= max(nbytes, 4) for block in blocks)
    found = torch.cat([*blocks, torch.empty(0)])
    assert torch.equal(found, tensor.reshape(-1))


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=4), st.data())
@settings(max_examples=60)
def test_rows_of_a_chain_cast(parts: list[tuple[int, bool]], data: st.DataObject) -> None:
    tensors = [torch.randn(rows, 3) for rows, _ in parts]
    kinds = [stored if in_pieces else whole for _, in_pieces in parts]
    lazy = LazyTensor.concat([kind(tensor) for kind, tensor in zip(kinds, tensors, strict=True)])
    together = torch.cat(tensors)
    start = data.draw(st.integers(0, len(together)))
    stop = data.draw(st.integers(start, len(together)))
    found = lazy.rows(start, stop).to(torch.float16)
    wanted = together[start:stop].half()
    assert found.shape == wanted.shape and torch.equal(found.read(), wanted)
    assert torch.equal(torch.cat([*found.blocks(8), torch.empty(0).half()]), wanted.reshape(-1))


def test_a_chain_leaves_out_padding() -> None:
    lazy = LazyTensor.chain((2, 2), [stored(torch.arange(3)), stored(torch.arange(9))])
    assert lazy.read().tolist() == [[0, 1], [2, 0]]


def test_reading_needs_the_memory_of_a_block_alone(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.arange(1000.0), "b": torch.ones(10, 10).bfloat16()}, file)
    found = read_safetensors(file)
    largest = 0
    for tensor in found.values():
        for block in tensor.rows(0, tensor.shape[0]).to(torch.float64).blocks(256):
            largest = max(largest, block.nbytes)
    assert largest == 256
    assert torch.equal(found["b"].read(), torch.ones(10, 10).bfloat16())


def test_a_file_that_ends_early_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(10))
    source = FileBytes(path)
    assert source.read(2, 8).tolist() == [0] * 8
    with pytest.raises(UserError, match="became shorter while it was read"):
        source.read(5, 6)


def test_a_disk_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(bytes(10))
    source = FileBytes(tmp_path / "file")

    def fail(*given: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(UserError, match="file' cannot be read at byte 2: Input/output error"):
        source.read(2, 8)
