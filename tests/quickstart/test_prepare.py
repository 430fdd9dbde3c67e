"""What the first stage writes: the same for the same seed, and nothing held out to train on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llava_tools.quickstart.configs import RUNS, Scale
from llava_tools.quickstart.prepare import prepare

SMALL = Scale(held_out=100, copies=1, text_rows=200, choices=2, blind_rows=50)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prepared")
    prepare(root, SMALL, seed=0)
    return root


@pytest.mark.parametrize("name", RUNS)
def test_runs_have_as_many_rows_as_planned(prepared: Path, name: str) -> None:
    assert len(json.loads((prepared / f"data/{name}.json").read_text())) == SMALL.rows[name]


@pytest.mark.parametrize("name", RUNS)
def test_no_run_knows_a_held_out_picture(prepared: Path, name: str) -> None:
    rows = json.loads((prepared / f"data/{name}.json").read_text())
    used = {row["image"] for row in rows if "image" in row}
    held_out = {file.read_bytes() for file in (prepared / "data/heldout").iterdir()}
    assert len(held_out) == 100
    assert not held_out & {(prepared / "data" / name).read_bytes() for name in used}
    assert bool(used) == (name != "text_sft")
    assert "heldout" not in (prepared / f"configs/{name}.py").read_text()


def test_the_same_seed_gives_the_same_files(prepared: Path, tmp_path: Path) -> None:
    prepare(tmp_path, SMALL, seed=0)
    for part in ("data", "parts"):
        names = {f.relative_to(prepared) for f in (prepared / part).rglob("*") if f.is_file()}
        assert names == {
            f.relative_to(tmp_path) for f in (tmp_path / part).rglob("*") if f.is_file()
        }
        assert all((prepared / n).read_bytes() == (tmp_path / n).read_bytes() for n in names)
