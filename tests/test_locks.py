"""One process at a time on a file or folder."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llava_tools.errors import UserError
from llava_tools.locks import hold, try_hold

TAKEN = UserError("Another process has it.", "Wait for it.")
# Holds a file, leaves a child that inherits it, and waits to be told to end.
HOLDER = """
import subprocess, sys
from pathlib import Path
from llava_tools.errors import UserError
from llava_tools.locks import hold
path, by_children = Path(sys.argv[1]), sys.argv[2] == "True"
file = path.open("a")
hold(file, path, UserError("taken"), by_children=by_children)
child = subprocess.Popen(["sleep", "600"], pass_fds=[file.fileno()], stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(path: Path, *, by_children: bool) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), str(by_children)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
        os.kill(child, 9)


@pytest.mark.parametrize("by_children", [True, False])
def test_a_second_process_is_kept_off(tmp_path: Path, by_children: bool) -> None:
    path = tmp_path / "file"
    with holder(path, by_children=by_children) as other, path.open("a") as file:
        with pytest.raises(UserError, match="Another process has it") as caught:
            hold(file, path, TAKEN, by_children=by_children)
        assert caught.value is TAKEN
        other.kill()
        other.wait()
        # The child is still there, with the file open.
        assert try_hold(file, path, by_children=by_children) is not by_children


def test_it_is_free_when_it_is_closed(tmp_path: Path) -> None:
    first, second = (os.open(tmp_path, os.O_RDONLY) for _ in range(2))
    assert try_hold(first, tmp_path) and not try_hold(second, tmp_path)
    os.close(first)
    assert try_hold(second, tmp_path)
    os.close(second)


@pytest.mark.parametrize("by_children", [True, False])
def test_a_file_system_without_locks_is_told(
    by_children: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock" if by_children else "fcntl.lockf", unknown)
    with (tmp_path / "file").open("a") as file:
        hold(file, tmp_path, TAKEN, by_children=by_children)
    assert f"'{tmp_path}' cannot be locked ([Errno {errno.ENOLCK}]" in caplog.text


def test_records_may_be_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("fcntl.lockf", refuse)
    with (tmp_path / "file").open("a") as file:
        assert not try_hold(file, tmp_path, by_children=False)
