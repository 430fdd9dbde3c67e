"""Text fine-tuning, from rows to answers: learnt answers end, adapters leave their base alone."""

from __future__ import annotations

import gc
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_tools.cli.entry import run as command
from llava_tools.config import load_settings
from llava_tools.data import sources
from llava_tools.data.dataset import build_dataset
from llava_tools.train.build import build_model, build_tokenizer
from llava_tools.train.header import sizes
from tests.train.runs import load, run, write_config

QUESTION, ANSWER = "What is in the picture?", "Two blue circles."
TEXT = {"visual_encoder_name_or_path": None}


def write_rows(path: Path, count: int, question: str = QUESTION) -> list[dict[str, Any]]:
    """Write rows; return them as a config's datasets."""
    with path.open("w") as file:
        for i in range(count):
            texts = {"human": question.format(i), "gpt": ANSWER}
            turns = [{"from": role, "value": text} for role, text in texts.items()]
            file.write(json.dumps({"id": i, "conversations": turns}) + "\n")
    return [{"data_path": str(path)}]


@pytest.mark.parametrize(
    ("family", "template"), [("vicuna", "vicuna_v1.1"), ("qwen2", "chatml"), ("vicuna", "raw")]
)
def test_a_learnt_answer_ends(
    parts: Path, tmp_path: Path, family: str, template: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The end token is trained: said in full, and then nothing more."""
    model = {"llm_name_or_path": str(parts / family), "prompt_template": template}
    rows = {"datasets": write_rows(tmp_path / "rows.jsonl", 4), "freeze_llm": False}
    work = run(tmp_path, parts, **TEXT, **model, **rows, max_epochs=40, lr=5e-3, log_interval=80)
    capsys.readouterr()
    words = ["chat", str(work / "iter_80.pth"), "--prompt", QUESTION, "--json"]
    assert command([*words, "--device", "cpu"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["answer"].strip(), said["finish"]) == (ANSWER, "stop")


def test_lora_trains_its_factors_alone(parts: Path, tmp_path: Path) -> None:
    rank, targets = 4, ["q_proj", "v_proj"]
    lora = {"llm_lora": {"r": rank, "lora_alpha": 8, "target_modules": targets}, "lr": 1e-2}
    model = {"llm_name_or_path": str(parts / "vicuna"), "prompt_template": "vicuna_v1.1"}
    rows = {"datasets": write_rows(tmp_path / "rows.jsonl", 6)}
    settings = load_settings(str(write_config(tmp_path, parts, **TEXT, **model, **lora, **rows)))
    whole, trained = sizes(build_model(settings))
    width, layers = 32, 2  # of the tiny model, whose q and v are both 32 x 32
    assert trained == layers * len(targets) * rank * (width + width)
    before = {path.name: path.read_bytes() for path in (parts / "vicuna").iterdir()}
    work = run(tmp_path, parts, **TEXT, **model, **lora, **rows)
    state = load(work / "iter_3.pth")["state_dict"]
    assert sum(tensor.numel() for tensor in state.values()) == trained < whole
    assert all(tensor.any() for name, tensor in state.items() if "lora_B" in name)
    assert {path.name: path.read_bytes() for path in (parts / "vicuna").iterdir()} == before


def test_frozen_weights_keep_their_bits(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Any] = []
    built = build_model

    def remembered(settings: Any) -> Any:
        model = built(settings)
        frozen = {n: p for n, p in model.named_parameters() if not p.requires_grad}
        kept.extend((p, p.detach().clone()) for p in frozen.values())
        return model

    monkeypatch.setattr("llava_tools.train.run.build_model", remembered)
    rows = {"datasets": write_rows(tmp_path / "rows.jsonl", 6)}
    run(tmp_path, parts, **TEXT, **rows, llm_lora={"r": 4}, lr=1e-2)
    assert kept and all(torch.equal(now, then) for now, then in kept)


def test_streamed_rows_leave_nothing_behind(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FastChat's lazy data set keeps every row that it has tokenised."""
    monkeypatch.setenv("LLAVA_TOOLS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "UP_FRONT_BYTES", 0)
    rows = {
        "datasets": write_rows(tmp_path / "rows.jsonl", 400, QUESTION + " {} " + "cat " * 100),
        "max_length": 512,
    }
    settings = load_settings(str(write_config(tmp_path, parts, **TEXT, **rows, llm_lora={"r": 4})))
    dataset = build_dataset(settings, build_tokenizer(settings), None)
    assert not dataset.lengths_exact
    for i in range(50):
        _ = dataset[i]
    gc.collect()
    tracemalloc.start()
    bytes_read = sum(dataset[i].input_ids.nbytes for i in range(50, 400))
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert bytes_read > 300_000 and grown < bytes_read / 10
