"""Commands run in processes of their own, inherit the lock, and are told to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from llava_tools import __version__
from llava_tools.errors import UserError
from llava_tools.quickstart import command
from llava_tools.quickstart.lock import CommandLock, alone

# Stands for a command: says that it is there, and ends well when told to stop.
WAITS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("ready", flush=True)
time.sleep(60)
"""


def test_a_command_runs_and_its_answer_is_kept(tmp_path: Path) -> None:
    with alone(tmp_path) as lock:
        assert command.run_command(["--version"], lock, capture=True) == (0, f"{__version__}\n")
        assert command.run_command(["chat"], lock)[0] == 2


def test_commands_are_offline_and_on_their_own() -> None:
    found = command.environment({"HOME": "/h", "NPROC_PER_NODE": "8", "HF_HUB_OFFLINE": "0"})
    assert found["HF_HUB_OFFLINE"] == "1" and found["HOME"] == "/h"
    assert "NPROC_PER_NODE" not in found
    assert found["OMP_NUM_THREADS"] == "1"
    assert command.environment({"OMP_NUM_THREADS": "4"})["OMP_NUM_THREADS"] == "4"


@pytest.mark.parametrize("stop", command.STOPS)
def test_a_stop_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: signal.Signals
) -> None:
    script = tmp_path / "waits.py"
    script.write_text("#!/bin/sh\nexec " + f"{sys.executable} -c '{WAITS}'")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    before = signal.getsignal(stop)
    with alone(tmp_path / "w") as lock:
        timer = threading.Timer(1.0, os.kill, (os.getpid(), stop))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            command.run_command([], lock)
    assert signal.getsignal(stop) == before


def test_two_quickstarts_do_not_share_a_folder(tmp_path: Path) -> None:
    with alone(tmp_path), pytest.raises(UserError, match="Another quickstart is at work in"):
        with alone(tmp_path):
            pass
    with alone(tmp_path):
        pass


def test_a_command_that_was_left_behind_is_stopped(tmp_path: Path) -> None:
    with alone(tmp_path) as lock:
        left = subprocess.Popen(
            [sys.executable, "-c", WAITS],
            stdout=subprocess.PIPE,
            pass_fds=(lock.file.fileno(),),
        )
        lock.note(str(left.pid))
        assert left.stdout is not None
        left.stdout.readline()
    with alone(tmp_path):  # the first quickstart is gone, its command is not
        assert left.wait(timeout=10) == 0


def test_a_command_that_does_not_stop_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llava_tools.quickstart.lock.ORPHAN_SECONDS", 0.5)
    stubborn = WAITS.replace("lambda *_: sys.exit(0)", "signal.SIG_IGN")
    with alone(tmp_path) as lock:
        left = subprocess.Popen(
            [sys.executable, "-c", stubborn],
            stdout=subprocess.PIPE,
            pass_fds=(lock.file.fileno(),),
        )
        lock.note(str(left.pid))
        assert left.stdout is not None
        left.stdout.readline()
    with pytest.raises(UserError, match=f"does not stop \\(process {left.pid}\\)"):
        with alone(tmp_path):
            pass
    left.kill()
    left.wait()


def test_the_lock_names_the_latest_command(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("a+") as file:
        lock = CommandLock(file)
        lock.note("123456")
        lock.note("99")
        assert (tmp_path / "lock").read_text() == "99"


def test_a_work_dir_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is no folder"):
        with alone(tmp_path / "file"):
            pass
