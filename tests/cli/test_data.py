"""`data show` leaves out what training would, and `data audit` refuses what training refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

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


def talk(*texts: str) -> dict[str, Any]:
    turns = [{"from": ("human", "gpt")[k % 2], "value": text} for k, text in enumerate(texts)]
    return {"conversations": turns}


def test_a_row_without_an_id_goes_by_its_place(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "rows.json"
    data.write_text(json.dumps([talk("Q", "A"), talk("Q", "A") | {"id": "r"}]))
    config = str(write_config(tmp_path, parts, datasets=[{"data_path": str(data)}]))
    assert run(["data", "show", config]) == 0
    heads = [line for line in capsys.readouterr().out.splitlines() if " tokens, " in line]
    assert [head.partition(", row")[0] for head in heads] == [str(data), f"r  {data}"]


@pytest.mark.parametrize(
    ("rows", "changes", "error"),
    [
        ([], {}, "The training data is empty: "),
        ([talk("Q", "A")], {"max_tokens": 2}, "No row can be trained on, all 1 are left out."),
        ([talk("Q")], {}, "No row can be trained on, all 1 are left out."),
    ],
)
def test_data_without_a_row_to_train_on_is_refused_whatever_is_allowed(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: Any, changes: Any,
    error: str,
) -> None:  # fmt: skip
    data = tmp_path / "rows.json"
    data.write_text(json.dumps(rows))
    spec = {"data_path": str(data)} | changes
    config = str(write_config(tmp_path, parts, datasets=[spec], max_skipped=1.0))
    assert run(["data", "audit", config]) == 2
    printed = capsys.readouterr()
    assert error in printed.err
    assert ("left out 1 x beyond_max_tokens: longer than" in printed.out) is bool(changes)
    assert run(["data", "show", config]) == 0
    assert "There is no row to train on." in capsys.readouterr().err
