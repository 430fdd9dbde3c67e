"""The summary, the curves, the verdict and the last table."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava_tools.errors import UserError
from llava_tools.quickstart import finish
from llava_tools.quickstart.configs import RUNS, Scale, last_checkpoint
from llava_tools.quickstart.plot import plot_losses, read_losses, rolling_mean
from llava_tools.quickstart.stages import FORMATS, stages
from llava_tools.quickstart.state import State

SCORES = {"vanilla": 0.97, "questions": 300, "protocol": "vlmevalkit", "data": {"md5": "abc"}}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """The files of a finished quickstart that its end reads."""
    files: dict[str, Any] = {
        "eval/mmbench/scores.json": {"circular": 0.93, **SCORES},
        "eval/mmbench_blank/scores.json": {"circular": 0.01, **SCORES},
    }
    for name in FORMATS:
        proof = {"passed": True, "largest_logit_difference": 0.0}
        files[f"models/{name}/conversion.json"] = proof
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(json.dumps(content))
    for name in RUNS:
        log = tmp_path / "runs" / name / "log.jsonl"
        log.parent.mkdir(parents=True)
        lines = [json.dumps({"step": s, "loss": 1 / s, "lr": 0.1}) for s in (10, 20)]
        log.write_text("\n".join(lines) + "\n")
    return tmp_path


def state_of(root: Path, **answers: str) -> State:
    todo = stages(root, {name: last_checkpoint(Scale(), name) for name in RUNS})
    done: dict[str, dict[str, Any]] = {stage.name: {"seconds": 1.5} for stage in todo}
    for name in FORMATS:
        done[f"chat_{name}"]["answer"] = answers.get(name, "A handwritten seven.")
    return State(root / "quickstart.json", {"seed": 5}, done)


def end(root: Path, state: State) -> int:
    todo = stages(root, {name: last_checkpoint(Scale(), name) for name in RUNS})
    return finish.finish(root, todo, state, expected=True)


def test_the_summary_holds_the_numbers(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert end(made, state_of(made)) == 0
    summary = json.loads((made / "summary.json").read_text())
    assert summary["mmbench"]["circular"] == 0.93
    assert summary["mmbench"]["vanilla"] == 0.97
    assert summary["mmbench"]["circular_blank_images"] == 0.01
    assert set(summary["formats"]) == {"xtuner", "llava", "hf"}
    assert summary["formats"]["hf"]["verified"] is True
    assert summary["seconds"]["finetune"] == 1.5
    assert summary["seed"] == 5 and summary["versions"]["torch"]
    assert summary["loss"] == {name: 0.05 for name in RUNS}
    printed = capsys.readouterr().out
    assert "circular 93.0 %" in printed and "with grey pictures circular 1.0 %" in printed
    assert str(made / "models/llava") in printed


def test_the_last_commands_can_be_copied(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    end(made, state_of(made))
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    commands = [shlex.split(line) for line in lines if line.startswith("llava-tools ")]
    assert commands[0][1:3] == ["chat", str(made / "models/hf")]
    assert len(commands) == 4


def test_formats_that_disagree_are_an_error(made: Path) -> None:
    with pytest.raises(UserError, match="three formats of one model answer differently.*an eight"):
        end(made, state_of(made, llava="an eight"))


@pytest.mark.parametrize(
    ("circular", "blank", "complaint"),
    [
        (0.80, 0.14, ""),
        (0.79, 0.0, "Circular accuracy is 0.790, less than 0.8."),
        (0.95, 0.15, "with grey pictures is 0.150: the model does not look"),
    ],
)
def test_a_bad_model_is_a_failure(circular: float, blank: float, complaint: str) -> None:
    scores = {"circular": circular, "circular_blank_images": blank}
    found = finish.verdict({"mmbench": scores})
    assert complaint in found and bool(found) == bool(complaint)


def test_a_bad_model_exits_with_1(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    poor = {"circular": 0.5, **SCORES}
    (made / "eval/mmbench/scores.json").write_text(json.dumps(poor))
    assert end(made, state_of(made)) == 1
    assert "less than 0.8" in capsys.readouterr().err


def test_curves_are_read_and_drawn(made: Path) -> None:
    curves = {name: read_losses(made / "runs" / name / "log.jsonl") for name in RUNS}
    assert curves["pretrain"] == [(10, 0.1), (20, 0.05)]
    plot_losses(curves, made / "loss.png")
    with Image.open(made / "loss.png") as picture:
        assert picture.width > 1000
        assert len(picture.convert("RGB").getcolors(2**20) or []) > 20


def test_the_mean_takes_the_neighbours_that_exist() -> None:
    assert rolling_mean([1.0, 2.0, 6.0], 1) == [1.5, 3.0, 4.0]
    assert rolling_mean([1.0, 2.0, 6.0], 0) == [1.0, 2.0, 6.0]


@pytest.mark.parametrize(("size", "text"), [(1999, "2.0 kB"), (25_000_000, "25.0 MB")])
def test_sizes_are_for_people(size: int, text: str) -> None:
    assert finish.readable(size) == text
