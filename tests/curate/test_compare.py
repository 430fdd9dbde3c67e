"""`curate compare`: metrics against slow oracles, the command, bad input."""

from __future__ import annotations

import json
import random
from itertools import combinations
from math import exp, log, sqrt
from pathlib import Path
from typing import Any

import pytest

from llava_tools.cli.entry import run
from llava_tools.curate.compare_metrics import bleu2, means, rouge
from llava_tools.curate.compare_rows import read_outputs, read_questions
from llava_tools.errors import UserError
from tests.fake_openai import Answer, FakeServer, fake_server
from tests.tiny import save_llm

WORDS = ["a", "b", "c", "d.", "e", "f.", "g"]


def oracle_rouge(answer: str, reference: str) -> dict[str, float]:
    """The package `rouge` 1.0.1 as the spec words it: sets, sentences at full stops."""
    said, wanted = ([s.split() for s in t.split(".") if s] for t in (answer, reference))
    flat = [[word for sentence in side for word in sentence or [""]] for side in (said, wanted)]
    found = {}
    for n in (1, 2):
        sets = [{tuple(side[i : i + n]) for i in range(len(side) - n + 1)} for side in flat]
        found[f"ROUGE-{n}"] = oracle_f(len(sets[0] & sets[1]), len(sets[0]), len(sets[1]))
    return found


def oracle_f(both: int, said: int, wanted: int) -> float:
    p, r = both / said if said else 0, both / wanted if wanted else 0
    return 2 * (p * r) / (p + r + 1e-8)


def test_rouge_n_counts_different_words_once() -> None:
    source = random.Random(0)
    for _ in range(300):
        pair = [" ".join(source.choices(WORDS, k=source.randint(1, 9))) for _ in "ab"]
        scores = rouge(pair[0], pair[1])
        assert scores is not None
        for name, value in oracle_rouge(pair[0], pair[1]).items():
            assert scores[name] == pytest.approx(value, abs=1e-12)


def test_rouge_l_of_one_sentence_is_the_longest_common_subsequence() -> None:
    source = random.Random(1)
    for _ in range(200):
        # Different words within a text, so that the union of words is as long as the subsequence.
        one, other = (source.sample("abcdefghij", source.randint(1, 7)) for _ in "ab")
        longest = max(
            k
            for k in range(min(len(one), len(other)) + 1)
            if set(combinations(one, k)) & set(combinations(other, k))
        )
        scores = rouge(" ".join(one), " ".join(other))
        assert scores is not None
        assert scores["ROUGE-L"] == pytest.approx(oracle_f(longest, len(one), len(other)))


def test_rouge_l_joins_the_sentences() -> None:
    # Values of the package `rouge` 1.0.1 itself.
    scores = rouge("the cat sat. a dog ran away", "a dog sat down. the cat ran. the end")
    assert scores is not None
    said, wanted = 7, 8
    assert scores["ROUGE-L"] == pytest.approx(oracle_f(6, said, wanted))


def test_bleu2_by_hand() -> None:
    assert bleu2("the the cat", "the cat sat down") == pytest.approx(
        exp(1 - 4 / 3) * sqrt(2 / 3 * 1 / 2)
    )
    assert bleu2("a b c", "a b c") == 1
    assert bleu2("", "a b") == bleu2("x y", "a b") == 0
    assert 0 < bleu2("b a", "a b") < 1e-100  # words shared, but no pair: NLTK's smallest float
    assert log(bleu2("a b x y z", "a b")) == pytest.approx(0.5 * (log(2 / 5) + log(1 / 4)))


def test_empty_texts_count_zero_for_bleu_and_not_for_rouge() -> None:
    found = means(["a b", "", " . "], ["a b", "a b", "a b"])
    assert found.metrics["BLEU-2"] == pytest.approx(1 / 3)
    assert found.metrics["ROUGE-1"] == pytest.approx(0.5, abs=1e-6)  # " . " has an empty word
    assert found.without_rouge == 1
    assert rouge("...", "a") is None


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture
def project(tmp_path: Path) -> Path:
    asked = [{"instruction": f"say {i}", "input": "", "output": f"word {i} end"} for i in range(6)]
    write(tmp_path / "data.json", asked)
    for name, said in (("a", "word 1 end"), ("b", "word 2 stop")):
        rows = [{"instruction": row["instruction"], "output": said} for row in asked]
        write(tmp_path / f"{name}.json", rows)
    return tmp_path


def command(folder: Path, *more: str) -> list[str]:
    sides = [str(folder / "a.json"), str(folder / "b.json")]
    where = ["--data", str(folder / "data.json"), "--work-dir", str(folder / "w")]
    return ["curate", "compare", *sides, *where, *more]


