"""Values that changed after they were saved: found by torch's checksums."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from llava_tools.converters.check import check
from llava_tools.converters.convert import convert
from llava_tools.errors import UserError
from llava_tools.model.checksums import compare_checksums, noting_checksums
from llava_tools.model.safe_pickle import read_pickle
from tests.model.checkpoints import as_zero, make_run


def spoil(file: Path, record: int = -1) -> None:
    """Flip a bit in the middle of a record of values, by default the last one."""
    with zipfile.ZipFile(file) as archive:
        held = [info for info in archive.infolist() if "/data/" in info.filename][record]
    data = bytearray(file.read_bytes())
    names = data[held.header_offset + 26 : held.header_offset + 30]
    start = held.header_offset + 30 + sum(memoryview(names).cast("H"))
    data[start + held.file_size // 2] ^= 4
    file.write_bytes(data)


def read_all(path: Path) -> list[torch.Tensor]:
    """Read all values of a checkpoint, and compare their checksums."""
    with noting_checksums():
        found = read_pickle(path)
        values = [*found["state_dict"].values(), *found["meta"]]
        tensors = [value.read() for value in values]
        compare_checksums()
    return tensors


def test_a_flipped_bit_is_named_with_its_file_and_tensor(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    strided = torch.randn(40, 50).t()
    values = {"first": torch.randn(4), "second": torch.randn(2000), "third": strided}
    torch.save({"state_dict": values, "meta": [torch.ones(3)]}, path)
    for record, name in enumerate(("first", "second", "third", r"meta\[0\]")):
        spoil(path, record)
        with pytest.raises(UserError, match=f"x.pth' is damaged: the values of {name} have change"):
            read_all(path)
        read_pickle(path)  # not asked for
        spoil(path, record)  # the bit flipped back
    assert torch.equal(read_all(path)[2], strided)


def test_only_what_was_read_is_compared(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"state_dict": {"a": torch.ones(9), "b": torch.ones(9)}, "meta": []}, path)
    spoil(path)
    with noting_checksums():
        read_pickle(path)["state_dict"]["a"].read()
        with noting_checksums():  # part of the block around it
            other = read_pickle(path)["state_dict"]["b"]
        compare_checksums()
        other.read()
        with pytest.raises(UserError, match="the values of b have changed"):
            compare_checksums()


@pytest.mark.parametrize("way", ["set_crc32_options", "skip_data"])
def test_files_that_torch_wrote_without_checksums_are_read(tmp_path: Path, way: str) -> None:
    """As where saving must be fast, and where the values are written into the file later."""
    path, values = tmp_path / "x.pth", {"state_dict": {"a": torch.ones(9)}, "meta": []}
    if way == "skip_data":
        with torch.serialization.skip_data():
            torch.save(values, path)
    else:
        torch.serialization.set_crc32_options(False)
        torch.save(values, path)
        torch.serialization.set_crc32_options(True)
    assert len(read_all(path)) == 1


def test_a_changed_program_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"state_dict": {"a": torch.ones(9)}, "meta": []}, path)
    path.write_bytes(path.read_bytes().replace(b"state_dict", b"state_dicu"))
    with pytest.raises(UserError, match=r"its record data.pkl has changed since it was saved"):
        read_pickle(path)


def test_a_checkpoint_that_is_deleted_meanwhile_stays_open(tmp_path: Path) -> None:
    """As a run does with its older ones, while one of them is converted."""
    path = tmp_path / "x.pth"
    torch.save({"a": torch.ones(9)}, path)
    spoil(path)
    with noting_checksums():
        value = read_pickle(path)["a"]
        path.unlink()
        value.read()
        with pytest.raises(UserError, match="the values of a have changed"):
            compare_checksums()


def test_a_name_is_found_among_containers_that_hold_one_another(tmp_path: Path) -> None:
    path, nested = tmp_path / "x.pth", [0]
    for _ in range(9):
        nested = [nested] * 50
    nested.append(nested)
    torch.save({"many": nested, "meta": ({}, [torch.ones(9)])}, path)
    spoil(path)
    with noting_checksums():
        read_pickle(path)["meta"][1][0].read()
        with pytest.raises(UserError, match=r"the values of meta\[1\]\[0\] have changed"):
            compare_checksums()


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_only_undamaged_checkpoints_are_converted(parts: Path, tmp_path: Path, stage: int) -> None:
    run = make_run(tmp_path / "run", parts)
    file, name = run, "projector.model.2.bias"
    if stage:
        file = max(as_zero(run, stage).glob("*_optim_states.pt"))
        name = ("fp32_flat" if stage == 3 else "single_partition_of_fp32") + r"_groups\[0\]"
    convert(run, tmp_path / "good", "xtuner")
    spoil(file)
    message = f"{file.name}' is damaged: the values of {name} have changed"
    with pytest.raises(UserError, match=message):
        convert(run, tmp_path / "bad", "xtuner")
    with pytest.raises(UserError, match=message):
        check(run, tmp_path / "good", logits=False)
    assert not (tmp_path / "bad").exists()
