"""GGUF: what is refused; full disks, kills, damage and existing folders leave nothing half-done."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file

from llava_tools.converters import gguf_file
from llava_tools.converters.convert import convert
from llava_tools.converters.gguf_header import read_header
from llava_tools.converters.new_file import NewFile
from llava_tools.errors import UserError
from tests.converters.gguf_models import CASES, save_llava, save_model
from tests.model.checkpoints import edit_json


def _refused(folder: Path, changes: dict[str, Any]) -> UserError:
    edit_json(folder / "config.json", **changes)
    with pytest.raises(UserError) as error:
        convert(folder, folder.parent / "out", "gguf")
    assert not (folder.parent / "out").exists()
    return error.value


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("vicuna", {"model_type": "gpt_neox"}, "the architecture 'gpt_neox'"),
        ("vicuna", {"hidden_act": "gelu"}, "the activation 'gelu'"),
        (
            "vicuna",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "scales its positions by 'dynamic'",
        ),
        (
            "vicuna",
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "mscale": 0.5}},
            "scales its positions by 'yarn'",
        ),
        ("vicuna", CASES["phi3-longrope"][1], "scales its positions by 'longrope'"),
        ("vicuna", CASES["phi3-half-rotated"][1], "rotates only a part of each head"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    tmp_path: Path, family: str, changes: dict[str, Any], message: str
) -> None:
    save_model(tmp_path / "model", family)
    assert message in _refused(tmp_path / "model", changes).message


def test_a_tower_or_projector_it_has_no_graph_for_is_refused(tmp_path: Path) -> None:
    source = save_llava(tmp_path / "model")
    edit_json(source / "llava_tools.json", visual_select_layer=0)
    with pytest.raises(UserError, match="from layer 0 of 4"):
        convert(source, tmp_path / "out", "gguf")
    edit_json(source / "llava_tools.json", visual_select_layer=-2)
    edit_json(source / "visual_encoder/config.json", hidden_act="relu")
    with pytest.raises(UserError, match="a vision tower with the activation 'relu'"):
        convert(source, tmp_path / "out", "gguf")
    edit_json(source / "visual_encoder/config.json", hidden_act="quick_gelu")
    weights = load_file(source / "projector/model.safetensors")
    (source / "visual_encoder/preprocessor_config.json").rename(tmp_path / "kept.json")
    with pytest.raises(UserError, match="does not say how images are prepared"):
        convert(source, tmp_path / "out", "gguf")
    shutil.copy(tmp_path / "kept.json", source / "visual_encoder/preprocessor_config.json")
    one = {name: value for name, value in weights.items() if name.startswith("model.0.")}
    save_file(one, source / "projector/model.safetensors")
    with pytest.raises(UserError, match="a projector of depth 1"):
        convert(source, tmp_path / "out", "gguf")
    assert not (tmp_path / "out").exists()


def test_a_sliding_window_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_model(tmp_path / "model", "phi3", sliding_window=100)
    with caplog.at_level(logging.WARNING):
        convert(tmp_path / "model", tmp_path / "out", "gguf")
    assert caplog.text.count("sliding window of 100 tokens, which llama.cpp ignores") == 1
    keys, _ = read_header(tmp_path / "out/out-f32.gguf")
    assert keys["phi3.attention.sliding_window"] == 100


def test_dtypes_have_both_spellings_and_q8_0_is_of_gguf_alone(tmp_path: Path) -> None:
    save_model(tmp_path / "model", "vicuna")
    assert convert(tmp_path / "model", tmp_path / "a", "gguf", dtype="fp16")["dtype"] == "float16"
    assert convert(tmp_path / "model", tmp_path / "b", "gguf", dtype="f16")["dtype"] == "float16"
    with pytest.raises(UserError, match="The hf format has no q8_0"):
        convert(tmp_path / "model", tmp_path / "c", "hf", dtype="q8_0")
    with pytest.raises(UserError, match="Unknown dtype 'q4_k'"):
        convert(tmp_path / "model", tmp_path / "c", "gguf", dtype="q4_k")


def test_an_overflow_names_the_weight(tmp_path: Path) -> None:
    save_model(tmp_path / "model", "vicuna")
    file = tmp_path / "model/model.safetensors"
    weights = load_file(file)
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = 1e5
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj.* overflow float16"):
        convert(tmp_path / "model", tmp_path / "out", "gguf", dtype="f16")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    convert(tmp_path / "model", tmp_path / "out", "gguf", dtype="bf16")


@pytest.mark.parametrize("after", [0, 1, 7, 20, 40])
def test_a_disk_that_fills_up_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    save_llava(tmp_path / "model")
    count, real = 0, NewFile.write

    def full(file: NewFile, block: memoryview) -> None:
        nonlocal count
        count += 1
        if count > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file, block)

    monkeypatch.setattr(NewFile, "write", full)
    with pytest.raises(UserError, match="The disk of '.*' is full; nothing was written"):
        convert(tmp_path / "model", tmp_path / "out", "gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (b"llama.context_length", "llama.context_length did not arrive unchanged in 'out-f32"),
        (b"blk.1.attn_q.weight", "blk.1.attn_q.weight did not arrive unchanged in 'out-f32"),
        (
            b"GGUF",
            "did not arrive unchanged|is no GGUF file that can be read",
        ),  # of tensors: one less
        (None, "[a-z0-9.]+.weight did not arrive unchanged in 'out-f32.gguf'; nothing was written"),
    ],
)
def test_what_arrives_changed_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: bytes | None, message: str
) -> None:
    save_model(tmp_path / "model", "vicuna")
    real = gguf_file.write_gguf

    def damaged(path: Path, *rest: Any) -> Any:
        written = real(path, *rest)
        data = bytearray(path.read_bytes())
        # What follows a name: of a key its type and value, of a tensor the number of dimensions
        # and their sizes. The file's end is the last tensor.
        at = data.index(place) + len(place) + 4 if place else len(data) - 100
        data[at] ^= 1
        path.write_bytes(data)
        return written

    monkeypatch.setattr("llava_tools.converters.to_gguf.write_gguf", damaged)
    with pytest.raises(UserError, match=message):
        convert(tmp_path / "model", tmp_path / "out", "gguf")
    assert not (tmp_path / "out").exists()


def test_the_header_is_read_as_the_gguf_package_reads_it(tmp_path: Path) -> None:
    save_llava(tmp_path / "model", "llama3")
    convert(tmp_path / "model", tmp_path / "out", "gguf", dtype="q8_0")
    for path in (tmp_path / "out").glob("*.gguf"):
        reader, (keys, tensors) = GGUFReader(path), read_header(path)
        fields = {k: v.contents() for k, v in reader.fields.items() if not k.startswith("GGUF.")}
        assert fields == keys
        assert {
            tensor.name: (tensor.data_offset, int(tensor.tensor_type)) for tensor in reader.tensors
        } == {name: (entry.start, entry.kind) for name, entry in tensors.items()}
    whole = path.read_bytes()
    for size in (0, 3, 20, 100, 1000):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="is no GGUF file that can be read"):
            read_header(path)


def test_an_existing_folder_is_kept(tmp_path: Path) -> None:
    source = save_model(tmp_path / "model", "vicuna")
    convert(source, tmp_path / "out", "gguf")
    with pytest.raises(UserError, match="is there already"):
        convert(source, tmp_path / "out", "gguf")
    with pytest.raises(UserError, match="is or holds what is being read"):
        convert(source, source, "gguf", overwrite=True)
    convert(source, tmp_path / "out", "gguf", dtype="q8_0", overwrite=True)
    assert [path.name for path in (tmp_path / "out").glob("*.gguf")] == ["out-q8_0.gguf"]


KILLED = """
import os, signal, sys
from llava_tools.converters.convert import convert
from llava_tools.converters.new_file import NewFile
real, count = NewFile.write, 0
def write(file, block):
    global count
    count += 1
    if count > int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    real(file, block)
