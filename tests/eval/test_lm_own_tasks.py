"""RACE and XSum, whose task files are ours: slow loops by the rules, beside lm-eval's numbers."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from llava_tools.errors import UserError
from llava_tools.eval.lm import Options, evaluate
from llava_tools.eval.lm_harness.xsum import ROWS, first_rows
from llava_tools.model.load import load_llm, load_tokenizer
from tests import tiny
from tests.eval.lm_tasks_local import Row, teach, write_repo
from tests.eval.test_lm_scoring import score

pytest.importorskip("lm_eval")

WORDS = "cat dog red blue square circle one two three four picture user curious eight".split()
KINDS = ("middle", "high")


def words(first: int, count: int) -> str:
    return " ".join(WORDS[(first * 5 + 3 * k * k) % len(WORDS)] for k in range(count))


def question(number: int) -> Row:
    options = [words(number + k, 1 + k % 2) for k in range(4)]
    article = words(number, 12)
    return {"article": article, "question": f"{words(number, 3)}?", "options": options}


def asked_of(row: Row) -> str:
    """The prompt of a question by our task file, without its letter."""
    listed = "".join(f"{name}. {row['options'][k]}\n" for k, name in enumerate("ABCD"))
    return f"Article: {row['article']}\n\nQuestion: {row['question']}\n{listed}Answer:"


def summed_up(document: str) -> str:
    return f"Document: {document}\nSummarise the document in one sentence.\nSummary:"


DOCUMENTS = [words(number, 15) for number in range(4)]
SAID = ["a red cat", "two blue circles\nand more", "eight", "The curious user, one of three"]


@pytest.fixture(scope="module")
def taught(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that was told which letters and summaries to give."""
    folder = tmp_path_factory.mktemp("taught") / "model"
    shutil.copytree(parts / "llama3", folder)
    tiny.widen(folder, 2048)
    texts = [(asked_of(question(k)), " " + "BDAC"[k % 4]) for k in range(8)]
    texts += [(summed_up(d), f" {said}") for d, said in zip(DOCUMENTS, SAID, strict=True)]
    return teach(folder, texts, steps=150)


def run(model: Path, tasks: str, data: Path, work: Path, **options: Any) -> Any:
    given = Options(device="cpu", dtype="fp32", **options)
    return evaluate(model, tasks, work, data_root=data, options=given)["results"]


def chosen(model: Path, rows: list[Row]) -> list[str]:
    """The letter with the greatest likelihood behind each question."""
    llm, tokenizer = load_llm(str(model), dtype=torch.float32).eval(), load_tokenizer(model)
    letters = []
    for row in rows:
        logs = [score(llm, tokenizer, asked_of(row), f" {letter}") for letter in "ABCD"]
        letters.append("ABCD"[logs.index(max(logs))])
    return letters


def test_race_is_the_likelihood_of_the_letter(taught: Path, tmp_path: Path) -> None:
    rows = [question(number) for number in range(16)]
    said = chosen(taught, rows)
    assert len(set(said)) > 2  # it reads the question
    held = {"middle": rows[:8], "high": rows[8:]}
    right = {"middle": 7, "high": 4}  # what is wrong elsewhere has few chances to come out so
    for kind, letters in (("middle", said[:8]), ("high", said[8:])):
        for number, (row, letter) in enumerate(zip(held[kind], letters, strict=True)):
            wrong = "ABCD"[("ABCD".index(letter) + 1) % 4]
            row["answer"] = letter if number < right[kind] else wrong
        write_repo(tmp_path / "data", "ehovy/race", kind, test=held[kind])
    found = run(taught, "race_middle,race_high", tmp_path / "data", tmp_path / "work")
    for kind in KINDS:
        assert found[f"race_{kind}"]["acc,none"] == right[kind] / 8


def rouge(summary: str, reference: str) -> float:
    """F-measure of the words that both have, each as often as in the one with fewer."""
    said, right = (Counter(re.findall("[a-z0-9]+", t.lower())) for t in (summary, reference))
    shared = sum(min(said[word], right[word]) for word in said)
    if not shared:
        return 0.0
    precision, recall = shared / sum(said.values()), shared / sum(right.values())
    return 2 * precision * recall / (precision + recall)


