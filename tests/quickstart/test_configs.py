"""The config files are complete, load, and say where their runs end."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_tools.config import iterations, load_settings
from llava_tools.quickstart.configs import RUNS, Scale, last_checkpoint, run_settings, write_configs


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_configs(tmp_path / "configs", run_settings(tmp_path, Scale(), seed=3))
    return tmp_path


@pytest.mark.parametrize("name", RUNS)
def test_a_config_file_loads_as_it_was_meant(written: Path, name: str) -> None:
    loaded = load_settings(str(written / "configs" / f"{name}.py"))
    assert loaded == run_settings(written, Scale(), seed=3)[name]
    assert loaded.seed == 3


@pytest.mark.parametrize("name", RUNS)
def test_the_last_checkpoint_is_the_one_that_training_ends_with(name: str) -> None:
    scale = Scale(text_rows=1001, batch_size=50)
    settings = run_settings(Path("/w"), scale, 0)[name]
    micro_batches, _ = iterations(settings, scale.rows[name], world_size=1)
    assert last_checkpoint(scale, name) == f"runs/{name}/iter_{micro_batches}.pth"


def test_each_stage_starts_from_the_one_before(written: Path) -> None:
    settings = run_settings(written, Scale(), 0)
    assert settings["text_sft"].visual_encoder_name_or_path is None
    assert settings["pretrain"].freeze_llm and not settings["pretrain"].freeze_visual_encoder
    assert not settings["finetune"].freeze_llm
    assert settings["pretrain"].llm_name_or_path == str(written / "models/llm")
    assert settings["finetune"].pretrained_pth == str(
        written / last_checkpoint(Scale(), "pretrain")
    )
