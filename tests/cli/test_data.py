"""`data show` leaves out what training would, where it can know."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llava_tools.cli.entry import run
from tests.train.runs import write_config


def test_rows_beyond_the_context_are_not_shown(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    llm = tmp_path / "llm"
    shutil.copytree(parts / "phi3", llm)
    config = str(write_config(tmp_path, parts, llm_name_or_path=str(llm)))
    assert run(["data", "show", config, "--json"]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    lengths = [len(row["input_ids"]) + 3 * len(row["images"]) for row in shown]  # 4 patches each
    context = sorted(lengths)[3]
    values = json.loads((llm / "config.json").read_text())
    smaller = {"max_position_embeddings": context}
    (llm / "config.json").write_text(json.dumps(values | smaller))
    assert run(["data", "show", config, "--json"]) == 0
    fitting = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert fitting == [r for r, n in zip(shown, lengths, strict=True) if n <= context]
    assert len(fitting) < len(shown) == 6


def test_a_tokenizer_alone_is_enough(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    llm = tmp_path / "llm"
    llm.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(parts / "phi3" / name, llm)
    config = str(write_config(tmp_path, parts, llm_name_or_path=str(llm)))
    assert run(["data", "show", config, "--json"]) == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 6
    assert "Rows beyond the model's context are shown, too: No language model at" in printed.err