def summary_of(llm: Any, tokenizer: Any, document: str) -> str:
    """One token after the other, to the end of the line or of 100 tokens."""
    ids: list[int] = tokenizer(summed_up(document))["input_ids"]
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + 100:
            following = int(llm(torch.tensor([ids])).logits[0, -1].argmax())
            if following == tokenizer.eos_token_id:
                break
            ids.append(following)
            if "\n" in tokenizer.decode(ids[start:]):
                break
    text: str = tokenizer.decode(ids[start:], skip_special_tokens=True)
    return text.split("\n")[0].strip()


def test_xsum_is_the_rouge_of_the_first_line(taught: Path, tmp_path: Path) -> None:
    llm, tokenizer = load_llm(str(taught), dtype=torch.float32).eval(), load_tokenizer(taught)
    rows, wanted = [], []
    for number, document in enumerate(DOCUMENTS):
        said = summary_of(llm, tokenizer, document)
        heard = " ".join(re.findall("[A-Za-z0-9]+", said)[: 2 * number])
        row = {"document": document, "summary": f"{heard.upper()}, a cat; {words(number, 4)}."}
        wanted.append(rouge(said, row["summary"]))
        rows.append(row)
    assert len(set(wanted)) > 2
    write_repo(tmp_path / "data", "EdinburghNLP/xsum", "default", test=rows)
    found = run(taught, "xsum_rouge1", tmp_path / "data", tmp_path / "work", batch_size=3)
    assert found["xsum_rouge1"]["rouge1,none"] == pytest.approx(sum(wanted) / 4, abs=1e-9)


def test_xsum_takes_the_first_thousand_rows() -> None:
    from datasets import Dataset

    rows = [{"document": f"{number}", "summary": "x"} for number in range(ROWS + 2)]
    taken = first_rows(Dataset.from_list(rows))
    assert (len(taken), taken[0]["document"], taken[-1]["document"]) == (1000, "0", "999")
    assert len(first_rows(Dataset.from_list(rows[:3]))) == 3


ROW = {**question(0), "answer": "B"}


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("race_high", ROW | {"answer": "E"}, "row 2 of RACE has 4 options and the answer 'E'"),
        ("race_high", ROW | {"options": ["a"]}, "row 2 of RACE has 1 options"),
        ("xsum_rouge1", {"document": "x", "summary": None}, "row 2 of XSum has no summary"),
        ("xsum_rouge1", {"document": " ", "summary": "x"}, "row 2 of XSum has no document"),
        ("race_middle", ROW, "Couldn't reach 'ehovy/race'|Couldn't find"),
    ],
)
def test_bad_rows_are_told_before_the_model_loads(
    tmp_path: Path, task: str, row: Row, message: str
) -> None:
    good: Row = ROW if "race" in task else {"document": "x", "summary": "y"}
    name = "ehovy/race" if "race" in task else "EdinburghNLP/xsum"
    if task == "race_middle":  # its data is not there
        name = "some/other"
    write_repo(tmp_path / "data", name, "high" if "race" in task else "default", test=[good, row])
    with pytest.raises(UserError, match=f"'{task}' cannot be loaded: .*({message})") as caught:
        run(tmp_path / "no model", task, tmp_path / "data", tmp_path / "work")
    assert "--data-root" in caught.value.hint


def test_a_missing_folder_of_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no folder"):
        run(tmp_path, "race_high", tmp_path / "gone", tmp_path / "work")


def test_changed_rows_are_read_anew_and_do_not_go_on(
    taught: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Data sets of the same name under two folders, or changed in place, are two data sets."""
    data, work = tmp_path / "data", tmp_path / "work"
    letter = chosen(taught, [question(1)])[0]
    for answer in (letter, "A" if letter != "A" else "B"):
        row = question(1) | {"answer": answer}
        write_repo(data, "ehovy/race", "high", test=[row] * (1 + (answer == letter)))
        if answer == letter:
            found = run(taught, "race_high", data, work)
            assert found["race_high"]["acc,none"] == 1
            shutil.rmtree(data)
    with pytest.raises(UserError, match="is of another run: data was"):
        run(taught, "race_high", data, work)
    given = Options(device="cpu", dtype="fp32")
    report = evaluate(
        *(taught, "race_high", tmp_path / "more"), data_root=data, num_fewshot=3, options=given
    )
    assert report["results"]["race_high"]["acc,none"] == 0
    assert report["n-shot"]["race_high"] == 0 and "it keeps 0 shots" in caplog.text
