"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from llava_tools.errors import UserError
from llava_tools.whole_files import beside, replacing, write_json, write_whole


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_takes_its_name_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    with replacing(path) as file:
        file.write(b"half")
        assert names(path.parent) == [f".file.{os.getpid()}.part"]
        file.write(b" and half")
    assert path.read_bytes() == b"half and half" and names(path.parent) == ["file"]
    assert write_whole(path, b"other") == path and path.read_bytes() == b"other"
    assert write_json(path, {"a": ["\u00e9"]}).read_text() == '{\n  "a": [\n    "\u00e9"\n  ]\n}\n'


@pytest.mark.parametrize("reason", [KeyboardInterrupt, ValueError, UserError])
def test_nothing_is_left_of_a_failure(tmp_path: Path, reason: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(reason), replacing(path) as file:
        file.write(b"half")
        file.flush()
        raise reason("stop")
    assert path.read_bytes() == b"old" and names(tmp_path) == ["file"]


@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace"])
def test_a_full_disk_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(step, full)
    with pytest.raises(UserError, match="Cannot write '.*file': No space left on device") as caught:
        write_whole(path, b"new")
    assert caught.value.hint == "Make room, or choose another place."
    with pytest.raises(UserError) as caught:
        write_whole(path, b"new", "Run it again.")
    assert caught.value.hint == "Run it again."
    assert path.read_bytes() == b"old" and names(tmp_path) == ["file"]


def test_a_reason_without_a_number_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Cannot write '.*file': the picture is empty"):
        with beside(tmp_path / "file"):
            raise OSError("the picture is empty")


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Cannot write '.*file/below': File exists"):
        write_whole(tmp_path / "file" / "below", b"")
