"""Scores equal those of a slow reference, one row at a time, whatever the batches and shards."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from llava_tools.curate.ratios import ratios
from llava_tools.curate.score_log import read_log
from llava_tools.curate.scorer import Options, Scorer, open_scorer
from llava_tools.curate.scoring import score_file
from llava_tools.data.images import open_image
from llava_tools.data.render import render_prompt
from llava_tools.data.sample import Turn
from llava_tools.data.templates import TEMPLATES
from llava_tools.model.load import load_assistant, load_tokenizer
from tests.curate.conftest import alpaca_rows

MAX_LENGTH = 165  # some answers are cut, and one prompt leaves no room
BEFORE = {
    "alpaca": "### Response:",
    "wiz": "### Response:",
    "wiz-vic": "### Response:",
    "vicuna": "ASSISTANT:",
}


def prompt_of(template: str, instruction: str, context: str) -> str:
    """Return the prompt as spec and sources write it."""
    if template == "alpaca" and context:
        return (
            "Below is an instruction that describes a task, paired with an input that provides "
            "further context. Write a response that appropriately completes the request.\n\n"
            f"### Instruction:\n{instruction}\n\n### Input:\n{context}\n\n### Response:"
        )
    if template == "alpaca":
        return (
            "Below is an instruction that describes a task. Write a response that appropriately "
            f"completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:"
        )
    if template == "vicuna":
        block = f"\nInput:\n{context}" if context else ""
        return (
            "A chat between a curious user and an artificial intelligence assistant. The assistant "
            "gives helpful, detailed, and polite answers to the user's questions. "
            f"USER: {instruction}{block} ASSISTANT:"
        )
    block = f"\n{'Input:' if template == 'wiz' else ''}{context}" if context else ""
    return f"{instruction}{block}\n\n### Response:"


class Reference:
    """Cherry_LLM's scores as the specification tells them: one row, one pass, one token a time."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = load_tokenizer(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()

    def ids(self, text: str) -> list[int]:
        bos = self.tokenizer.bos_token_id
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids if bos is None else [bos, *ids]

    @torch.no_grad()
    def losses(self, ids: list[int], start: int, end: int) -> list[float]:
        """Return the loss of each token of ids[start:end]."""
        logits = self.model(torch.tensor([ids[:end]])).logits[0].double()
        logs = logits.log_softmax(dim=-1)
        return [-float(logs[i - 1, ids[i]]) for i in range(start, end)]

    def score(self, template: str, row: dict[str, Any]) -> dict[str, Any]:
        prompt = prompt_of(template, row["instruction"], row.get("input", ""))
        answer, before = row["output"], BEFORE[template]
        n_prompt = min(len(self.ids(prompt)), MAX_LENGTH)
        asked = self.ids(prompt + answer)[:MAX_LENGTH]
        alone = self.ids(before + answer)[: MAX_LENGTH - n_prompt + len(self.ids(before))]
        starts = len(self.ids(prompt)), len(self.ids(before))
        if MAX_LENGTH - n_prompt <= 0:
            return {"reason": "prompt_too_long"}
        assert asked[starts[0] :] == alone[starts[1] :]  # the same tokens in both passes
        found = [
            self.losses(ids, s, len(ids)) for ids, s in zip((asked, alone), starts, strict=True)
        ]
        loss, direct = (sum(part) / len(part) for part in found)
        return {
            "tokens": len(found[0]),
            "loss": loss,
            "direct_loss": direct,
            "ppl": math.exp(loss),
            "direct_ppl": math.exp(direct),
            "ifd_loss": loss / direct,
            "ifd_ppl": math.exp(loss) / math.exp(direct),
        }


def scores(scorer: Scorer, data: Path, out: Path, **changes: Any) -> list[dict[str, Any]]:
    scorer = replace(scorer, options=replace(scorer.options, **changes))
    return read_log(score_file(scorer, "model", data, out).path)[1]


