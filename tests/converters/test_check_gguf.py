"""`convert check A B` with GGUF: equal by bytes, keys and logits; differences are named."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("gguf")

from llava_tools.cli.entry import run as command
from llava_tools.converters.check import check
from llava_tools.converters.convert import convert
from llava_tools.converters.gguf_header import read_header
from llava_tools.errors import UserError

Exported = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def written(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA of Phi-3 as GGUF."""
    folder = tmp_path_factory.mktemp("gguf") / "mine"
    convert(exported("phi3", "xtuner"), folder, "gguf", dtype="f16", verify=True)
    return folder


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    shutil.copytree(written, tmp_path / "copy")
    return tmp_path / "copy"


def spoil(file: Path, tensor: str) -> None:
    """Flip a bit of a tensor."""
    data = bytearray(file.read_bytes())
    data[read_header(file)[1][tensor].start] ^= 1
    file.write_bytes(bytes(data))


def test_a_model_equals_its_gguf(exported: Exported, written: Path) -> None:
    record = check(exported("phi3", "xtuner"), written)
    assert record["passed"] and record["logits_equal"] and record["greedy_tokens_equal"]
    assert record["missing"] == record["extra"] == record["changed"] == []
    assert {"token_embd.weight", "v.patch_embd.weight", "mm.2.bias"} <= set(record["sha256"])
    assert record["second"] == {"path": str(written), "format": "gguf"}
    assert record["equal"] == len(record["sha256"]) > 40


@pytest.mark.parametrize("dtype", ["f32", "q8_0"])
def test_other_types_and_the_llama_form_of_a_phi3_are_known(
    exported: Exported, tmp_path: Path, dtype: str
) -> None:
    model = exported("phi3", "xtuner")
    convert(model, tmp_path / "x", "gguf", dtype=dtype, llm="llama")
    assert check(model, tmp_path / "x", logits=dtype == "q8_0")["passed"]


def test_the_certificate_of_gguf_has_the_digests_of_its_tensors(written: Path) -> None:
    record = json.loads((written / "conversion.json").read_text())
    file = written / "mine-mmproj-f16.gguf"
    entry = read_header(file)[1]["mm.2.bias"]
    data = file.read_bytes()[entry.start :][: 4 * entry.shape[0]]
    digest = hashlib.sha256(data).hexdigest()
    assert record["tensors"]["mine-mmproj-f16.gguf/mm.2.bias"] == digest
    held = {f"{f.name}/{name}" for f in written.glob("*.gguf") for name in read_header(f)[1]}
    assert set(record["tensors"]) == held


def test_gguf_may_come_first(exported: Exported, copy: Path) -> None:
    model = exported("phi3", "xtuner")
    record = check(copy, model)
    assert record["passed"] and record["logits_equal"] and record["greedy_tokens_equal"]
    assert record["first"] == {"path": str(copy), "format": "gguf"}
    assert record["second"] == {"path": str(model), "format": "xtuner"}
    spoil(copy / "mine-f16.gguf", "output_norm.weight")
    (copy / "mine-mmproj-f16.gguf").unlink()
    record = check(copy, model)
    assert not record["passed"] and record["changed"] == ["output_norm.weight"]
    assert "v.class_embd" in record["extra"] and record["missing"] == []


def test_two_gguf_models(written: Path, copy: Path) -> None:
    record = check(written, copy / "mine-f16.gguf")
    assert record["passed"] and record["logits_equal"] and record["greedy_tokens_equal"]
    assert record["first"] == {"path": str(written), "format": "gguf"}
    held = [name for file in written.glob("*.gguf") for name in read_header(file)[1]]
    assert record["equal"] == len(held) == len(record["sha256"])
    file = copy / "mine-f16.gguf"
    spoil(file, "blk.1.attn_qkv.weight")
    old, key = file.read_bytes(), b"phi3.rope.freq_base"
    at = old.index(key) + len(key) + 4
    file.write_bytes(old[:at] + b"\0\0\0\0" + old[at + 4 :])
    record = check(written, copy, logits=False)
    assert record["changed"] == ["phi3.rope.freq_base", "blk.1.attn_qkv.weight"]
    (copy / "mine-mmproj-f16.gguf").unlink()
    assert "v.class_embd" in check(written, copy, logits=False)["missing"]
    assert "v.class_embd" in check(copy, written, logits=False)["extra"]


def test_two_types_of_one_model_are_not_the_same(exported: Exported, written: Path) -> None:
    other = written.parent / "other"
    convert(exported("phi3", "xtuner"), other, "gguf", dtype="q8_0")
    record = check(written, other, logits=False)
    assert not record["passed"] and "blk.0.attn_qkv.weight" in record["changed"]
    assert "output_norm.weight" in record["sha256"]
    file = other / "other-q8_0.gguf"
    data, name = file.read_bytes(), b"blk.0.attn_qkv.weight"
    at = data.index(name) + len(name) + 4 + 16  # behind the number of dimensions and both of them
    file.write_bytes(data[:at] + (99).to_bytes(4, "little") + data[at + 4 :])
    with pytest.raises(UserError, match=r"a tensor of the unknown type 99"):
        check(other, other, logits=False)


