"""Tables of weight names: whole keys, both ways, nothing unknown, missing or left over."""

from __future__ import annotations

import pytest
import torch

from llava_tools.errors import UserError
from llava_tools.model.keymap import Row, convert, invert
from llava_tools.model.lazy import LazyTensor

TABLE = [
    Row("embed.weight", "e"),
    Row("layers.{n}.qkv", ("q.{n}", "k.{n}", "v.{n}"), sizes=(4, 2, 2)),
    Row("layers.{n}.bias", "bias.{n}", optional=True),
    Row("buffers.{*}", None),
    Row("tower.{*}", "vision.{*}"),
]


def lazy(*rows: int) -> dict[str, LazyTensor]:
    tensors = {"embed.weight": torch.randn(3, 2), "tower.a.b": torch.randn(2)}
    tensors |= {f"layers.{n}.qkv": torch.randn(count, 2) for n, count in enumerate(rows)}
    return {name: LazyTensor.of(tensor) for name, tensor in tensors.items()}


def test_splits_by_sizes_and_fuses_back_to_the_same_bits() -> None:
    before = lazy(8, 8)
    after = convert(before, TABLE, "x")
    assert [after[f"{part}.1"].shape for part in "qkv"] == [(4, 2), (2, 2), (2, 2)]
    assert torch.equal(after["k.0"].read(), before["layers.0.qkv"].read()[4:6])
    assert set(after) == {"e", "vision.a.b"} | {f"{part}.{n}" for part in "qkv" for n in (0, 1)}
    back = convert(after, invert(TABLE), "x")
    assert set(back) == set(before)
    for name, tensor in before.items():
        assert back[name].shape == tensor.shape
        assert torch.equal(back[name].read(), tensor.read())


def test_drops_what_a_row_drops_on_purpose() -> None:
    tensors = {"buffers.a": LazyTensor.of(torch.zeros(1)), "embed.weight": lazy()["embed.weight"]}
    assert list(convert(tensors, TABLE, "x")) == ["e"]
    assert all(row.left is not None for row in invert(TABLE))


def test_names_match_as_a_whole() -> None:
    for name in ("xembed.weight", "embed.weight2", "embedxweight", "layers.a.qkv"):
        with pytest.raises(UserError, match="unknown name"):
            convert({name: LazyTensor.of(torch.zeros(1))}, TABLE, "x")


def test_an_unknown_name_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(UserError) as error:
        convert({"layers.7.qvk": LazyTensor.of(torch.zeros(1))}, TABLE, "'model'")
    assert "'model' has a weight of unknown name: layers.7.qvk." in str(error.value)
    assert "layers.{n}.qkv" in error.value.hint


def test_a_fused_weight_of_other_size_is_an_error() -> None:
    with pytest.raises(UserError, match=r"layers.1.qkv has 9 rows.*4 \+ 2 \+ 2 = 8"):
        convert(lazy(8, 9), TABLE, "x")


def test_a_part_left_over_is_an_error() -> None:
    split = convert(lazy(8), TABLE, "x")
    del split["k.0"]
    with pytest.raises(UserError, match="k.0 is missing, while q.0 is there"):
        convert(split, invert(TABLE), "x")


def test_a_part_of_other_size_is_an_error() -> None:
    split = convert(lazy(8), TABLE, "x")
    split["k.0"] = LazyTensor.of(torch.zeros(3, 2))
    with pytest.raises(UserError, match="k.0 has 3 rows, but the config says 2"):
        convert(split, invert(TABLE), "x")


def test_two_names_for_one_weight_are_an_error() -> None:
    table = [Row("a", "x"), Row("b", "x")]
    tensors = {name: LazyTensor.of(torch.zeros(1)) for name in "ab"}
    with pytest.raises(UserError, match="one weight twice: a and b are both x"):
        convert(tensors, table, "m")


def test_with_a_layer_count_every_layer_must_be_whole() -> None:
    convert(lazy(8, 8), TABLE, "x", layers=2)
    with pytest.raises(UserError, match=r"x lacks a weight: layers.2.qkv"):
        convert(lazy(8, 8), TABLE, "x", layers=3)
    with pytest.raises(UserError, match=r"x has a weight too many: layers.1.qkv"):
        convert(lazy(8, 8), TABLE, "x", layers=1)
    without = lazy(8)
    del without["embed.weight"]
    with pytest.raises(UserError, match=r"x lacks a weight: embed.weight"):
        convert(without, TABLE, "x", layers=1)
