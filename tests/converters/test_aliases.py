"""The step-by-step commands of XTuner's README give what `convert` gives in one step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava_tools.converters.aliases import phi_to_llama, pth_to_hf, xtuner_to_hf, xtuner_to_llava
from llava_tools.errors import UserError
from llava_tools.model.source import detect, open_source

Exported = Callable[[str, str], Path]


@pytest.mark.parametrize(
    ("save_format", "to"), [("xtuner", "xtuner"), ("official", "llava"), ("huggingface", "hf")]
)
def test_pth_to_hf(
    runs: dict[str, Path], exported: Exported, tmp_path: Path, save_format: str, to: str
) -> None:
    config = str(runs["phi3"].parent / "config.py")
    pth_to_hf(config, runs["phi3"], tmp_path / "llava", save_format, fp32=True)
    assert detect(tmp_path / "llava") == to
    found, wanted = open_source(tmp_path / "llava"), open_source(exported("phi3", to))
    assert all(torch.equal(found.tensors[n].read(), t.read()) for n, t in wanted.tensors.items())
    pth_to_hf(config, runs["phi3"], tmp_path / "half", save_format)
    assert {t.dtype for t in open_source(tmp_path / "half").tensors.values()} == {torch.float16}


def test_an_unknown_save_format_is_an_error(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        pth_to_hf(
            str(runs["phi3"].parent / "config.py"), runs["phi3"], tmp_path / "x", "hugingface"
        )
    assert error.value.hint == "Did you mean 'huggingface'?"


@pytest.mark.parametrize(("step", "to"), [(xtuner_to_llava, "llava"), (xtuner_to_hf, "hf")])
def test_the_three_steps_of_the_readme(
    exported: Exported, tmp_path: Path, step: Callable[..., object], to: str
) -> None:
    xtuner = exported("phi3", "xtuner")
    phi_to_llama(xtuner, tmp_path / "llama")
    assert not (tmp_path / "llama/projector").exists()
    step(
        text_model_id=str(tmp_path / "llama"),
        vision_model_id=str(xtuner / "visual_encoder"),
        projector_weight=xtuner / "projector/model.safetensors",
        save_path=tmp_path / "llava",
    )
    found = load_file(tmp_path / "llava/model.safetensors")
    wanted = load_file(exported("phi3", to) / "model.safetensors")
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
