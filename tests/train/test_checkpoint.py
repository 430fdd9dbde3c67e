"""Checkpoints appear complete or not at all, and the last good one is never lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llava_tools.errors import UserError
from llava_tools.train import checkpoint


class FakeEngine:
    """Writes a little file, or fails half way like a full disk."""

    rank = 0
    world_size = 1

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure

    def save(self, path: Path, meta: dict[str, Any]) -> None:
        path.write_bytes(b"half")
        if self.failure:
            raise self.failure
        path.write_bytes(b"half and half")

    def sum(self, values: list[float]) -> list[float]:
        return values

    def barrier(self) -> None:
        return


def save(folder: Path, iteration: int, failure: Exception | None = None) -> Path:
    path = checkpoint.checkpoint_path(folder, iteration)
    checkpoint.save(FakeEngine(failure), path, {})
    return path


def test_last_checkpoint_names_what_was_saved_last(tmp_path: Path) -> None:
    assert checkpoint.last_checkpoint(tmp_path) is None
    save(tmp_path, 5)
    newest = save(tmp_path, 10)
    assert checkpoint.last_checkpoint(tmp_path) == newest
    assert (tmp_path / "last_checkpoint").read_text() == "iter_10.pth\n"


@pytest.mark.parametrize(
    "failure",
    [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed")],
)
def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path, failure: Exception) -> None:
    good = save(tmp_path, 5)
    with pytest.raises(UserError, match=r"Could not save .*iter_10\.pth"):
        save(tmp_path, 10, failure)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["iter_5.pth", "last_checkpoint"]
    assert checkpoint.last_checkpoint(tmp_path) == good
    assert good.read_bytes() == b"half and half"


def test_a_full_disk_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(free=4096)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match=r"the disk is full \(4,096 bytes free\)"):
        save(tmp_path, 10, RuntimeError("enforce fail at inline_container.cc:671"))


def test_what_a_killed_save_left_is_no_checkpoint_and_is_cleared(tmp_path: Path) -> None:
    save(tmp_path, 5)
    (tmp_path / "iter_10.pth.tmp").write_bytes(b"half")
    (tmp_path / "iter_15.pth.tmp").mkdir()
    assert [p.name for p in checkpoint.list_checkpoints(tmp_path)] == ["iter_5.pth"]
    checkpoint.remove_unfinished(tmp_path)
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("before", [Path.mkdir, Path.touch])
@pytest.mark.parametrize("after", [Path.mkdir, Path.touch])
def test_any_checkpoint_takes_the_place_of_any(
    tmp_path: Path, before: Callable[[Path], None], after: Callable[[Path], None]
) -> None:
    """As where a run is resumed from an earlier checkpoint, now with DeepSpeed or without it."""
    before(tmp_path / "iter_5.pth")
    after(tmp_path / "new")
    checkpoint.replace(tmp_path / "new", tmp_path / "iter_5.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["iter_5.pth"]
    assert (tmp_path / "iter_5.pth").is_dir() is (after is Path.mkdir)


def test_what_a_killed_save_had_set_aside_gets_its_name_back(tmp_path: Path) -> None:
    for name in ("iter_5.pth.old", "iter_10.pth", "iter_10.pth.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").write_text(name)
    checkpoint.remove_unfinished(tmp_path)
    found = {path.name: (path / "part").read_text() for path in tmp_path.iterdir()}
    assert found == {"iter_5.pth": "iter_5.pth.old", "iter_10.pth": "iter_10.pth"}


def test_a_file_and_a_directory_may_follow_each_other(tmp_path: Path) -> None:
    (tmp_path / "iter_5.pth").mkdir()
    (tmp_path / "iter_5.pth" / "part").write_bytes(b"x")
    assert save(tmp_path, 5).is_file()


def test_prune_keeps_the_newest_and_the_one_in_use(tmp_path: Path) -> None:
    for iteration in (2, 4, 10):
        save(tmp_path, iteration)
    checkpoint.point_to(tmp_path / "iter_2.pth")
    checkpoint.prune(tmp_path, 1)
    assert [p.name for p in checkpoint.list_checkpoints(tmp_path)] == ["iter_2.pth", "iter_10.pth"]


def test_without_a_pointer_to_one_the_newest_checkpoint_counts(tmp_path: Path) -> None:
    newest = save(tmp_path, 5)
    (tmp_path / "last_checkpoint").write_text("iter_9.pth\n")
    assert checkpoint.last_checkpoint(tmp_path) == newest
    (tmp_path / "last_checkpoint").unlink()
    assert checkpoint.last_checkpoint(tmp_path) == newest


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_writing_an_iteration_again_replaces_it(tmp_path: Path, kind: str) -> None:
    old, new = tmp_path / "iter_5.pth", tmp_path / "iter_5.pth.tmp"
    for path in (old, new):
        if kind == "directory":
            path.mkdir()
        (path / "x" if kind == "directory" else path).write_text(path.name)
    checkpoint.replace(new, old)
    assert (old / "x" if kind == "directory" else old).read_text() == new.name
    assert [p.name for p in tmp_path.iterdir()] == ["iter_5.pth"]
