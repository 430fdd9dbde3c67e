"""Bytes are the same whichever way they are read, and reading past the cache leaves it alone."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from llava_tools.errors import UserError
from llava_tools.model import past_cache as module
from llava_tools.model.file_bytes import FileBytes
from llava_tools.model.past_cache import ALIGNED, Uncached, aligned, past_cache

DATA = os.urandom(3 * 2**20 + 77)
PLACES = [(0, 1), (1, 4096), (8, 100), (4095, 2), (4096, 4096), (5000, 2**20 + 3)]
PLACES += [(len(DATA) - 1, 1), (len(DATA) - 5000, 5000), (0, len(DATA))]

pytestmark = pytest.mark.skipif(not module.DIRECT, reason="this system has no direct reading")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x"
    path.write_bytes(DATA)
    return path


def drop(path: Path) -> None:
    with path.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def test_memory_begins_where_a_disk_can_write_to_it() -> None:
    for size in (1, 4096, 2**20):
        assert aligned(size).data_ptr() % ALIGNED == 0 and len(aligned(size)) == size


def test_the_same_bytes_at_any_place(file: Path) -> None:
    usual = FileBytes(file)
    for offset, count in PLACES:
        drop(file)
        with past_cache():
            found = FileBytes(file).read(offset, count)
        assert bytes(found.numpy()) == DATA[offset : offset + count]
        assert torch.equal(found, usual.read(offset, count))
        assert offset % 8 or len(found.view(torch.uint8)) == count


def test_values_of_any_width_at_any_place(file: Path) -> None:
    """A view of wider values needs an even start in memory, wherever they lie in the file."""
    for offset in (0, 1, 2, 4, 7, 8, 4097):
        drop(file)
        with past_cache():
            found = FileBytes(file).tensor(offset, (50,), torch.float64).read()
        wanted = torch.frombuffer(bytearray(DATA[offset : offset + 400]), dtype=torch.float64)
        assert torch.equal(found.view(torch.int64), wanted.view(torch.int64))


def test_the_cache_is_left_as_it_was(file: Path) -> None:
    drop(file)
    reader = Uncached(file)
    if (read := reader.read(0, len(DATA))) is None:
        pytest.skip("this file system has no direct reading")
    assert bytes(read.numpy()) == DATA
    assert reader.read(0, len(DATA)) is not None  # not in memory by now either
    file.read_bytes()
    assert reader.read(0, len(DATA)) is None  # to be had from memory


def test_only_those_who_ask_read_past_the_cache(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(Uncached, "read", lambda self, offset, count: asked.append(count))
    FileBytes(file).read(0, 10)
    assert asked == []
    with past_cache():
        assert bytes(FileBytes(file).read(0, 10).numpy()) == DATA[:10]
    assert asked == [10]
    FileBytes(file).read(0, 10)
    assert asked == [10]


def test_file_systems_that_cannot_do_it(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def no_flag(path: str, flags: int, *mode: int) -> int:
        if flags & module.DIRECT:
            raise OSError(errno.EINVAL, "no such flag here")
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", no_flag)
    with past_cache():
        assert bytes(FileBytes(file).read(3, 10).numpy()) == DATA[3:13]
    monkeypatch.setattr(os, "open", real)
    (tmp_path / "empty").write_bytes(b"")
    assert Uncached(tmp_path / "empty").read(0, 1) is None


def test_a_file_that_becomes_shorter_is_an_error(file: Path) -> None:
    opened = FileBytes(file)
    with past_cache():
        opened.read(0, 10)
        os.truncate(file, 5000)
        with pytest.raises(UserError, match="x' became shorter while it was read"):
            opened.read(4096, 4096)
        with pytest.raises(UserError, match="x' became shorter while it was read"):
            opened.read(2**20, 10)


def test_a_file_that_is_replaced_meanwhile_stays_the_one_that_was_opened(
    file: Path, tmp_path: Path
) -> None:
    opened, other = FileBytes(file), tmp_path / "other"
    other.write_bytes(bytes(len(DATA)))
    drop(other)
    drop(file)
    other.replace(file)
    with past_cache():
        assert bytes(opened.read(10, 100).numpy()) == DATA[10:110]
