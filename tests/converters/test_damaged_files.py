"""Each file that a conversion reads, damaged in each way: two lines that name it, nothing written.

Hostile pickles in the place of genuine ones do nothing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_tools.converters.convert import convert
from tests.converters.test_faults import fails_clearly
from tests.model.checkpoints import as_zero, make_run
from tests.model.test_hostile_pickles import MARK, SHELL, calling
from tests.model.test_safe_pickle import checkpoint

Exported = Callable[[str, str], Path]
Door = tuple[Path, list[str]]  # the file to damage, and a command that reads it


@pytest.fixture(scope="module")
def whole(
    parts: Path, exported: Exported, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Door]:
    """Genuine files of every kind, each with a command that reads it."""
    root = tmp_path_factory.mktemp("whole")
    run = make_run(root / "run", parts)
    doors: dict[str, Door] = {"checkpoint": (run, ["inspect", str(run)])}
    for stage in (2, 3):
        folder = as_zero(make_run(root / f"zero{stage}", parts), stage)
        for kind in ("model", "optim"):
            file = sorted(folder.glob(f"*_{kind}_states.pt"))[-1]
            doors[f"zero{stage} {kind}"] = file, ["inspect", str(folder)]
    bare = root / "run/bare.safetensors"
    save_file(torch.load(run, weights_only=True)["state_dict"], bare)
    doors["bare weights"] = bare, ["inspect", str(bare)]
    model = root / "llava"
    convert(run, model, "xtuner", max_shard_size="30KB")
    reads = ["inspect", str(model)]
    doors["shard"] = sorted(model.glob("model-*.safetensors"))[1], reads
    doors["index"] = model / "model.safetensors.index.json", reads
    doors["config"] = model / "config.json", reads
    doors["tower"] = min((model / "visual_encoder").glob("*.safetensors")), reads
    doors["projector"] = model / "projector/model.safetensors", reads
    adapter = root / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    factor = "base_model.model.model.layers.0.mlp.down_proj.lora_{}.weight"
    factors = {factor.format("A"): torch.ones(2, 64), factor.format("B"): torch.ones(32, 2)}
    torch.save(factors, adapter / "adapter_model.bin")
    merge = ["convert", "merge", str(parts / "phi3"), str(adapter), "OUT"]
    doors["adapter"] = adapter / "adapter_model.bin", merge
    pickled = shutil.copytree(parts / "phi3", root / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    doors["weights in a .bin"] = pickled / "pytorch_model.bin", ["inspect", str(pickled)]
    doors["tokenizer"] = pickled / "tokenizer.json", ["convert", str(pickled), "OUT", "--to", "hf"]
    stage1 = shutil.copytree(exported("vicuna", "llava"), root / "llava-1")
    state = load_file(stage1 / "model.safetensors")
    torch.save({n: t for n, t in state.items() if "mm_proj" in n}, stage1 / "mm_projector.bin")
    doors["mm_projector.bin"] = stage1 / "mm_projector.bin", ["inspect", str(stage1)]
    return doors


def half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    """Change a bit where the kind of file says what it holds."""
    data = bytearray(file.read_bytes())
    first = data.index(b"data.pkl") + 80 if data[:2] == b"PK" else 9
    data[0 if file.suffix == ".json" else first] ^= 0x40
    file.write_bytes(data)


def claim(file: Path) -> None:
    """Have the file begin with the largest of numbers, as of a header's size."""
    data = bytearray(file.read_bytes())
    data[:8] = b"\xff" * 7 + b"\x7f"
    file.write_bytes(data)


def mislabel(file: Path) -> None:
    """Put the other kind of file there."""
    if file.suffix == ".safetensors":
        torch.save({"a": torch.ones(2)}, file)
    else:
        save_file({"a": torch.ones(2)}, file)


def attack(file: Path) -> None:
    checkpoint(file, calling(os.system, SHELL))


def open_clip_door(root: Path) -> Door:
    from tests.model.test_open_clip import save

    folder = save(root / "open_clip", weights="open_clip_pytorch_model.bin")
    return folder / "open_clip_pytorch_model.bin", ["convert", str(folder), "OUT", "--to", "hf"]


DAMAGES = {f.__name__: f for f in (half, flip, claim, mislabel, attack)}
DOORS = (
    *("checkpoint", "zero2 model", "zero2 optim", "zero3 model", "zero3 optim", "bare weights"),
    *("shard", "index", "config", "tower", "projector", "adapter", "weights in a .bin"),
    *("mm_projector.bin", "tokenizer"),
)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("door", DOORS)
def test_a_damaged_file_is_named_and_nothing_happens(
    whole: dict[str, Door],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    door: str,
    damage: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    file, reads = whole[door]
    before = file.read_bytes()
    DAMAGES[damage](file)
    try:
        fails_clearly(reads, capsys, file.name)
    finally:
        file.write_bytes(before)
    assert list(tmp_path.iterdir()) == [], MARK


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_open_clip_tower_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    """open_clip itself reads it, and names the folder."""
    pytest.importorskip("open_clip")
    file, reads = open_clip_door(tmp_path)
    DAMAGES[damage](file)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    fails_clearly(reads, capsys, file.parent.name)
    assert list((tmp_path / "here").iterdir()) == [], MARK