def check(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    assert len(found) == len(wanted)
    for record, row in zip(found, wanted, strict=True):
        assert record.get("reason") == row.get("reason")
        for key, value in row.items():
            assert record[key] == (pytest.approx(value, rel=1e-5) if key != "reason" else value)


@pytest.mark.parametrize(
    ("family", "template"),
    [("vicuna", "alpaca"), ("vicuna", "wiz"), ("vicuna", "vicuna"), ("vicuna", "wiz-vic")]
    + [("qwen2", "alpaca"), ("llama3", "vicuna"), ("gemma2", "alpaca")],
)
def test_scores_are_those_of_the_reference(
    family: str, template: str, parts: Path, alpaca: Path, tmp_path: Path
) -> None:
    options = Options(template=template, max_length=MAX_LENGTH)
    found = scores(open_scorer(str(parts / family), options), alpaca, tmp_path / "s.jsonl")
    reference = Reference(parts / family)
    check(found, [reference.score(template, row) for row in alpaca_rows()])
    reasons = [record.get("reason") for record in found]
    assert template != "alpaca" or family != "vicuna" or "prompt_too_long" in reasons
    flags = {flag for record in found for flag in record.get("flags", ())}
    assert "answer_cut" in flags or template != "alpaca"


def test_a_token_over_the_seam_belongs_to_the_prompt(parts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(parts / "llama3", folder)
    state = json.loads((folder / "tokenizer.json").read_text())
    # Its own tokens end where those of the model do, which has room for three more.
    state["model"]["vocab"][':"'] = Tokenizer.from_str(json.dumps(state)).get_vocab_size()
    state["model"]["merges"].insert(0, [":", '"'])
    (folder / "tokenizer.json").write_text(json.dumps(state))
    assert ':"' in Tokenizer.from_file(str(folder / "tokenizer.json")).encode('a:"b').tokens
    data = tmp_path / "rows.json"
    rows = [
        {"instruction": "cat?", "output": '"dog" and cat'},
        {"instruction": "cat?", "output": '"'},
    ]
    data.write_text(json.dumps(rows))
    options = Options(template="alpaca", max_length=MAX_LENGTH)
    found = scores(open_scorer(str(folder), options), data, tmp_path / "s.jsonl")
    check(found[:1], [Reference(folder).score("alpaca", rows[0])])
    assert found[0]["flags"] == ["merged"] and found[1]["reason"] == "nothing_scored"


@pytest.mark.parametrize("padded", [False, True])
def test_batches_shards_and_order_change_nothing(
    padded: bool, parts: Path, alpaca: Path, tmp_path: Path
) -> None:
    scorer = open_scorer(str(parts / "vicuna"), Options(template="alpaca", max_length=MAX_LENGTH))
    assert scorer.model.padding_free
    scorer.model.padding_free = not padded
    whole = {r["id"]: r for r in scores(scorer, alpaca, tmp_path / "whole.jsonl")}
    turned = tmp_path / "turned.json"
    turned.write_text(json.dumps(json.loads(alpaca.read_text())[::-1]))
    runs = [
        scores(scorer, alpaca, tmp_path / "one.jsonl", batch_tokens=1),
        scores(scorer, turned, tmp_path / "turned.jsonl", batch_tokens=700),
        [
            record
            for part in (1, 2, 3)
            for record in scores(scorer, alpaca, tmp_path / "s.jsonl", shard=(part, 3))
        ],
    ]
    assert (tmp_path / "s-2-of-3.jsonl").is_file()
    for run in runs:
        assert len(run) == len(whole)
        for record in run:
            same = {k: v for k, v in whole[record["id"]].items() if k != "row"}
            assert {k: v for k, v in record.items() if k != "row"} == {
                k: pytest.approx(v, rel=1e-5) if isinstance(v, float) else v
                for k, v in same.items()
            }


def test_dialogues_are_scored_at_every_answer(seeing: Path, parts: Path, tmp_path: Path) -> None:
    """With images: behind question and image, behind the question, and behind nothing."""
    found = scores(
        open_scorer(str(seeing), Options(image_folder=str(parts / "images"))),
        parts / "llava.json",
        tmp_path / "s.jsonl",
    )
    assistant = load_assistant(seeing)
    tokenizer, template = assistant.tokenizer, TEMPLATES["phi3_chat"]

    @torch.no_grad()
    def losses(ids: list[int], answer: list[int], pixels: Any = None) -> list[float]:
        logits = assistant.model.logits([*ids, *answer], pixels).double().log_softmax(dim=-1)
        begin = len(logits) - len(answer) - 1
        return [-float(logits[begin + i, token]) for i, token in enumerate(answer)]

    for row, record in zip(json.loads((parts / "llava.json").read_text()), found, strict=True):
        messages = [t["value"] for t in row["conversations"]]
        sums: dict[str, list[float]] = {"loss": [], "direct_loss": [], "text_loss": []}
        for k in range(1, len(messages), 2):
            answer = tokenizer(messages[k], add_special_tokens=False)["input_ids"]
            history = [
                Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(messages[:k])
            ]
            pixels = None
            if "image" in row:
                pixels = assistant.pixels([open_image(parts / "images" / row["image"])])
            blind = [replace(t, text=t.text.replace("<image>\n", "")) for t in history]
            alone = tokenizer("<s><|assistant|>\n", add_special_tokens=False)["input_ids"]
            sums["loss"] += losses(render_prompt(history, template, tokenizer), answer, pixels)
            sums["text_loss"] += losses(render_prompt(blind, template, tokenizer), answer)
            sums["direct_loss"] += losses(alone, answer)
        wanted = {key: sum(part) / len(part) for key, part in sums.items()}
        assert record["tokens"] == len(sums["loss"])
        for key in ("loss", "direct_loss", *(["text_loss"] if "image" in row else [])):
            assert record[key] == pytest.approx(wanted[key], rel=1e-5), (row, key)
        if "image" in row:
            assert record["ifd_image"] == pytest.approx(wanted["loss"] / wanted["text_loss"])
        else:
            assert "ifd_image" not in record


def test_a_model_that_knows_nothing_has_an_ifd_of_one(
    parts: Path, alpaca: Path, tmp_path: Path
) -> None:
    scorer = open_scorer(str(parts / "vicuna"), Options(template="alpaca"))
    torch.nn.init.zeros_(scorer.model.llm.lm_head.weight)
    for record in scores(scorer, alpaca, tmp_path / "s.jsonl"):
        assert record["ifd_loss"] == pytest.approx(1) and record["ifd_ppl"] == pytest.approx(1)
        assert record["ppl"] == pytest.approx(scorer.model.llm.config.vocab_size)


@pytest.mark.parametrize("template", ["alpaca", "wiz", "chat:phi3_chat"])
@pytest.mark.parametrize("padded", [False, True])
def test_prompts_are_embedded_as_the_mean_of_their_hidden_states(
    template: str, padded: bool, parts: Path, alpaca: Path, tmp_path: Path
) -> None:
    folder = parts / ("phi3" if ":" in template else "vicuna")
    scorer = open_scorer(str(folder), Options(mode="pre", template=template, batch_tokens=900))
    scorer.model.padding_free = not padded
    found = score_file(scorer, "model", alpaca, tmp_path / "s.jsonl")
    records = read_log(found.path)[1]
    vectors = np.load(tmp_path / "s.npy")
    reference = Reference(folder)
    assert vectors.shape == (len(alpaca_rows()), 32)
    for row, record in zip(alpaca_rows(), records, strict=True):
        instruction, context = row["instruction"], row.get("input", "")
        if ":" in template:
            question = f"{instruction}\nInput:\n{context}" if context else instruction
            turns = [Turn("user", question)]
            ids = render_prompt(turns, TEMPLATES["phi3_chat"], reference.tokenizer)
        else:
            text = instruction if template == "wiz" else prompt_of(template, instruction, context)
            ids = reference.ids(text)
        with torch.no_grad():
            output = reference.model(torch.tensor([ids]), output_hidden_states=True)
        wanted = output.hidden_states[-1][0].mean(dim=0)
        assert vectors[record["vector"]] == pytest.approx(wanted.numpy(), rel=1e-4, abs=1e-5)
        loss = sum(reference.losses(ids, 1, len(ids))) / (len(ids) - 1)
        assert record["ppl"] == pytest.approx(math.exp(loss), rel=1e-4)


def test_what_no_number_holds_is_left_open() -> None:
    found = ratios(1000.0, 2.0, 0.0)
    assert (found["loss"], found["ifd_loss"]) == (1000.0, 500.0)
    assert found["ppl"] is found["ifd_ppl"] is found["ifd_image"] is None
    assert set(ratios(math.nan, math.inf).values()) == {None}
