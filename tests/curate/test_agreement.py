"""Scores and choices are those of Cherry_LLM's scripts, which are told here with their faults."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from llava_tools.cli.entry import run
from llava_tools.model.load import load_tokenizer
from tests.curate.conftest import alpaca_rows
from tests.curate.test_scores import prompt_of

MAX_LENGTH = 165  # some answers are cut, and one prompt leaves no room
PREFIX = "### Response:"
ROWS = [row | {"input": row.get("input", "")} for row in alpaca_rows(40)]  # it needs the key
BARE = [row | {"input": ""} for row in ROWS]


@dataclass
class Scripts:
    """`data_analysis` (cherry mode) and `data_by_IFD`, by sections 1.3 to 1.5, row after row."""

    folder: Path
    template: str

    def __post_init__(self) -> None:
        self.tokenizer = load_tokenizer(self.folder)
        self.model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float64).eval()
        self.extra = len(self.ids(PREFIX))  # the constant: LLaMA's 4

    def ids(self, text: str) -> list[int]:
        bos = self.tokenizer.bos_token_id
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids if bos is None else [bos, *ids]

    def texts(self, row: dict[str, Any], *, second: bool) -> tuple[str, int]:
        """The prompt, and its tokens as they are counted: of `wiz`, the bare instruction's.

        The second script leaves the input of `wiz` out.
        """
        context = "" if second and self.template == "wiz" else row["input"]
        prompt = prompt_of(self.template, row["instruction"], context)
        counted = row["instruction"] if self.template == "wiz" else prompt
        return prompt, min(len(self.ids(counted)), MAX_LENGTH)

    @torch.no_grad()
    def one_pass(self, before: str, answer: str, length: int) -> tuple[float, list[float]]:
        """The answer's perplexity, and the loss of every token but the first."""
        ids = self.ids(before + answer)[:length]
        logs = self.model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
        losses = [-float(logs[i - 1, ids[i]]) for i in range(1, len(ids))]
        scored = losses[len(self.ids(before)) - 1 :]
        return math.exp(sum(scored) / len(scored)) if scored else math.nan, losses

    def data_analysis(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        saved: list[dict[str, Any]] = []
        for row in rows:
            prompt, count = self.texts(row, second=False)
            room = MAX_LENGTH - count
            if room <= 0:
                saved.append({"ppl": [0, 0, 0], "token_loss": [[], [], []]})
                continue
            alone = self.one_pass(PREFIX, row["output"], room + self.extra)
            asked = self.one_pass(prompt, row["output"], MAX_LENGTH)
            both = alone, asked
            saved.append(
                {"ppl": [0, *(p for p, _ in both)], "token_loss": [[], *(t for _, t in both)]}
            )
        return saved

    def ratio(self, row: dict[str, Any], saved: dict[str, Any]) -> float | None:
        """The IFD by the second script's own slices of what the first one saved."""
        prompt, count = self.texts(row, second=True)
        room = MAX_LENGTH - count
        if room <= 0:
            return None
        lengths, means = [], []
        for text, before, end, losses in (
            (PREFIX + row["output"], PREFIX, room + self.extra, saved["token_loss"][1]),
            (prompt + row["output"], prompt, MAX_LENGTH, saved["token_loss"][2]),
        ):
            start, stop = len(self.ids(before)), min(len(self.ids(text)), end)
            part = losses[start - 1 : max(stop - 1, 0)]
            lengths.append(stop - start)
            means.append(sum(part) / len(part) if part else math.nan)
        if min(lengths) <= 0 or count + lengths[0] > MAX_LENGTH:
            return None
        return means[1] / means[0]

    def data_by_ifd(
        self, rows: list[dict[str, Any]], saved: list[dict[str, Any]], share: float
    ) -> list[int]:
        ratios = [self.ratio(*pair) for pair in zip(rows, saved, strict=True)]
        kept = sorted((r, i) for i, r in enumerate(ratios) if r is not None and not r > 1)
        return sorted(i for _, i in kept[-int(len(kept) * share) :])  # of none: all of them


@pytest.fixture(scope="module")
def model(parts: Path) -> Path:
    return parts / "vicuna"


def score(model: Path, folder: Path, rows: list[dict[str, Any]], template: str) -> list[Any]:
    (folder / "rows.json").write_text(json.dumps(rows))
    data, out = str(folder / "rows.json"), str(folder / "s.jsonl")
    options = ["--template", template, "--max-length", str(MAX_LENGTH), "--max-dropped", "1"]
    assert run(["curate", "ifd", str(model), data, out, *options]) == 0
    return [json.loads(line) for line in (folder / "s.jsonl").read_text().splitlines()[1:]]


def chosen(folder: Path, scores: str, share: float, *more: str) -> list[Any]:
    options = ["--top", str(share), "--max-dropped", "1", "--overwrite", *more]
    paths = [str(folder / name) for name in (scores, "rows.json", "out.json")]
    assert run(["curate", "select", *paths, *options]) == 0
    found: list[Any] = json.loads((folder / "out.json").read_text())
    return found


@pytest.mark.parametrize(("template", "rows"), [("alpaca", ROWS), ("wiz", BARE)])
def test_what_the_scripts_choose_is_chosen(
    template: str, rows: list[dict[str, Any]], model: Path, tmp_path: Path
) -> None:
    """From our scores, and from the `.pt` that they save."""
    scripts = Scripts(model, template)
    saved = scripts.data_analysis(rows)
    torch.save(saved, tmp_path / "s.pt")
    found = score(model, tmp_path, rows, template)
    for row, record, one in zip(rows, found, saved, strict=True):
        wanted = scripts.ratio(row, one)
        assert record.get("ifd_loss") == (wanted if wanted is None else pytest.approx(wanted, 1e-5))
    reasons = {record.get("reason") or record["ifd_loss"] > 1 for record in found}
    assert template != "alpaca" or reasons == {True, False, "prompt_too_long"}
    for share in (0.1, 0.34, 1.0):
        wanted_rows = [rows[i] for i in scripts.data_by_ifd(rows, saved, share)]
        assert chosen(tmp_path, "s.jsonl", share) == wanted_rows
        assert chosen(tmp_path, "s.pt", share, "--start-idx", "0") == wanted_rows


def test_bug_1_moves_the_answers_of_wiz_rows_with_an_input_and_no_others(
    model: Path, tmp_path: Path
) -> None:
    scripts = Scripts(model, "wiz")
    short = [row | {"instruction": row["instruction"][:20]} for row in ROWS]  # none is cut
    found = score(model, tmp_path, short, "wiz")
    for row, record, saved in zip(short, found, scripts.data_analysis(short), strict=True):
        asked, alone = math.log(saved["ppl"][2]), math.log(saved["ppl"][1])
        assert record["ifd_loss"] == pytest.approx(asked / alone, 1e-5)  # the first script's
        same = scripts.ratio(row, saved) == pytest.approx(record["ifd_loss"], 1e-5)
        assert same == (not row["input"])


def test_bug_1_scores_more_tokens_of_long_wiz_rows_without_their_question(
    model: Path, tmp_path: Path
) -> None:
    """We score the same tokens twice; a `.pt` of theirs keeps their choice."""
    scripts = Scripts(model, "wiz")
    rows = [row | {"output": row["output"] * (1 + 6 * (i % 2))} for i, row in enumerate(BARE)]
    saved = scripts.data_analysis(rows)
    found = score(model, tmp_path, rows, "wiz")
    for row, record, one in zip(rows, found, saved, strict=True):
        same = scripts.ratio(row, one) == pytest.approx(record["ifd_loss"], 1e-6)
        assert same == ("answer_cut" not in record.get("flags", ()))
    assert {len(record.get("flags", ())) for record in found} == {0, 1}
    torch.save(saved, tmp_path / "s.pt")
    wanted = [rows[i] for i in scripts.data_by_ifd(rows, saved, 0.3)]
    assert chosen(tmp_path, "s.pt", 0.3, "--start-idx", "0") == wanted


def test_bug_4_of_no_row_the_scripts_take_all(model: Path, tmp_path: Path) -> None:
    scripts = Scripts(model, "wiz")
    saved = scripts.data_analysis(BARE[:8])
    score(model, tmp_path, BARE[:8], "wiz")
    assert len(scripts.data_by_ifd(BARE[:8], saved, 0.01)) > 1
    assert chosen(tmp_path, "s.jsonl", 0.01) == []
