"""Values that changed after they were saved: found by torch's checksums, if asked for."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path

import pytest
import torch

from llava_tools.converters.check import check
from llava_tools.converters.convert import convert
from llava_tools.errors import UserError
from llava_tools.model.checksums import comparing_checksums
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


def test_a_flipped_bit_is_named_with_its_file_and_tensor(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    values = {"first": torch.randn(4), "second": torch.randn(2000)}
    torch.save({"state_dict": values, "meta": [torch.ones(3)]}, path)
    for record, name in ((0, "first"), (1, "second"), (2, r"meta\[0\]")):
        spoil(path, record)
        with (
            comparing_checksums(),
            pytest.raises(UserError, match=f"x.pth' is damaged: the values of {name} have changed"),
        ):
            read_pickle(path)
        read_pickle(path)  # not asked for
        spoil(path, record)  # the bit flipped back
    with comparing_checksums():
        found = read_pickle(path)
    assert torch.equal(found["state_dict"]["second"].read(), values["second"])


def test_a_file_is_compared_once_and_only_where_torch_wrote_checksums(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "x.pth"
    torch.save({"a": torch.ones(9)}, path)
    with caplog.at_level(logging.INFO), comparing_checksums():
        read_pickle(path)
        read_pickle(path)
    assert caplog.text.count("Comparing the checksums") == 1
    with zipfile.ZipFile(path) as archive:
        crc = archive.getinfo("x/data/0").CRC.to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(crc, bytes(4)))
    spoil(path)
    with comparing_checksums():
        read_pickle(path)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_certificate_is_given_to_undamaged_checkpoints_only(
    parts: Path, tmp_path: Path, stage: int
) -> None:
    run = make_run(tmp_path / "run", parts)
    file, name = run, "projector.model.2.bias"
    if stage:
        file = max(as_zero(run, stage).glob("*_optim_states.pt"))
        name = ("fp32_flat" if stage == 3 else "single_partition_of_fp32") + r"_groups\[0\]"
    convert(run, tmp_path / "good", "xtuner", verify=True, logits=False)
    spoil(file)
    message = f"{file.name}' is damaged: the values of {name} have changed"
    with pytest.raises(UserError, match=message):
        convert(run, tmp_path / "bad", "xtuner", verify=True, logits=False)
    with pytest.raises(UserError, match=message):
        check(run, tmp_path / "good", logits=False)
    assert not (tmp_path / "bad").exists()
