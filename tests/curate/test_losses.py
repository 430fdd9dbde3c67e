"""What scoring costs, counted: passes, positions, rows of logits, tokenisations, and waiting."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llava_tools.cli.entry import run
from llava_tools.curate import scoring
from llava_tools.curate.losses import span_losses
from llava_tools.curate.score_log import Record, read_log
from llava_tools.curate.scorer import Options, Scorer, open_scorer
from llava_tools.curate.scores import read_scores
from llava_tools.curate.scoring import score_file
from llava_tools.curate.streams import Stream
from llava_tools.data.codec import Codec

ROOMY = Options(template="alpaca", batch_tokens=10**6)


class Counted:
    """Calls of a model's decoder and head while rows are scored."""

    def __init__(self, scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.positions: list[int] = []
        self.logits = 0
        self.said: Counter[str] = Counter()
        llm = scorer.model.llm
        llm.get_decoder().register_forward_pre_hook(self._decode, with_kwargs=True)
        llm.get_output_embeddings().register_forward_pre_hook(self._head)
        monkeypatch.setattr(Codec, "encode", self._encode(Codec.encode))

    def _decode(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        assert not kwargs.get("output_hidden_states") and not kwargs.get("use_cache")
        self.positions.append(kwargs["inputs_embeds"].shape[:2].numel())

    def _head(self, module: Any, args: Any) -> None:
        self.logits += args[0].shape[:-1].numel()

    def _encode(self, encode: Any) -> Any:
        return lambda codec, text: self.said.update([text]) or encode(codec, text)


def test_bugs_7_to_9_every_token_is_computed_once(
    parts: Path, alpaca: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pass over all rows with and without their questions; logits of answers' tokens alone.

    Cherry_LLM runs the model twice a row, over the vocabulary at every position, asks for all
    hidden states, and tokenises each prompt five times to score it and five to select it.
    """
    scorer = open_scorer(str(parts / "vicuna"), ROOMY)
    assert scorer.model.padding_free
    counted = Counted(scorer, monkeypatch)
    found = score_file(scorer, "model", alpaca, tmp_path / "s.jsonl")
    records = [record for record in read_log(found.path)[1] if "tokens" in record]
    assert len(records) == 24
    opening = len(scorer.codec.bos + scorer.codec.encode("### Response:"))
    asked = sum(record["prompt_tokens"] + record["tokens"] for record in records)
    direct = sum(opening + record["tokens"] for record in records)
    merged = sum("merged" in record.get("flags", ()) for record in records)
    assert counted.positions == [pytest.approx(asked + direct, abs=2 * merged)]
    assert counted.logits == 2 * sum(record["tokens"] for record in records)
    prompts = {text: n for text, n in counted.said.items() if "### Instruction:" in text}
    assert len(prompts) == 48 and set(prompts.values()) == {1}  # alone, and with the answer


@pytest.mark.parametrize("plain", [True, False])
def test_weights_in_bf16_and_their_losses_in_fp32(
    plain: bool, parts: Path, alpaca: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtypes: set[torch.dtype] = set()
    original = torch.nn.functional.cross_entropy

    def seen(logits: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        dtypes.add(logits.dtype)
        return original(logits, *rest, **more)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", seen)
    made = []
    for dtype in ("fp32", "bf16"):
        scorer = open_scorer(str(parts / "vicuna"), replace(ROOMY, dtype=dtype))
        scorer.model.plain_head = plain
        found = score_file(scorer, "model", alpaca, tmp_path / f"{dtype}.jsonl")
        made.append([record["ifd_loss"] for record in read_log(found.path)[1]])
    assert dtypes == {torch.float32} and made[0] != made[1]
    assert made[1] == pytest.approx(made[0], rel=0.02)


# `item` of a tensor: the latter is what it is in inference mode.
FETCHES = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default)


class Waits(TorchDispatchMode):
    """Count the times that a number is fetched from the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += op in FETCHES
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("padded", [False, True])
def test_bug_9_the_device_is_not_waited_for_at_each_token(padded: bool, parts: Path) -> None:
    model = open_scorer(str(parts / "vicuna"), ROOMY).model
    model.padding_free = not padded
    found = []
    for length in (20, 80):
        streams = [Stream([1, *range(5, 4 + length)], ((3, length - 3),)) for _ in range(4)]
        with Waits() as waits:
            span_losses(model, streams, lambda _: (), 10**6)
        found.append(waits.count)
    assert found[0] == found[1] <= 8


def numbers(record: Record) -> Record:
    return {
        key: pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
        for key, value in record.items()
    }


@pytest.mark.parametrize("family", ["llama3", "vicuna"])
def test_a_pad_token_that_is_the_end_token_changes_nothing(
    family: str, parts: Path, alpaca: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(parts / family, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    end = config["eos_token"]
    rows = json.loads(alpaca.read_text())
    rows[0]["output"] += f" {end} and more {end}"
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    found = []
    for pad in (end, config["bos_token"]):
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": pad}))
        scorer = open_scorer(str(folder), replace(ROOMY, batch_tokens=900))
        scorer.model.padding_free = False
        out = tmp_path / f"{len(found)}.jsonl"
        found.append(read_log(score_file(scorer, "m", tmp_path / "rows.json", out).path)[1])
    assert found[0] == [numbers(record) for record in found[1]]


def test_two_processes_of_torchrun_score_what_one_does(
    parts: Path, alpaca: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do not speak to each other: what makes them two is torchrun's environment alone."""
    out, all_of_them = tmp_path / "s.jsonl", tmp_path / "all.jsonl"
    words = [str(parts / "vicuna"), str(alpaca), str(out), "--template", "alpaca"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert run(["curate", "ifd", *words, "--device", "cpu"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s-1-of-2.jsonl", "s-2-of-2.jsonl"]
    assert run(["curate", "merge-scores", str(out), str(all_of_them)]) == 0
    monkeypatch.setattr(scoring, "WINDOW", 7)
    scorer = open_scorer(str(parts / "vicuna"), Options(template="alpaca"))
    alone = score_file(scorer, str(parts / "vicuna"), alpaca, tmp_path / "one.jsonl").path
    (head, *merged), (whole, *records) = (
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in (all_of_them, alone)
    )
    assert head["fingerprint"] == whole["fingerprint"]
    assert merged == [numbers(record) for record in records]
    assert read_scores([out]).column("ifd_loss", 24).tolist() == [r["ifd_loss"] for r in merged]
