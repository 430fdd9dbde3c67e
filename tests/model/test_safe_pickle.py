"""The checkpoint reader: the same tensors as torch.load, and no code of the file's choosing."""

from __future__ import annotations

import io
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from llava_tools.errors import UserError
from llava_tools.model.lazy import LazyTensor
from llava_tools.model.safe_pickle import Inert, read_pickle

KINDS = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32]
KINDS += [torch.int16, torch.int8, torch.uint8, torch.bool, torch.uint16, torch.float8_e4m3fn]


@pytest.mark.parametrize("kind", KINDS)
def test_reads_every_dtype_as_torch_does(tmp_path: Path, kind: torch.dtype) -> None:
    wanted = torch.arange(24).reshape(4, 6).to(kind)
    torch.save({"a": wanted}, tmp_path / "x.pth")
    found = read_pickle(tmp_path / "x.pth")["a"]
    assert (found.shape, found.dtype) == ((4, 6), kind)
    assert torch.equal(found.read().view(torch.uint8), wanted.view(torch.uint8))


def test_reads_views_parameters_and_containers(tmp_path: Path) -> None:
    base = torch.randn(5, 7)
    saved = {
        "view": base[1:4, ::2].t(),
        "parameter": torch.nn.Parameter(base),
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 4),
        "ordered": OrderedDict(a=[1, 2.5, "x", None, True], size=torch.Size([2, 3])),
        "bytes": b"\x00\xff",
    }
    torch.save(saved, tmp_path / "x.pth")
    found = read_pickle(tmp_path / "x.pth")
    for name in ("view", "parameter", "scalar", "empty"):
        assert torch.equal(found[name].read(), saved[name].detach())  # type: ignore[attr-defined]
    assert found["ordered"] == {"a": [1, 2.5, "x", None, True], "size": (2, 3)}
    assert found["bytes"] == b"\x00\xff"


def test_a_tensor_is_not_read_before_it_is_asked_for(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1 << 20), "b": torch.ones(4)}, tmp_path / "x.pth")
    found = read_pickle(tmp_path / "x.pth")
    data = bytearray((tmp_path / "x.pth").read_bytes())
    place = data.index(torch.ones(4).numpy().tobytes())
    data[place : place + 4] = torch.tensor([7.0]).numpy().tobytes()
    with (tmp_path / "x.pth").open("r+b") as file:  # in place: the map shows what the file holds
        file.write(data)
    assert found["a"].read()[0] == 7.0
    assert isinstance(found["a"], LazyTensor)
    assert found["a"].nbytes == 4 << 20


def test_reading_does_not_write_to_the_file(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(4)}, tmp_path / "x.pth")
    before = (tmp_path / "x.pth").read_bytes()
    read_pickle(tmp_path / "x.pth")["a"].read().zero_()
    assert (tmp_path / "x.pth").read_bytes() == before


def test_reads_the_format_before_torch_1_6(tmp_path: Path) -> None:
    saved = {"state_dict": OrderedDict(a=torch.randn(3)), "list": [torch.ones(2)]}
    torch.save(saved, tmp_path / "x.bin", _use_new_zipfile_serialization=False)
    found = read_pickle(tmp_path / "x.bin")
    assert torch.equal(found["state_dict"]["a"].read(), saved["state_dict"]["a"])  # type: ignore[call-overload]
    assert torch.equal(found["list"][0].read(), torch.ones(2))


def test_passes_over_what_xtuner_saves_beside_the_weights(tmp_path: Path) -> None:
    module = ModuleType("mmengine_like")
    exec(
        "class HistoryBuffer:\n"
        "    def __init__(self): self.values = None\n"
        "    def mean(self): return 0\n",
        module.__dict__,
    )
    sys.modules["mmengine_like"] = module
    try:
        buffer = module.HistoryBuffer()
        buffer.values = np.arange(5.0)
        buffer.method = buffer.mean  # pickled as getattr(HistoryBuffer, "mean")
        saved = {
            "hub": {"loss": buffer, "n": np.float64(2.5)},
            "w": torch.ones(3),
            "meta": {"i": 6},
        }
        torch.save(saved, tmp_path / "x.pth")
    finally:
        del sys.modules["mmengine_like"]
    found = read_pickle(tmp_path / "x.pth")
    assert isinstance(found["hub"]["loss"], Inert)
    assert found["meta"] == {"i": 6}
    assert torch.equal(found["w"].read(), torch.ones(3))