def test_the_command_writes_the_shape_of_compare_py(project: Path) -> None:
    assert run(command(project)) == 0
    report = json.loads((project / "w/eval_results.json").read_text())
    assert list(report)[:2] == ["metrics", "examples"]
    assert list(report["metrics"]) == ["base", "tuned"]
    assert list(report["metrics"]["base"]) == ["BLEU-2", "ROUGE-1", "ROUGE-2", "ROUGE-L"]
    keys = ["prompt", "reference", "instruction", "input", "base", "tuned"]
    assert [list(row) for row in report["examples"]] == [keys] * 5
    assert (project / "w/model_comparison.png").read_bytes().startswith(b"\x89PNG")
    assert report["metrics"]["base"]["BLEU-2"] > report["metrics"]["tuned"]["BLEU-2"]


def test_rows_are_drawn_from_the_seed(project: Path) -> None:
    draws = [
        [row.place for row in read_questions(project / "data.json", 3, seed).rows]
        for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2] and len(set(draws[0])) == 3


def judged_command(folder: Path, server: FakeServer, *more: str) -> list[str]:
    return command(folder, "--judge", "j", "--base-url", server.url, "--retries", "0", *more)


def test_verdicts_are_kept_and_never_asked_twice(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with fake_server(lambda body: "Output (b)") as server:
        for _ in range(2):
            assert run(judged_command(project, server, "--price-in", "1000")) == 0
    assert len(server.asked) == 12
    said = capsys.readouterr()
    assert "0 wins, 6 ties, 0 losses" in said.out and "6 contradictions" in said.out
    assert "cost 0.1200" in said.err and "12 of them kept from before" in said.err
    report = json.loads((project / "w/eval_results.json").read_text())
    assert report["judge"]["tie"] == 6 and len(report["judge"]["verdicts"]) == 6


def test_too_many_failures_end_with_two(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fake_server(lambda body: "Who knows") as server:
        assert run(judged_command(project, server)) == 2
    said = capsys.readouterr()
    assert "6 of 6 questions have no verdict, more than --max-failed 0.02" in said.err
    assert "12 x undecided" in said.out
    assert json.loads((project / "w/eval_results.json").read_text())["judge"]["failed"] == 6


def test_a_server_that_asks_to_wait_for_ever(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with fake_server(lambda body: Answer({"error": "slow"}, 429)) as server:
        assert run(judged_command(project, server, "--give-up-after", "3")) == 2
    said = capsys.readouterr().err
    assert "3 requests in a row failed" in said and " x rate_limited; the first: " in said
    assert (project / "w/eval_results.json").exists()  # the numbers that need no judge


def test_two_models_answer_for_themselves(project: Path) -> None:
    model = str(save_llm(project / "llm", "llama3"))
    arguments = ["curate", "compare", model, str(project / "a.json")]
    arguments += ["--data", str(project / "data.json"), "--work-dir", str(project / "w")]
    more = ["--max-new-tokens", "3", "--number", "2", "--prompt-template", "llama3_chat"]
    assert run([*arguments, *more]) == 0
    assert len((project / "w/outputs_base.jsonl").read_text().splitlines()) == 2
    before = (project / "w/eval_results.json").read_bytes()
    assert run([*arguments, *more]) == 0  # goes on with the answers that are there
    assert (project / "w/eval_results.json").read_bytes() == before


def test_bad_outputs_are_refused(project: Path) -> None:
    questions = read_questions(project / "data.json").rows
    row = {"instruction": "say 0", "output": None}
    with pytest.raises(UserError, match="has no output"):
        read_outputs(write(project / "x.json", [row]), questions, drawn=False)
    failed = {"row": 0, "answer": None, "error": "too long"}
    with pytest.raises(UserError, match="has no output: too long"):
        read_outputs(write(project / "x.json", [failed]), questions, drawn=False)
    other = [{"instruction": "sing", "output": "la"}]
    with pytest.raises(UserError, match="6 are not answered, 1 are not asked"):
        read_outputs(write(project / "x.json", other), questions, drawn=False)


def test_rows_that_cannot_be_compared_are_counted(project: Path) -> None:
    rows = [
        {"instruction": "a", "output": ""},
        {"nothing": 1},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}]},
        {"prompt": "p", "answer": "r"},
    ]
    found = read_questions(write(project / "x.json", rows))
    assert [(row.text, row.reference) for row in found.rows] == [("q", "r"), ("p", "r")]
    assert (
        found.left_out == {"no_reference": 1, "no_question": 1} and found.first["no_question"] == 2
    )
    with pytest.raises(UserError, match="no row to compare .1 x the row has no answer"):
        read_questions(write(project / "x.json", rows[:1]))


def test_answers_of_generate_go_by_their_row(project: Path) -> None:
    questions = read_questions(project / "data.json", 2, seed=1).rows
    lines = [{"row": i, "id": i, "answer": f"answer {i}"} for i in range(6)]
    said = read_outputs(write(project / "x.json", lines), questions, drawn=True)
    assert said == [f"answer {row.place}" for row in questions]


def test_two_names_are_needed(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command(project, "--name-a", "x", "--name-b", "x")) == 2
    assert "both called 'x'" in capsys.readouterr().err