NewFile.write = write
convert(sys.argv[1], sys.argv[2], "gguf")
"""


@pytest.mark.slow
def test_a_kill_in_the_middle_leaves_no_folder_and_the_next_run_cleans_up(tmp_path: Path) -> None:
    source, target = save_llava(tmp_path / "model"), tmp_path / "out"
    for after in (3, 30):
        call = [sys.executable, "-c", KILLED, str(source), str(target), str(after)]
        done = subprocess.run(call, capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not target.exists()
    convert(source, target, "gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["f16", "q8_0"])
def test_memory_stays_near_a_block_however_large_the_weights(tmp_path: Path, dtype: str) -> None:
    save_model(tmp_path / "small", "phi3")
    save_model(
        tmp_path / "big", "phi3", dtype=torch.float16, hidden_size=4096, intermediate_size=8192
    )
    size = (tmp_path / "big/model.safetensors").stat().st_size
    call = [sys.executable, "-c", PEAK, *(str(tmp_path / n) for n in ("small", "big", "out"))]
    done = subprocess.run([*call, dtype], capture_output=True, text=True, check=True)
    assert size > 600e6
    assert int(done.stdout.split()[-1]) * 1024 < 0.3 * size


PEAK = """
import resource, sys
from llava_tools.converters.convert import convert
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert(sys.argv[1], sys.argv[3], "gguf", dtype=sys.argv[4])
before = peak()
convert(sys.argv[2], sys.argv[3] + "-big", "gguf", dtype=sys.argv[4])
print(peak() - before)
"""


def test_without_the_gguf_package_its_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_model(tmp_path / "model", "vicuna")
    for name in [name for name in sys.modules if "gguf" in name and "tests" not in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match="needs the package gguf") as error:
        convert(source, tmp_path / "out", "gguf")
    assert "llava-tools[gguf]" in error.value.hint
