"""Which stages run, in which order, and what happens after a failure, a kill or a change."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from llava_tools.errors import UserError
from llava_tools.quickstart import run
from llava_tools.quickstart.configs import RUNS, Scale, last_checkpoint
from llava_tools.quickstart.lock import CommandLock, alone
from llava_tools.quickstart.stages import Stage, stages
from llava_tools.quickstart.state import State, load_state

CHECKPOINTS = {name: last_checkpoint(Scale(), name) for name in RUNS}


class Fake:
    """Stands for preparation and commands: makes what they make, notes the calls."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.calls, self.fails = root, [], ""
        self.todo = stages(root, CHECKPOINTS)
        monkeypatch.setattr(run, "prepare", self.prepare)
        monkeypatch.setattr(run, "run_command", self.command)

    def prepare(self, root: Path, scale: Scale, seed: int) -> None:
        self._make(self.todo[0])

    def command(
        self, arguments: Sequence[str], lock: CommandLock, *, capture: bool = False
    ) -> tuple[int, str]:
        commands = [s for s in self.todo if s.command]
        (stage,) = [s for s in commands if s.command == tuple(arguments)[: len(s.command)]]
        if self.fails == stage.name:
            return 2, ""
        self._make(stage, "".join(arguments[len(stage.command) :]))
        return 0, json.dumps({"prompt": "?", "answer": "!"}) if capture else ""

    def _make(self, stage: Stage, more: str = "") -> None:
        self.calls.append(stage.name + more)
        for path in stage.makes:
            (self.root / path).mkdir(parents=True, exist_ok=True)

    def run(self, recipe: dict[str, Any] | None = None) -> State:
        """Run what is to be run; return the state."""
        self.calls.clear()
        state = load_state(self.root, recipe or {"seed": 0})
        with alone(self.root) as lock:
            run.Runner(self.root, Scale(), 0, lock, Console(quiet=True)).run(self.todo, state)
        return state


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    (tmp_path / "w").mkdir()
    return Fake(tmp_path / "w", monkeypatch)


def names(fake: Fake, first: str = "prepare") -> list[str]:
    found = [stage.name for stage in fake.todo]
    return found[found.index(first) :]


def test_all_stages_run_in_order(fake: Fake) -> None:
    state = fake.run()
    assert fake.calls == names(fake) == list(state.done)
    assert state.done["chat_hf"]["answer"] == "!"
    assert all(record["seconds"] >= 0 for record in state.done.values())


def test_a_second_run_repeats_nothing(fake: Fake) -> None:
    fake.run()
    state = fake.run()
    assert fake.calls == []
    assert list(state.done) == names(fake)


def test_a_failed_stage_is_named_and_the_next_run_goes_on_with_it(fake: Fake) -> None:
    fake.fails = "hf"
    with pytest.raises(UserError, match=r"Stage 'hf' failed \(exit code 2\): llava-tools convert"):
        fake.run()
    assert fake.calls == names(fake)[: names(fake).index("hf")]
    fake.fails = ""
    fake.run()
    assert fake.calls == names(fake, "hf")


def test_training_and_evaluation_go_on_where_they_were_cut_short(fake: Fake) -> None:
    for stage, call in (("pretrain", "pretrain--resume"), ("mmbench", "mmbench")):
        fake.fails = stage
        with pytest.raises(UserError):
            fake.run()
        kept = fake.root / next(s for s in fake.todo if s.name == stage).makes[0] / "kept"
        kept.mkdir(parents=True)
        fake.fails = ""
        fake.run()
        assert fake.calls == [call, *names(fake, stage)[1:]]
        assert kept.exists()
        (fake.root / "quickstart.json").unlink()
        for path in list(fake.root.iterdir()):
            run.remove(path)


def test_a_conversion_that_was_cut_short_starts_in_a_clean_place(fake: Fake) -> None:
    fake.fails = "llava"
    with pytest.raises(UserError):
        fake.run()
    (fake.root / "models/llava/half").mkdir(parents=True)
    fake.fails = ""
    fake.run()
    assert not (fake.root / "models/llava/half").exists()


def test_what_rests_on_something_that_is_gone_is_made_again(fake: Fake) -> None:
    fake.run()
    (fake.root / "runs/finetune").rmdir()
    (fake.root / "models/hf/old").mkdir()
    (fake.root / "models/llm/kept").mkdir()
    fake.run()
    assert fake.calls == names(fake, "finetune")
    assert not (fake.root / "models/hf/old").exists()
    assert (fake.root / "models/llm/kept").exists()


def test_another_recipe_starts_afresh_and_leaves_other_files_alone(fake: Fake) -> None:
    fake.run()
    (fake.root / "my notes.txt").write_text("keep")
    fake.run({"seed": 1})
    assert fake.calls == names(fake)
    assert (fake.root / "my notes.txt").read_text() == "keep"


def test_a_folder_with_other_files_is_refused(fake: Fake) -> None:
    (fake.root / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"holds other files \(thesis.tex\), but no quickstart"):
        fake.run()
    assert fake.calls == []


def test_a_torn_state_file_means_a_fresh_start(fake: Fake) -> None:
    fake.run()
    (fake.root / "quickstart.json").write_text('{"recipe": {"se')
    fake.run()
    assert fake.calls == names(fake)


def test_results_of_an_earlier_run_do_not_outlive_it(fake: Fake) -> None:
    fake.run()
    (fake.root / "summary.json").write_text("{}")
    (fake.root / "models/hf").rmdir()
    fake.run()
    assert not (fake.root / "summary.json").exists()


def test_the_recipe_tells_seeds_and_scales_apart() -> None:
    found = run.recipe(0, Scale())
    assert found == run.recipe(0, Scale())
    assert found != run.recipe(1, Scale()) != run.recipe(1, Scale(copies=0))
    assert json.loads(json.dumps(found)) == found  # as it is read back from the file
