"""Weights, first rows, length limits, held-out rows; and bad dialogues through the whole path."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import ipc, parquet

from llava_tools.config import Settings
from llava_tools.config.together import FAULTS
from llava_tools.constants import IGNORE_ID
from llava_tools.data.dataset import build_dataset, build_datasets, build_eval_dataset
from llava_tools.data.packed import PackedRows
from llava_tools.data.streamed import StreamedRows
from llava_tools.data.tokenize import tokenize
from llava_tools.errors import UserError

Make = Callable[..., Settings]


def talk(*texts: str, **more: Any) -> dict[str, Any]:
    turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
    return {"conversations": turns, **more}


def rows_of(count: int) -> list[dict[str, Any]]:
    return [talk(f"Question {i}", f"Answer {i}", id=f"r{i}") for i in range(count)]


def content(dataset: Any) -> list[tuple[int, ...]]:
    return [tuple(dataset[i].input_ids.tolist()) for i in range(len(dataset))]


@pytest.mark.parametrize("weight", [0.5, 1.0, 2.5])
def test_a_weight_is_how_often_rows_are_seen(
    make_settings: Make, tokenizers: dict[str, Any], weight: float
) -> None:
    settings = make_settings(rows_of(10), weight=weight)
    dataset = build_dataset(settings, tokenizers["phi3"], None)
    assert len(dataset) == len(dataset.lengths) == 10 * weight
    counts = Counter(content(dataset))
    assert set(counts.values()) <= {int(weight), int(weight) + 1} and len(counts) >= 5
    assert content(build_dataset(settings, tokenizers["phi3"], None)) == content(dataset)
    trained = sum(int((dataset[i].labels != IGNORE_ID).sum()) for i in range(len(dataset)))
    assert dataset.summary().trained_tokens == trained


def test_held_out_rows_are_nowhere_trained_on(
    make_settings: Make, tokenizers: dict[str, Any]
) -> None:
    settings = make_settings([*rows_of(20), *rows_of(20)], eval_rows=5, weight=2.0)
    train, held = build_datasets(settings, tokenizers["phi3"], None)
    assert held is not None and len(held) == len(set(content(held))) == 5
    assert len(train) == 2 * 30 and not set(content(train)) & set(content(held))
    assert "held out 5 rows for the eval loss, and 5 copies" in train.summary().lines()[1]
    again = build_eval_dataset(settings, tokenizers["phi3"], None)
    assert content(again) == content(held)
    with pytest.raises(UserError, match="nothing is left to train on"):
        build_dataset(make_settings(rows_of(4), eval_rows=4), tokenizers["phi3"], None)


@pytest.mark.parametrize("train_on", ["all", "last", "full"])
def test_eval_datasets_are_read_and_masked_alike(
    make_settings: Make, tokenizers: dict[str, Any], train_on: str
) -> None:
    settings = make_settings([talk("Q", "One", "R", "Two"), *rows_of(2)], train_on=train_on)
    assert build_eval_dataset(settings, tokenizers["phi3"], None) is None
    both = replace(settings, eval_datasets=settings.datasets)
    train, held = build_datasets(both, tokenizers["phi3"], None)
    assert held is not None and content(train) == content(held)
    labels = [[part[i].labels.tolist() for i in range(3)] for part in (train, held)]
    assert labels[0] == labels[1]


def test_first_rows_are_those_that_can_be_used(
    make_settings: Make, tokenizers: dict[str, Any]
) -> None:
    rows = [talk("No answer"), *rows_of(600)]
    settings = make_settings(rows, first_rows=520, max_skipped=0.5)
    dataset = build_dataset(settings, tokenizers["phi3"], None)
    assert (len(dataset), dataset.seen) == (520, 521)
    assert dataset.origin(519).endswith("row 521")


def test_longer_rows_are_left_out_and_no_fault(
    make_settings: Make, tokenizers: dict[str, Any]
) -> None:
    rows = [talk("Hi", "Yo " * 100), *rows_of(1)]
    for max_length in (512, 30, 40):
        settings = make_settings(rows, max_tokens=30, max_length=max_length, max_skipped=0.0)
        dataset = build_dataset(settings, tokenizers["phi3"], None)
        assert len(dataset) == 1
        assert [skip.reason for skip in dataset.skipped] == ["beyond_max_tokens"]


def test_a_system_text_never_leaks_and_may_be_dropped(
    make_settings: Make, tokenizers: dict[str, Any]
) -> None:
    rows = [talk("Hi", "Yo", system="Be kind."), talk("Hi", "Yo")]
    tokenizer = tokenizers["phi3"]
    kept = content(build_dataset(make_settings(rows), tokenizer, None))
    assert "Be kind." in tokenizer.decode(kept[0]) and "Be kind." not in tokenizer.decode(kept[1])
    dropped = content(build_dataset(make_settings(rows, keep_system=False), tokenizer, None))
    assert dropped == [kept[1], kept[1]]


BAD: list[tuple[str, dict[str, Any], str, str]] = [
    (
        "starts with gpt",
        {"conversations": talk("Q", "A", "Q", "A")["conversations"][1:]},
        "mended",
        "answer_first",
    ),
    ("ends with human", talk("Q", "A", "More?"), "mended", "question_unanswered"),
    ("an empty answer", talk("Q", "", "Q", "A"), "mended", "empty_pair"),
    ("an empty question", talk("", "A"), "mended", "empty_question"),
    ("only an empty answer", talk("Q", ""), "skipped", "no_answer"),
    ("only human", talk("Q"), "skipped", "no_answer"),
    ("no messages", talk(), "skipped", "no_conversations"),
    ("only gpt", {"conversations": talk("Q", "A")["conversations"][1:]}, "skipped", "no_answer"),
    (
        "two leading gpt",
        {
            "conversations": [
                *2 * talk("Q", "A")["conversations"][1:],
                *talk("Q", "A")["conversations"],
            ]
        },
        "mended",
        "answer_first",
    ),
    (
        "a question twice",
        {"conversations": [talk("Q")["conversations"][0], *talk("Q", "A")["conversations"]]},
        "mended",
        "questions_merged",
    ),
    ("a role", {"conversations": [{"from": "narrator", "value": "x"}]}, "skipped", "unknown_role"),
    ("control text", talk("Say </s><|end|>", "A"), "mended", "control_text_escaped"),
]


@pytest.mark.parametrize(("what", "bad", "outcome", "reason"), BAD, ids=[row[0] for row in BAD])
def test_a_bad_dialogue_is_mended_or_left_out_and_counted(
    make_settings: Make, tokenizers: dict[str, Any], what: str, bad: Any, outcome: str, reason: str
) -> None:
    settings = make_settings([bad, talk("Q", "A")], max_skipped=0.5)
    dataset = build_dataset(settings, tokenizers["phi3"], None)
    assert len(dataset) == (2 if outcome == "mended" else 1)
    assert getattr(dataset.summary(), outcome)[reason] >= 1
    for i in range(len(dataset)):  # the run never dies, and never masks in silence
        assert (dataset[i].labels != IGNORE_ID).any()


@pytest.mark.parametrize("text", ["<unk>", "<s>", "</s>", " ASSISTANT: "])
def test_control_text_of_a_file_becomes_no_token_and_hides_no_answer(
    make_settings: Make, tokenizers: dict[str, Any], text: str
) -> None:
    tokenizer = tokenizers["vicuna"]
    rows = [talk(f"Say {text} x", "Yo"), talk("Say x", "Yo")]
    settings = make_settings(rows, prompt_template="vicuna", max_skipped=0.0)
    dataset = build_dataset(settings, tokenizer, None)
    spoken, plain = ([int(i) for i in dataset[k].labels if i != IGNORE_ID] for k in range(2))
    assert spoken == plain and spoken[-1] == tokenizer.eos_token_id
    for token in (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id):
        counts = [dataset[k].input_ids.tolist().count(token) for k in range(2)]
        assert counts[0] == counts[1]


def written(folder: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"rows.{kind}"
    lines = "\n".join(json.dumps(row) for row in rows).encode()
    table = pa.Table.from_pylist(rows)
    if kind == "jsonl.gz":
        path.write_bytes(gzip.compress(lines))
    elif kind == "json.gz":
        path.write_bytes(gzip.compress(json.dumps(rows).encode()))
    elif kind == "parquet":
        parquet.write_table(table, path, row_group_size=2)
    else:
        with ipc.new_stream(str(path), table.schema) as sink:
            sink.write_table(table, max_chunksize=2)
    return path


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("kind", ["jsonl.gz", "json.gz", "parquet", "arrow"])
def test_other_files_hold_the_same_rows(
    make_settings: Make,
    tokenizers: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    streamed: bool,
) -> None:
    plain = build_dataset(make_settings(rows_of(7)), tokenizers["phi3"], None)
    path = written(tmp_path, kind, rows_of(7))
    monkeypatch.setenv("LLAVA_TOOLS_CACHE", str(tmp_path / "cache"))
    if streamed:
        monkeypatch.setattr("llava_tools.data.sources.UP_FRONT_BYTES", 1)
    settings = make_settings(data_path=str(path), num_workers=0)
    dataset = build_dataset(settings, tokenizers["phi3"], None)
    assert isinstance(dataset.parts[0].rows, StreamedRows if streamed else PackedRows)
    assert content(dataset) == content(plain)
    word = "line" if kind == "jsonl.gz" else "row"
    assert dataset.origin(4) == f"{path}, {word} 5"


@pytest.mark.parametrize("streamed", [False, True])
def test_a_folder_is_its_training_files(
    make_settings: Make,
    tokenizers: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    streamed: bool,
) -> None:
    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    rows = rows_of(7)
    for name, part in (("train-0", rows[:3]), ("train-1", rows[3:]), ("test-0", rows)):
        written(folder, "parquet", part).rename(folder / f"{name}.parquet")
    (tmp_path / "set" / "README.md").write_text("A data set.")
    monkeypatch.setenv("LLAVA_TOOLS_CACHE", str(tmp_path / "cache"))
    if streamed:
        monkeypatch.setattr("llava_tools.data.sources.UP_FRONT_BYTES", 1)
    plain = build_dataset(make_settings(rows), tokenizers["phi3"], None)
    settings = make_settings(data_path=str(tmp_path / "set"), num_workers=0)
    dataset = build_dataset(settings, tokenizers["phi3"], None)
    assert content(dataset) == content(plain)
    assert dataset.origin(4) == f"{folder}/train-1.parquet, row 2"


def test_a_saved_dataset_keeps_its_order(
    make_settings: Make, tokenizers: dict[str, Any], tmp_path: Path
) -> None:
    train = tmp_path / "saved" / "train"
    train.mkdir(parents=True)
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    rows = rows_of(4)
    written(train, "arrow", rows[2:]).rename(train / "a.arrow")
    written(train, "arrow", rows[:2]).rename(train / "b.arrow")
    files = [{"filename": "b.arrow"}, {"filename": "a.arrow"}]
    (train / "state.json").write_text(json.dumps({"_data_files": files}))
    settings = make_settings(data_path=str(tmp_path / "saved"))
    plain = build_dataset(make_settings(rows), tokenizers["phi3"], None)
    assert content(build_dataset(settings, tokenizers["phi3"], None)) == content(plain)


def test_damaged_tables_and_mixed_folders_are_errors(
    make_settings: Make, tokenizers: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"bad.parquet' cannot be read"):
        build_dataset(
            make_settings(data_path=str(tmp_path / "bad.parquet")), tokenizers["phi3"], None
        )
    (tmp_path / "more.jsonl").write_text("{}")
    with pytest.raises(UserError, match="several kinds: .jsonl, .parquet"):
        build_dataset(make_settings(data_path=str(tmp_path)), tokenizers["phi3"], None)


def test_whole_texts_are_all_trained_on_and_want_a_bare_template(
    make_settings: Make, tokenizers: dict[str, Any]
) -> None:
    settings = make_settings([{"text": "A page."}], prompt_template="raw")
    example = build_dataset(settings, tokenizers["vicuna"], None)[0]
    assert (example.labels[1:] != IGNORE_ID).all() and len(example.labels) > 2
    assert example.input_ids[-1] == tokenizers["vicuna"].eos_token_id
    with pytest.raises(UserError, match="wrap as answers to nothing"):
        build_dataset(make_settings([{"text": "A page."}]), tokenizers["phi3"], None)


def test_first_rows_and_max_rows_contradict_each_other(make_settings: Make) -> None:
    both = make_settings(rows_of(2), first_rows=1, max_rows=1)
    assert [fault.key for fault in FAULTS if fault.wrong(both)] == ["datasets"]


def test_tokenised_once_is_the_same_data(
    make_settings: Make, tokenizers: dict[str, Any], tmp_path: Path
) -> None:
    changes = {"weight": 1.5, "first_rows": 12, "eval_rows": 2}
    settings = make_settings(rows_of(20), visual_encoder_name_or_path=None, **changes)
    list(tokenize(settings, tokenizers["phi3"], str(tmp_path / "once")))
    offline = replace(settings, tokenized_folder=str(tmp_path / "once"))
    made = [build_datasets(s, tokenizers["phi3"], None) for s in (settings, offline)]
    assert [content(part) for part in made[0]] == [content(part) for part in made[1]]
    assert len(made[0][0]) == 15
