"""The data tools, through the command line: nothing lost, everything counted, all of it trains."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from llava_tools.cli.app import command
from llava_tools.data.dataset import build_dataset
from llava_tools.data.formats import llava_sample, read_samples
from llava_tools.data.sample import Sample
from llava_tools.data.tools.choosing import Rules, filtered
from llava_tools.data.tools.files import Read, Tally
from llava_tools.data.tools.statistics import describe
from llava_tools.errors import UserError
from tests.jsonl import read, write

TARGETS = ["llava", "sharegpt", "messages", "alpaca"]


def run(*words: object) -> str:
    """Run `data WORDS`; return what it says."""
    result = CliRunner().invoke(command(), ["data", *map(str, words)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def chat(name: str, *texts: str, **more: Any) -> dict[str, Any]:
    """Return a row of questions and answers."""
    turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
    return {"id": name, "conversations": turns, **more}


def test_clean_counts_by_reason_and_keeps_fields(tmp_path: Path) -> None:
    good = chat("a", "What is a lens?", "A piece of glass.", source="x")
    late = chat("b", "Name a colour, please.", "Red, as many are.", "And?")
    data = write(
        tmp_path / "in.jsonl",
        *(good, late, chat("a", "Something else here?", "Yes, it is so.")),
        *(chat("c", "What is a lens?", "A piece of glass."), chat("d", "Hi", "Yo")),
        chat("e", "Who made you, then?", "OpenAI did."),
    )
    with data.open("a") as file:
        file.write("{broken\n")
    said = run("clean", data, tmp_path / "out.jsonl", "--report", tmp_path / "why.jsonl")
    assert read(tmp_path / "out.jsonl")[0] == good
    assert len(read(tmp_path / "out.jsonl")[1]["conversations"]) == 2
    listed = [entry.get("reason") for entry in read(tmp_path / "why.jsonl")]
    for reason in ("duplicate_id", "duplicate_first_exchange", "too_short", "malformed_json"):
        assert f"1 x {reason}" in said and reason in listed
    assert "1 x mentions_a_service" in said and "1 x ends_trimmed" in said
    before = (tmp_path / "out.jsonl").read_bytes()
    run("clean", data, tmp_path / "out.jsonl", "--overwrite")
    assert (tmp_path / "out.jsonl").read_bytes() == before


@pytest.mark.parametrize("seed", range(5))
def test_split_loses_no_pair(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    rows = [
        chat(str(i), *("w" * draw.randint(1, 150) for _ in range(2 * draw.randint(1, 12))))
        for i in range(30)
    ]
    data = write(tmp_path / "in.jsonl", *rows)
    run("split", data, tmp_path / "out.jsonl", "--budget", "200")
    found: dict[str, list[Any]] = {}
    for row in read(tmp_path / "out.jsonl"):
        name, _, start = row["id"].partition("_")
        assert int(start or 0) == len(found.get(name, []))
        turns = row["conversations"]
        assert sum(len(turn["value"]) + 6 for turn in turns) <= 200 or len(turns) == 2
        found.setdefault(name, []).extend(turns)
    assert found == {row["id"]: row["conversations"] for row in rows}


@pytest.mark.parametrize("target", TARGETS)
def test_converted_rows_have_the_same_turns_and_train(
    tmp_path: Path, target: str, make_settings: Callable[..., Any], tokenizers: dict[str, Any]
) -> None:
    rows = [chat(str(i), f"What is {i}?", f"It is number {i}.") for i in range(4)]
    data, out = write(tmp_path / "in.jsonl", *rows), tmp_path / "out.json"
    run("convert", data, out, "--to", target, "--dataset-info", tmp_path / "dataset_info.json")
    name = "llava" if target == "sharegpt" else target
    turns = [s.turns for s in read_samples(out, name) if isinstance(s, Sample)]
    assert turns == [s.turns for s in read_samples(data) if isinstance(s, Sample)]
    columns = json.loads((tmp_path / "dataset_info.json").read_text())["out"]["columns"]
    assert columns and set(columns.values()) <= set(json.loads(out.read_text())[0])
    settings = make_settings(data_path=str(out), format=name)
    assert len(build_dataset(settings, tokenizers["phi3"], None)) == 4


def test_llama_factory_is_told_of_the_columns_that_there_are(tmp_path: Path) -> None:
    """It fails at one that is in no row, and passes over one that it is not told of."""
    plain = {"instruction": "Add these.", "input": "1 2", "output": "3"}
    led = {"instruction": "Hi.", "input": "", "output": "Ho.", "system": "Be short."}
    seen = {"image": "a.png"} | chat("a", "<image>\nWhat?", "A cat.")
    alpaca = {"prompt": "instruction", "query": "input", "response": "output"}
    cases: list[tuple[str, list[Any], dict[str, str]]] = [
        ("alpaca", [plain], alpaca),
        ("alpaca", [plain, led], alpaca | {"system": "system"}),
        ("llava", [plain], {"messages": "conversations"}),
        ("llava", [seen], {"messages": "conversations", "images": "image"}),
    ]
    for number, (target, rows, columns) in enumerate(cases):
        data, out = write(tmp_path / f"in{number}.jsonl", *rows), tmp_path / f"o{number}.jsonl"
        told = tmp_path / f"info{number}.json"
        more = ["--format", "llava" if "image" in rows[0] else "alpaca"]
        run("convert", data, out, "--to", target, "--dataset-info", told, *more)
        assert json.loads(told.read_text())[out.stem]["columns"] == columns
        assert target != "alpaca" or read(out) == rows  # the input stays apart


def test_samples_merges_filters_and_describes(tmp_path: Path) -> None:
    rows = [chat(str(i), "Count to me!", "9" * 9 if i == 3 else "One, two.") for i in range(9)]
    data, out = write(tmp_path / "in.jsonl", *rows), tmp_path / "out.jsonl"
    run("sample", data, out, "--rows", 4, "--seed", 1)
    drawn = read(out)
    assert len(drawn) == 4 and [row for row in rows if row in drawn] == drawn
    assert "4 x duplicate_id" in run("merge", data, out, tmp_path / "all.jsonl")
    said = run("filter", data, tmp_path / "few.jsonl", "--repeated-digits")
    assert "8 written" in said and "1 x repeated_digits" in said
    found = json.loads(run("stats", data, "--json"))
    assert (found["rows"], found["answers"], found["histogram"]["0-999"]) == (9, 9, 9)


ONES, LIST = "See:\n1. a\nmore of a\n1. b", "See:\n1. a\n2. b\n\n1. c\n2. d"


@pytest.mark.parametrize(
    ("rules", "row", "reason"),
    [
        (Rules(min_chars=8), chat("a", "Hi", "Yo"), "below_min_chars"),
        (Rules(min_chars=5, max_chars=5), chat("a", "Hi", "Yo"), None),  # a line between them
        (Rules(max_chars=4), chat("a", "Hi", "Yo"), "above_max_chars"),
        (Rules(phrases=["as an ai"]), chat("a", "Hi", "As an AI, no."), "has_phrase"),
        (Rules(repeated_digits=True), chat("a", "Hi", "1" * 9), "repeated_digits"),
        (Rules(repeated_digits=True), chat("a", "Hi", "1" * 8 + " 123456789"), None),
        (Rules(list_errors=True), chat("a", "Hi", ONES), "list_error"),
        (Rules(list_errors=True), chat("a", "Hi", LIST), None),
        (Rules(list_errors=True), chat("a", "1. Hi", "1. Yo"), None),  # two messages
        (Rules(models=["gpt-4"]), chat("a", "Hi", "Yo", model="gpt-3.5"), "other_model"),
        (Rules(models=["gpt-4"]), chat("a", "Hi", "Yo", model="gpt-4"), None),
        (Rules(), chat("a", "Hi", "As an AI. " + ONES), None),
    ],
)
def test_each_rule_of_the_filter(rules: Rules, row: dict[str, Any], reason: str | None) -> None:
    sample, tally = llava_sample(row, "x, row 1"), Tally()
    assert isinstance(sample, Sample)
    kept = list(filtered([Read(row, sample, "x, row 1", llava_sample)], tally, rules))
    assert (kept, dict(tally.reasons)) == (([], {reason: 1}) if reason else ([row], {}))


def test_the_histogram_has_fastchats_edges() -> None:
    sizes = (2, 999, 1000, 3999, 4000, 31999, 32000, 99999)
    rows = [chat(str(i), "x", "w" * (size - 1)) for i, size in enumerate(sizes)]
    reads = [Read(row, llava_sample(row, "x"), "x", llava_sample) for row in rows]  # type: ignore[arg-type]
    found = describe(reads, len, "characters")
    assert list(found["histogram"].values()) == [2, 1, 1, 1, 0, 1, 2]
    assert (found["length"], found["longest"]) == (sum(sizes), 99999)


def test_inputs_are_safe_and_too_many_drops_are_an_error(tmp_path: Path) -> None:
    data = write(tmp_path / "in.jsonl", chat("a", "Hi", "Yo"))
    before = data.read_bytes()
    with pytest.raises(UserError, match="is one of the inputs"):
        run("clean", data, data, "--overwrite")
    write(tmp_path / "there.jsonl")
    with pytest.raises(UserError, match="exists"):
        run("clean", data, tmp_path / "there.jsonl")
    with pytest.raises(UserError, match="neither in .json nor in .jsonl"):
        run("clean", data, tmp_path / "out.csv")
    with pytest.raises(UserError, match="1 of 1 rows were dropped"):
        run("clean", data, tmp_path / "out.jsonl", "--max-dropped", "0")
    with pytest.raises(UserError, match="no target format"):
        run("convert", data, tmp_path / "new.jsonl", "--to", "sharegtp")
    assert data.read_bytes() == before and not (tmp_path / "new.jsonl").exists()


def test_held_out_rows_are_no_copies_of_rows_to_train_on(tmp_path: Path) -> None:
    rows = [chat(str(i), f"What is {i % 100}?", "A number.") for i in range(200)]
    data, out, held = write(tmp_path / "in.jsonl", *rows), tmp_path / "t.jsonl", tmp_path / "e.json"
    run("hold-out", data, out, "--eval", held, "--share", 0.3)
    train, others = read(out), json.loads(held.read_text())
    assert len(train) + len(others) == 200 and 30 < len(others) < 90
    texts = [{json.dumps(row["conversations"]) for row in side} for side in (train, others)]
    assert not texts[0] & texts[1]
    with pytest.raises(UserError, match="OUT and --eval are both"):
        run("hold-out", data, held, "--eval", held, "--overwrite")


def test_lengths_are_measured_in_tokens(tmp_path: Path, parts: Path) -> None:
    data = write(tmp_path / "in.jsonl", chat("a", *["Tell me a story."] * 8))
    found = json.loads(run("stats", data, "--json", "--tokenizer", parts / "phi3"))
    assert found["unit"] == "tokens" and found["length"] > 0
    said = run("split", data, tmp_path / "o.jsonl", "--budget", 1, "--tokenizer", parts / "phi3")
    assert "4 x pair_over_budget" in said and "4 written" in said


@pytest.mark.parametrize("option", ["--report", "--dataset-info"])
def test_a_file_beside_the_output_replaces_nothing(tmp_path: Path, option: str) -> None:
    data = write(tmp_path / "in.jsonl", chat("a", "What is a lens?", "A piece of glass."))
    before = data.read_bytes()
    mine = tmp_path / "mine.json"
    mine.write_text("kept")
    words = ("convert", data, tmp_path / "out.jsonl", "--to", "messages", option)
    with pytest.raises(UserError, match="mine.json' exists"):
        run(*words, mine)
    with pytest.raises(UserError, match="in.jsonl' is an input or OUT"):
        run(*words, data, "--overwrite")
    assert mine.read_text() == "kept" and data.read_bytes() == before
    assert not (tmp_path / "out.jsonl").exists()
    run(*words, mine, "--overwrite")
    assert mine.read_text() != "kept" and not list(tmp_path.glob("*.tmp"))
