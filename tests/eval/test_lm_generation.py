"""`eval lm` on what a model says: loops over plain transformers beside lm-eval's filters."""

from __future__ import annotations

import re
import shutil
import string
from pathlib import Path

import pytest
import torch

from llava_tools.model.load import load_llm, load_tokenizer
from tests.eval.lm_tasks_local import run, teach, write_task

pytest.importorskip("lm_eval")

# What is asked, what the model will have learnt to say, and the right answer.
SUMS = [
    ("one?", " 9 and 9 are 18\n#### 18", "so it is 18\n#### 18"),
    ("two?", " so it is $1,234.", "#### 1,234"),
    ("three?", " #### 5 and then 7", "#### 5"),
    ("four?", " none", "#### 3"),
    ("five?", " 12 or 60", "#### 60"),
]
NAMES = [
    ("red or blue", " THE Red square, or not", ["red square."]),
    ("cat or dog", " a cat!\nno", ["dog", "A cat"]),
    ("six or seven", " seven cats", ["seven"]),
]


@pytest.fixture(scope="module")
def taught(wide_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that has learnt these answers by heart."""
    folder = tmp_path_factory.mktemp("taught") / "model"
    shutil.copytree(wide_llm, folder)
    texts = [(f"Question: {q}\nAnswer:", said) for q, said, _ in SUMS]
    texts += [(f"Question: {q}?\nAnswer:", said) for q, said, _ in NAMES]
    texts += [(f"Answer these questions:\n\nQ: {q}?\nA:", said) for q, said, _ in NAMES]
    return teach(folder, [(asked, said.strip()) for asked, said in texts])


def said(folder: Path, prompt: str, ends: tuple[str, ...]) -> str:
    """What the model says, one token after the other, up to the first of the ends."""
    model = load_llm(str(folder), dtype=torch.float32).eval()
    tokenizer = load_tokenizer(folder)
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    with torch.no_grad():
        for _ in range(64):
            following = int(model(torch.tensor([ids])).logits[0, -1].argmax())
            if following == tokenizer.eos_token_id:
                break
            ids.append(following)
    text = tokenizer.decode(ids[start:], skip_special_tokens=True)
    return min((text.split(end)[0] for end in ends), key=len)


def test_gsm8k_by_the_strict_and_the_flexible_rule(taught: Path, tmp_path: Path) -> None:
    rows = [{"question": q, "answer": right} for q, _, right in SUMS]
    write_task(tmp_path, "gsm8k", rows)

    def number(text: str | None) -> str | None:
        return None if text is None else text.replace(",", "").replace("$", "").removesuffix(".")

    strict = flexible = 0
    for row in rows:
        prompt = f"Question: {row['question']}\nAnswer:"
        answer = said(taught, prompt, ("Question:", "</s>", "<|im_end|>"))
        right = number(row["answer"].split("#### ")[-1])
        marked = re.search(r"#### (-?[0-9.,]+)", answer)
        strict += number(marked[1] if marked else None) == right
        numbers = re.findall(r"-?[$0-9.,]{2,}|-?[0-9]+", answer)
        flexible += number(numbers[-1] if numbers else None) == right
    assert 0 < strict < flexible < 5  # the answers differ as they were taught to
    found = run(taught, "gsm8k", tmp_path, tmp_path / "work")
    assert found["exact_match,strict-match"] == strict / 5
    assert found["exact_match,flexible-extract"] == flexible / 5


@pytest.mark.parametrize("task", ["triviaqa", "nq_open"])
def test_short_answers_match_exactly_but_for_case_marks_and_articles(
    taught: Path, tmp_path: Path, task: str
) -> None:
    aliases = [{"question": q, "answer": {"aliases": right}} for q, _, right in NAMES]
    lists = [{"question": q, "answer": right} for q, _, right in NAMES]
    write_task(tmp_path, task, aliases if task == "triviaqa" else lists)

    def plain(text: str) -> str:
        text = re.sub(r"\b(?:The |the |An |A |a |an )", "", text) if task == "nq_open" else text
        return "".join(c for c in text.lower() if c not in string.punctuation)

    head = (
        "Question: {}?\nAnswer:" if task == "triviaqa" else "Answer these questions:\n\nQ: {}?\nA:"
    )
    right = 0
    for question, _, answers in NAMES:
        answer = said(taught, head.format(question), ("\n", ".", ",")).strip()
        right += any(plain(answer) == plain(one) for one in answers)
    assert 0 < right < 3
    found = run(taught, task, tmp_path, tmp_path / "work")
    assert found["exact_match,remove_whitespace"] == pytest.approx(right / 3)
