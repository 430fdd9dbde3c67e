"""Full disks, kills and wrong files: a clear error, nothing new, and what was there stays."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from llava_tools.cli.entry import run as command
from llava_tools.converters.convert import convert
from llava_tools.converters.digests import file_hashes
from llava_tools.errors import UserError
from tests import tiny

Exported = Callable[[str, str], Path]
FORMATS = ("xtuner", "llava", "hf", "gguf")
ROOT = Path(__file__).parents[2]


class FullDisk:
    """Lets `room` writes and syncs through, then says that the disk is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done = 0
        self.room = 10**9
        for place, name in ((os, "pwrite"), (os, "fsync"), (Path, "write_text")):
            monkeypatch.setattr(place, name, self.limited(getattr(place, name)))

    def limited(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.done += 1
            if self.done > self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            return function(*arguments, **options)

        return call


@pytest.mark.parametrize("to", FORMATS)
def test_a_disk_that_fills_at_any_moment_leaves_what_was_there(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    if to == "gguf":
        pytest.importorskip("llava_tools.converters.gguf_file")
    source, target = exported("phi3", "xtuner"), tmp_path / "out/llava-x"
    convert(source, target, to, dtype="bf16")
    before = file_hashes(target)
    disk = FullDisk(monkeypatch)
    convert(source, tmp_path / "whole/llava-x", to, verify=True, logits=False)
    count = disk.done
    assert count > 10
    # The last few syncs are of folders, which some file systems cannot do: those may fail.
    for room in (0, 1, count // 3, count // 2, count - 4):
        disk.done, disk.room = 0, room
        with pytest.raises(UserError, match="The disk of '.*llava-x' is full; nothing was written"):
            convert(source, target, to, overwrite=True, verify=True, logits=False)
        disk.room = 10**9
        assert file_hashes(target) == before
        assert [path.name for path in target.parent.iterdir()] == ["llava-x"]


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_all_or_nothing() -> None:
    pytest.importorskip("gguf")
    script = [sys.executable, str(ROOT / "benchmarks/convert_kill.py"), "--kills", "8"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(script, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr[-2000:]
    record = json.loads(ran.stdout.splitlines()[-1])  # DeepSpeed warns on stdout
    assert record["faults"] == 0 and record["kills"] == 8


def as_safetensors(file: Path) -> None:
    import torch

    save_file({"a": torch.zeros(2)}, file)


WRONG: dict[str, Callable[[Path], object]] = {
    "safetensors": as_safetensors,
    "page": lambda file: file.write_text("<!DOCTYPE html><html>Sign in</html>"),
    "pointer": lambda file: file.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n"
    ),
    "empty": lambda file: file.write_bytes(b""),
    "folder": lambda file: file.mkdir(),
    "zip": lambda file: file.write_bytes(b"PK\x05\x06" + bytes(18)),
}


def fails_clearly(arguments: list[str], capsys: pytest.CaptureFixture[str], names: str) -> None:
    """Run a command that must end with exit code 2 and two lines, the first naming the file."""
    assert command(arguments) == 2, arguments
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.strip()]
    assert printed.out == "" and names in printed.err and "Traceback" not in printed.err
    assert 1 <= len(lines) <= 4, lines


@pytest.mark.parametrize("kind", WRONG)
def test_a_file_of_another_kind_is_refused_by_every_command(
    runs: dict[str, Path],
    exported: Exported,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    bad, out = tmp_path / "iter_9.pth", tmp_path / "out"
    shutil.copy(runs["phi3"].parent / "config.py", tmp_path)
    WRONG[kind](bad)
    model, config = str(exported("phi3", "xtuner")), str(tmp_path / "config.py")
    broken = tmp_path / "model"
    shutil.copytree(model, broken)
    (broken / "model.safetensors").unlink()
    if kind != "safetensors":
        WRONG[kind](broken / "model.safetensors")
    before = {path.name for path in tmp_path.iterdir()}
    parts = ["--text-model-id", model, "--vision-model-id", f"{model}/visual_encoder"]
    for arguments in (
        *(["convert", str(bad), str(out), "--to", to] for to in FORMATS),
        ["convert", str(bad), str(out), "--to", "open_clip"],
        ["convert", "check", model, str(bad), "--config", config],
        ["convert", "check", str(bad), model],
        ["convert", "pth_to_hf", config, str(bad), str(out)],
        ["convert", "merge", model, str(bad), str(out)],
        ["convert", "split", str(bad), str(out)],
        ["convert", "phi_to_llama", "--phi-path", str(bad), "--save-path", str(out)],
        ["convert", "llama_to_phi", "--llama-path", str(bad), "--save-path", str(out)],
        [
            "convert",
            "xtuner_to_hf",
            *parts,
            "--projector-weight",
            str(bad),
            "--save-path",
            str(out),
        ],
        ["inspect", str(bad)],
    ):
        fails_clearly(arguments, capsys, "iter_9.pth")
    for arguments in (
        *(["convert", str(broken), str(out), "--to", to] for to in FORMATS),
        ["convert", "split", str(broken), str(out)],
        ["inspect", str(broken)],
    ):
        fails_clearly(arguments, capsys, "model")
    assert {path.name for path in tmp_path.iterdir()} == before


def test_a_target_in_its_source_is_refused_by_every_command(
    exported: Exported, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tower = tmp_path / "llava", tmp_path / "clip"
    shutil.copytree(exported("phi3", "xtuner"), model)
    tiny.save_vision(tower)
    before = file_hashes(tmp_path)
    for place in (model, model / "new"):
        for to in FORMATS:
            fails_clearly(
                ["convert", str(model), str(place), "--to", to, "--overwrite"], capsys, "read"
            )
        fails_clearly(["convert", "split", str(model), str(place), "--overwrite"], capsys, "read")
        phi = ["convert", "phi_to_llama", "--phi-path", str(model), "--overwrite"]
        fails_clearly([*phi, "--save-path", str(place)], capsys, "read")
    for place in (tower, tower / "new"):
        fails_clearly(
            ["convert", str(tower), str(place), "--to", "hf", "--overwrite"], capsys, "read"
        )
    assert file_hashes(tmp_path) == before


def test_a_name_that_is_too_long_is_refused(
    exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, long = str(exported("phi3", "xtuner")), "a" * 300
    for given in ([model, str(tmp_path / long)], [str(tmp_path / long), str(tmp_path / "x")]):
        fails_clearly(["convert", *given, "--to", "hf"], capsys, "File name too long")