def test_changed_tensors_are_named(exported: Exported, copy: Path) -> None:
    spoil(copy / "mine-f16.gguf", "blk.1.attn_qkv.weight")
    spoil(copy / "mine-mmproj-f16.gguf", "mm.0.weight")
    record = check(exported("phi3", "xtuner"), copy)
    assert not record["passed"]
    assert record["changed"] == ["blk.1.attn_qkv.weight", "mm.0.weight"]


def test_another_key_is_named(exported: Exported, copy: Path) -> None:
    file = copy / "mine-f16.gguf"
    old, key = file.read_bytes(), b"phi3.rope.freq_base"
    at = old.index(key) + len(key) + 4
    file.write_bytes(old[:at] + b"\0\0\0\0" + old[at + 4 :])
    assert check(exported("phi3", "xtuner"), copy)["changed"] == ["phi3.rope.freq_base"]


def test_a_tower_that_only_one_side_has_is_missing_or_extra(
    exported: Exported, parts: Path, copy: Path
) -> None:
    (copy / "mine-mmproj-f16.gguf").unlink()
    record = check(exported("phi3", "xtuner"), copy)
    assert "v.class_embd" in record["missing"] and not record["extra"]
    convert(parts / "phi3", copy.parent / "text", "gguf", dtype="f16")
    assert check(parts / "phi3", copy.parent / "text")["passed"]


def test_what_cannot_be_compared_is_told(exported: Exported, parts: Path, copy: Path) -> None:
    shutil.copy(copy / "mine-f16.gguf", copy / "other.gguf")
    with pytest.raises(UserError, match="should hold one LLM and at most one mmproj file"):
        check(exported("phi3", "xtuner"), copy)
    (copy / "other.gguf").unlink()
    file = copy / "mine-f16.gguf"
    data, key = file.read_bytes(), b"general.file_type"
    at = data.index(key) + len(key) + 4
    file.write_bytes(data[:at] + (15).to_bytes(4, "little") + data[at + 4 :])
    with pytest.raises(UserError, match=r"is quantised .general.file_type 15"):
        check(exported("phi3", "xtuner"), copy / "mine-f16.gguf")
    (copy / "mine-f16.gguf").write_bytes(b"<html>")
    with pytest.raises(UserError, match="is no GGUF file that can be read"):
        check(exported("phi3", "xtuner"), copy)


def test_a_file_that_is_cut_off_is_told_with_its_first_lost_tensor(
    exported: Exported, copy: Path
) -> None:
    file = copy / "mine-f16.gguf"
    last = max(read_header(file)[1].items(), key=lambda held: held[1].start)
    os.truncate(file, last[1].start + 2)
    for sides in ((copy, exported("phi3", "xtuner")), (exported("phi3", "xtuner"), copy)):
        with pytest.raises(UserError, match=f"f16.gguf' is cut off: {last[0]} lies beyond"):
            check(*sides, logits=False)


ARRAY = (9).to_bytes(4, "little")
GGUF = b"GGUF" + (3).to_bytes(4, "little") + bytes(8) + (1).to_bytes(8, "little")
DAMAGED = {
    "half a header": GGUF[:20],
    "a huge text": GGUF + b"\xff" * 8 + b"x",
    "a huge array": GGUF + bytes(8) + ARRAY + bytes(4) + b"\xff" * 8,
    "arrays of arrays": GGUF + bytes(8) + ARRAY + (ARRAY + (1).to_bytes(8, "little")) * 10**5,
    "an unknown type": GGUF + bytes(8) + b"\x7f" * 4,
    "another version": b"GGUF" + bytes(20),
    "another file": b"PK\x03\x04" + bytes(20),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_header_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.gguf").write_bytes(DAMAGED[name])
    with pytest.raises(UserError, match="x.gguf' is no GGUF file that can be read"):
        check(tmp_path, tmp_path, logits=False)


def test_gguf_is_no_source(written: Path, tmp_path: Path) -> None:
    for source in (written, written / "mine-f16.gguf"):
        with pytest.raises(UserError, match="is GGUF, which is written only"):
            convert(source, tmp_path / "x", "hf")


def test_the_command_compares_gguf(
    exported: Exported, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["convert", "check", str(exported("phi3", "xtuner")), str(copy), "--no-logits"]
    assert command(arguments) == 0
    assert json.loads(capsys.readouterr().out)["passed"]
    spoil(copy / "mine-f16.gguf", "output_norm.weight")
    assert command(arguments) == 2
    assert "1 changed; for example output_norm.weight" in capsys.readouterr().err
