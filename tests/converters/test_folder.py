"""A new folder: in place whole or not at all, over another in one step, where it can be written."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llava_tools.converters import folder as module
from llava_tools.converters.folder import new_folder
from llava_tools.errors import UserError


def replace(target: Path) -> None:
    target.mkdir()
    (target / "config.json").write_text("old")
    with new_folder(target, overwrite=True) as partial:
        (partial / "config.json").write_text("new")
    assert (target / "config.json").read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is Linux's")
def test_two_folders_change_places_in_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Path, to: Path) -> Path:
        raise AssertionError("the target was away for a moment")

    monkeypatch.setattr(Path, "rename", fail)
    replace(tmp_path / "x")


def test_where_names_cannot_be_swapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EXCHANGE", 2**30)  # a flag that no kernel knows
    replace(tmp_path / "x")
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())  # no such call
    (tmp_path / "other").mkdir()
    replace(tmp_path / "other" / "x")


def fill(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep/x"
    with new_folder(target) as folder:
        fill(folder)
        assert not target.exists() and folder.parent == target.parent
    assert [path.name for path in target.parent.iterdir()] == ["x"]
    assert (target / "config.json").is_file()


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_nothing(tmp_path: Path, kind: type[BaseException]) -> None:
    with pytest.raises(kind), new_folder(tmp_path / "x") as folder:
        fill(folder)
        raise kind
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path, number: int) -> None:
    with (
        pytest.raises(UserError, match="disk of '.*x' is full; nothing was written"),
        new_folder(tmp_path / "x") as folder,
    ):
        fill(folder)
        raise OSError(number, "full")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_known_before(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    with (
        pytest.raises(UserError, match="is full; nothing was written") as caught,
        new_folder(tmp_path / "x", need=2 * free + 10**12),
    ):
        raise AssertionError("must not start")
    assert caught.value.hint.startswith(f"About {(2 * free + 10**12) / 1e9:.1f} GB are needed")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_takes_no_folder_is_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    places = {tmp_path / "file/x": "Choose another place"}
    if sys.platform == "linux":  # a file system with no room at all, which is not full
        places[Path("/proc/x")] = "(No folder can be made|You may not write) there"
    for place, hint in places.items():
        with (
            pytest.raises(UserError, match=f"Could not write '{place}': .* Nothing was") as caught,
            new_folder(place, need=1),
        ):
            raise AssertionError("must not start")
        assert re.match(hint, caught.value.hint)


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.EROFS, "file system is read-only"),
        (errno.EACCES, "check the permissions"),
        (errno.EPERM, "No folder may be made"),
        (errno.EIO, "mend this one"),
    ],
)
def test_a_failure_of_the_disk_is_named_with_what_to_do(
    tmp_path: Path, number: int, hint: str
) -> None:
    reason = os.strerror(number)
    with (
        pytest.raises(UserError, match=f"'.*x': {reason}. Nothing was written") as caught,
        new_folder(tmp_path / "x") as folder,
    ):
        fill(folder)
        raise OSError(number, reason)
    assert hint in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    target = tmp_path / "x"
    with new_folder(target) as folder:
        fill(folder)
        (folder / "old").write_text("")
    with pytest.raises(UserError, match="is there already"), new_folder(target):
        raise AssertionError("must not start")
    assert (target / "old").is_file()
    with pytest.raises(ValueError, match="no"), new_folder(target, overwrite=True):
        raise ValueError("no")
    assert (target / "old").is_file()
    with new_folder(target, overwrite=True) as folder:
        fill(folder)
        assert (target / "old").is_file()
    assert sorted(path.name for path in target.iterdir()) == ["config.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_folder_that_is_no_model_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.txt").write_text("")
    with (
        pytest.raises(UserError, match="is no model folder, so it will not be replaced"),
        new_folder(tmp_path / "home", overwrite=True),
    ):
        raise AssertionError("must not start")
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as folder:
        fill(folder)
    assert (tmp_path / "empty/config.json").is_file()


def test_a_source_is_never_replaced(tmp_path: Path) -> None:
    source = tmp_path / "models/x"
    source.mkdir(parents=True)
    fill(source)
    fill(source.parent)
    (tmp_path / "link").symlink_to(source)
    for target in (source, source.parent, tmp_path / "link"):
        with (
            pytest.raises(UserError, match="is or holds what is being read"),
            new_folder(target, overwrite=True, sources=[source]),
        ):
            raise AssertionError("must not start")
    with (
        pytest.raises(UserError, match="lies in what is being read"),
        new_folder(source / "new/x", sources=[source]),
    ):
        raise AssertionError("must not start")
    assert [path.name for path in source.iterdir()] == ["config.json"]


KILLED = """
import os, sys
from pathlib import Path
from llava_tools.converters.folder import new_folder
with new_folder(Path(sys.argv[1])) as folder:
    (folder / "config.json").write_text("{}")
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_a_kill_leaves_no_folder_and_the_next_run_cleans_up(tmp_path: Path) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "x")]
    with subprocess.Popen(command, env=environment, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == b"ready\n"
        with new_folder(tmp_path / "x") as folder:  # another run leaves a live one's folder alone
            fill(folder)
            assert len(list(tmp_path.glob(".x.*.partial"))) == 2
        shutil.rmtree(tmp_path / "x")
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "x").exists()
    assert len(list(tmp_path.glob(".x.*.partial"))) == 1
    with new_folder(tmp_path / "x") as folder:
        fill(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_was_moved_away_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "x"
    with new_folder(target) as folder:
        fill(folder)
        (folder / "old").write_text("")
    rename = Path.rename

    def fail(self: Path, to: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(errno.EIO, "broken")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail)
    monkeypatch.setattr("llava_tools.converters.folder._exchange", lambda *paths: False)
    with pytest.raises(UserError, match="Could not write"), new_folder(target, overwrite=True) as f:
        fill(f)
    assert (target / "old").is_file() and len(list(tmp_path.iterdir())) == 1
    monkeypatch.undo()
    dead = subprocess.Popen(["true"])  # as after a kill between the two renames
    dead.wait()
    target.rename(tmp_path / f".x.{dead.pid}.replaced")
    with pytest.raises(UserError, match="is there already"), new_folder(target):
        raise AssertionError("must not start")
    assert (target / "old").is_file() and len(list(tmp_path.iterdir())) == 1