def checkpoint(path: Path, program: bytes, records: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        for name, data in (records or {}).items():
            archive.writestr(f"archive/{name}", data)
    return path


REFUSED = {
    "EXT1": b"\x80\x02\x82\x01.",
    "INST": b"(ios\nsystem\n.",
    "BYTEARRAY8": b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x00.",
    "memo number": b"\x80\x02]r\xff\xff\xff\x7f.",
    "truncated": b"\x80\x02]q\x00(",
    "not a pickle": b"hello",
    "empty": b"",
}


@pytest.mark.parametrize("name", REFUSED)
def test_programs_that_no_checkpoint_needs_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="x.pth' is damaged or no PyTorch checkpoint"):
        read_pickle(checkpoint(tmp_path / "x.pth", REFUSED[name]))


def tensor_program(size: int, offset: int = 0, stride: int = 1, key: str = "0") -> bytes:
    """Return the pickle of one float tensor with `size` elements in record `key`."""

    def number(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x00" + key.encode()
    storage += b"X\x03\x00\x00\x00cpu" + number(size) + b"tQ"
    rest = number(offset) + b"(" + number(size) + b"t(" + number(stride) + b"t\x89}t"
    return (
        b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"Rs."
    )


def test_a_hand_made_tensor_is_read(tmp_path: Path) -> None:
    data = torch.arange(4.0)
    path = checkpoint(tmp_path / "x.pth", tensor_program(4), {"data/0": data.numpy().tobytes()})
    assert torch.equal(read_pickle(path)["a"].read(), data)


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (tensor_program(5), "reaches beyond its record"),
        (tensor_program(2, offset=3), "reaches beyond its record"),
        (tensor_program(2, stride=9), "reaches beyond its record"),
        (tensor_program(2, offset=-1), "impossible shape"),
        (tensor_program(-2), "impossible shape"),
        (tensor_program(4, key="7"), "lacks the record data/7"),
    ],
)
def test_tensors_outside_of_their_records_are_refused(
    tmp_path: Path, program: bytes, why: str
) -> None:
    path = checkpoint(tmp_path / "x.pth", program, {"data/0": bytes(16)})
    with pytest.raises(UserError, match=why):
        read_pickle(path)


def test_a_compressed_record_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", tensor_program(4))
        archive.writestr("archive/data/0", bytes(16))
    with pytest.raises(UserError, match="compressed or encrypted"):
        read_pickle(tmp_path / "x.pth")


def test_a_zip_archive_of_another_kind_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UserError, match="a zip archive, but no PyTorch checkpoint"):
        read_pickle(tmp_path / "x.pth")


def test_a_big_endian_file_is_refused(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "x.pth", tensor_program(4), {"byteorder": b"big"})
    with pytest.raises(UserError, match="big-endian"):
        read_pickle(path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, share: float) -> None:
    torch.save({"a": torch.randn(1000)}, tmp_path / "x.pth")
    whole = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match="x.pth' is damaged or no PyTorch checkpoint"):
        read_pickle(tmp_path / "x.pth")


def test_a_flipped_bit_in_the_program_is_refused(tmp_path: Path) -> None:
    torch.save({"name": torch.randn(10)}, tmp_path / "x.pth")
    data = bytearray((tmp_path / "x.pth").read_bytes())
    data[data.index(b"name")] ^= 1
    (tmp_path / "x.pth").write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        read_pickle(tmp_path / "x.pth")


def test_foreign_files_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_text("hello")
    with pytest.raises(UserError, match="x.pth' is damaged or no PyTorch checkpoint"):
        read_pickle(tmp_path / "x.pth")
    with pytest.raises(UserError, match="No checkpoint file"):
        read_pickle(tmp_path / "none.pth")
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    (tmp_path / "x.pth").write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match="damaged"):
        read_pickle(tmp_path / "x.pth")
