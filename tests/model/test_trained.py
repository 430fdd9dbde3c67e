"""Checkpoints: read whatever wrote them, and laid over the base they belong to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llava_tools.errors import UserError
from llava_tools.model.source import open_source
from llava_tools.model.trained import read_checkpoint
from tests.model.checkpoints import make_run, projector, resave


@pytest.fixture(scope="module")
def run(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finetune run of Phi-3 with a frozen CLIP."""
    return make_run(tmp_path_factory.mktemp("trained") / "run", parts)


def test_bare_weights_of_every_suffix_are_read(run: Path, tmp_path: Path) -> None:
    state = torch.load(run, weights_only=True)["state_dict"]
    wanted = read_checkpoint(run)
    save_file(state, tmp_path / "x.safetensors")
    torch.save(state, tmp_path / "x.bin")
    for name in ("x.safetensors", "x.bin"):
        found = read_checkpoint(tmp_path / name)
        assert all(torch.equal(found[n].read(), t.read()) for n, t in wanted.items())


def test_the_projector_of_llavas_first_stage_is_read(tmp_path: Path) -> None:
    state = {
        name.replace("projector.model", "model.mm_projector"): tensor
        for name, tensor in projector(24, 32).items()
    }
    torch.save(state, tmp_path / "mm_projector.bin")
    assert set(read_checkpoint(tmp_path / "mm_projector.bin")) == set(projector(24, 32))


def test_checkpoints_that_are_none_are_refused(parts: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no checkpoint: no such file"):
        read_checkpoint(tmp_path / "iter_9.pth")
    with pytest.raises(UserError, match="is no checkpoint: a folder"):
        read_checkpoint(parts / "phi3")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds no state dict of tensors"):
        read_checkpoint(tmp_path / "list.pth")
    torch.save({"epoch": 3, "w": torch.ones(1)}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match="'epoch' is no tensor"):
        read_checkpoint(tmp_path / "odd.pth")
    torch.save({"resnet.conv1.weight": torch.ones(1)}, tmp_path / "foreign.pth")
    with pytest.raises(UserError, match="unknown name: resnet.conv1.weight"):
        read_checkpoint(tmp_path / "foreign.pth")
    torch.save({"llm.rotary_emb.inv_freq": torch.ones(1)}, tmp_path / "none.pth")
    with pytest.raises(UserError, match="holds no weights"):
        read_checkpoint(tmp_path / "none.pth")


def test_a_config_that_does_not_fit_its_checkpoint_is_an_error(parts: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", parts, trains=())
    with pytest.raises(
        UserError, match="The config trains the llm, but .* lacks 15 of its weights"
    ):
        open_source(run, overrides=["freeze_llm=False"])
    run = make_run(tmp_path / "b", parts)
    resave(run, lambda state: state.pop("llm.model.norm.weight"))
    with pytest.raises(
        UserError, match="lacks 1 of its weights, for example llm.model.norm.weight"
    ):
        open_source(run)
    run = make_run(tmp_path / "c", parts)
    resave(run, lambda state: state.update({"llm.model.norm.weight": torch.ones(5)}))
    with pytest.raises(UserError, match=r"norm.weight has shape \(5,\), in the base model \(32,\)"):
        open_source(run)
    run = make_run(tmp_path / "d", parts)
    resave(run, lambda state: state.update({"llm.model.other.weight": torch.ones(5)}))
    with pytest.raises(UserError, match="the config's models lack: llm.model.other.weight"):
        open_source(run)
    run = make_run(tmp_path / "e", parts)
    resave(run, lambda state: [state.pop(name) for name in projector(24, 32)])
    with pytest.raises(UserError, match="holds no projector"):
        open_source(run)
    run = make_run(tmp_path / "f", parts)
    resave(run, lambda state: state.pop("projector.model.2.bias"))
    with pytest.raises(UserError, match="lacks a weight: projector.model.2.bias"):
        open_source(run)
