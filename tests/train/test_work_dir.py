"""A work dir: one run at a time, and no file of somebody else's is written over."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llava_tools.errors import UserError
from llava_tools.train.hooks import forget_after
from llava_tools.train.launch import launch
from llava_tools.train.work_dir import alone
from tests.train.runs import run, write_config

TAKE = """
import sys
from pathlib import Path
from llava_tools.train.work_dir import alone
with alone(Path(sys.argv[1])):
    print("taken", flush=True)
    sys.stdin.read()
"""


def test_a_config_of_the_users_own_is_not_written_over(parts: Path, tmp_path: Path) -> None:
    own = write_config(tmp_path, parts).rename(tmp_path / "config.py")
    before = own.read_bytes()
    with pytest.raises(UserError, match="another file of that name.*\n.*another --work-dir"):
        launch(str(own), work_dir=str(tmp_path))
    assert own.read_bytes() == before


def test_the_config_of_an_earlier_run_is(parts: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, parts)
    for resume in (None, "auto"):
        assert launch(str(config), work_dir=str(tmp_path / "work"), resume=resume) == 0


def test_a_log_of_somebody_else_is_not_written_over(parts: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    log = tmp_path / "work" / "log.jsonl"
    for text in ('{"message": "mine"}\n', "[1]\n", "step 1\nstep 2\n", '{"step": 1}\n{"st\n{}\n'):
        log.write_text(text)
        with pytest.raises(UserError, match=r"log\.jsonl', which is another file"):
            run(tmp_path, parts)
        assert log.read_text() == text


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_is_no_work_dir(parts: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"{name}' is no folder"):
        launch(str(write_config(tmp_path, parts)), work_dir=str(tmp_path / name))


def test_two_runs_do_not_share_a_work_dir(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", TAKE, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "taken\n"
    with pytest.raises(UserError, match="Another run is at work in"), alone(tmp_path):
        pass
    other.communicate("")
    with alone(tmp_path):
        pass


@pytest.mark.parametrize("rest", ['{"step": 2, "lo', "\0" * 9, ""])
def test_a_half_written_line_at_the_end_is_dropped(tmp_path: Path, rest: str) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n' + rest)
    forget_after(log, "step", 2)
    assert log.read_text() == '{"step": 1}\n{"step": 2}\n'
