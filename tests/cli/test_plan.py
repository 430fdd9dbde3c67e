"""`llava-tools plan` on the tiny model: what it prints, and what it says of wrong input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava_tools.cli.entry import run
from tests.train.runs import write_config


@pytest.fixture
def config(parts: Path, tmp_path: Path) -> str:
    """A config whose parts are config.json files, and whose data is not there."""
    for name in ("phi3", "clip"):
        (tmp_path / name).mkdir()
        text = (parts / name / "config.json").read_text()
        (tmp_path / name / "config.json").write_text(text)
    return str(
        write_config(
            tmp_path,
            tmp_path,
            dtype="bf16",
            freeze_llm=False,
            batch_size=4,
            datasets=[dict(data_path="not-there.json", rows=1000)],
        )
    )


def test_the_report_adds_up(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", config, "--gpus", "2", "--gpu", "A100-80G", "--row-tokens", "50"]
    assert run([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    sizes = report["memory_bytes"]
    assert sizes.pop("total") == sum(sizes.values())
    assert report["fits"] is True and report["options"] == []
    assert report["deepspeed"] == "deepspeed_zero2" and report["row_positions"] == 50
    trained = sum(part["trained"] for part in report["parts"].values())
    assert sizes["optimizer"] == 12 * trained / 2
    expected = report["flops_per_step"] / (2 * 312e12 * 0.4)
    assert report["seconds_per_step"] == pytest.approx(expected)
    assert report["steps"] == 125 and report["hours"] == pytest.approx(125 * expected / 3600)
    assert run(arguments) == 0
    text = capsys.readouterr().out
    assert "It fits in 80.0 GiB." in text and "4 rows x 1 accumulated x 2 GPU(s)" in text


def test_what_does_not_fit_is_told_with_what_would(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["plan", config, "--json"]) == 0
    total = json.loads(capsys.readouterr().out)["memory_bytes"]["total"]
    limit = str((total - 1000) / 2**30)
    assert run(["plan", config, "--memory", limit, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["fits"] is False
    changes = [option["change"] for option in report["options"]]
    assert changes[0] == "activation_checkpointing = True"
    assert "batch_size = 2, accumulative_counts = 2" in changes
    assert all(o["bytes"] <= report["memory_limit_bytes"] for o in report["options"])
    assert run(["plan", config, "--memory", limit]) == 0
    assert "What makes it fit:" in capsys.readouterr().out
    assert run(["plan", config, "--memory", "0.5"]) == 0
    assert "No change that we know makes it fit" in capsys.readouterr().out


def test_without_a_gpu_the_rate_is_measured_here(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["plan", config]) == 0
    text = capsys.readouterr().out
    assert "measured" in text and "MFU 40% assumed" in text
    assert run(["plan", config, "--gpu", "h100", "--cfg-options", "dtype=fp32"]) == 0
    assert "published rates are for bf16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "h1000"], "Unknown GPU 'h1000'. Did you mean 'h100'?"),
        (["--deepspeed", "deepspeed_zero7"], "No DeepSpeed configuration 'deepspeed_zero7'."),
        (
            ["--cfg-options", "llm_name_or_path=nobody/nothing"],
            "hf download nobody/nothing config.json",
        ),
        (
            ["--cfg-options", "visual_encoder_name_or_path=nobody/nothing"],
            "hf download nobody/nothing config.json",
        ),
    ],
)
def test_wrong_input(
    config: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["plan", config, *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.splitlines())


@pytest.mark.parametrize(
    "flag", ["--memory=-5", "--memory=0", "--mfu=0", "--mfu=2", "--row-tokens=0"]
)
def test_numbers_that_nothing_can_be_reckoned_with(
    config: str, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["plan", config, flag]) == 2
    name = flag.partition("=")[0]
    assert f"Invalid value for '{name}'" in capsys.readouterr().err
