"""Evaluating a tiny model: same answers however it is run, killed and resumed."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import llava_tools.eval.answering as answering
from llava_tools.data.images import decode_image
from llava_tools.data.render import render_prompt
from llava_tools.data.sample import Turn
from llava_tools.errors import UserError
from llava_tools.eval.mmbench import question
from llava_tools.eval.run import evaluate
from llava_tools.eval.show import show
from llava_tools.eval.tsv import read_table
from llava_tools.model.generate import GenerationSettings, answer_text, generate
from llava_tools.model.load import Assistant
from llava_tools.model.shared_prefix import generate_groups
from tests.eval import tables


def answers(folder: Path) -> dict[Any, str]:
    lines = (folder / "predictions.jsonl").read_text().splitlines()[1:]
    return {record["index"]: record["prediction"] for record in map(json.loads, lines)}


class Kit:
    """`evaluate` with what all tests here share."""

    def __init__(self, assistant: Assistant, data: Path, root: Path) -> None:
        self.assistant, self.data, self.root = assistant, data, root

    def __call__(self, name: str = "work", **kwargs: Any) -> dict[Any, str]:
        options = {"batch_size": 4, "max_new_tokens": 6, "assistant": self.assistant, **kwargs}
        data = options.pop("data", self.data)
        self.report = evaluate("mmbench", "model", data, self.root / name, **options)
        return answers(self.root / name)


@pytest.fixture
def run(assistant: Assistant, data: Path, tmp_path: Path) -> Kit:
    return Kit(assistant, data, tmp_path)


def plain_loop(assistant: Assistant, data: Path) -> dict[Any, str]:
    """Answer row by row, each with its own picture, as simply as can be."""
    table = read_table(data, ("image", "question"))
    settings = GenerationSettings(max_new_tokens=6)
    result = {}
    for row in table.rows:
        images = [decode_image(table.picture_bytes(p), "here") for p in row.pictures]
        turns = [Turn("user", question(row).prompt)]
        prompt = render_prompt(turns, assistant.template, assistant.tokenizer)
        (ids,) = generate(assistant, [prompt], [assistant.pixels(images)], settings)
        result[row.index] = answer_text(assistant, ids)
    return result


def test_any_batch_size_answers_like_the_plain_loop(run: Kit) -> None:
    wanted = plain_loop(run.assistant, run.data)
    assert len(wanted) == 18 and len(set(wanted.values())) > 12
    for batch_size in (1, 4, 7, 100):
        found = run(f"b{batch_size}", batch_size=batch_size)
        assert found == wanted and list(found) == list(wanted)  # in the order of the data


def test_two_runs_are_equal_byte_for_byte(run: Kit) -> None:
    run("one"), run("two")
    one, two = (run.root / name / "predictions.jsonl" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_each_distinct_picture_is_encoded_once(run: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []
    encode = run.assistant.model.encode_images

    def counting(pixels: torch.Tensor) -> torch.Tensor:
        encoded.append(len(pixels))
        return encode(pixels)

    monkeypatch.setattr(run.assistant.model, "encode_images", counting)
    for batch_size in (1, 4, 100):
        encoded.clear()
        run(f"b{batch_size}", batch_size=batch_size)
        assert sum(encoded) == 3
    assert encoded == [3]


def test_features_are_forgotten_after_their_last_use(run: Kit) -> None:
    table = read_table(run.data, ("image",))
    questions = [question(row) for row in table.rows]
    order = answering.plan(questions, [1] * 18, 4)
    batches = [[questions[i] for i in batch] for batch in order]
    with answering.Features(run.assistant, table, batches, False) as features:
        for batch in batches:
            features.encode(batch)
            assert len(features.ready) <= 2
            features.release(batch)
    assert not features.ready and not features.pixels


def test_batches_hold_rows_of_one_picture_and_start_with_the_longest(run: Kit) -> None:
    table = read_table(run.data, ("image",))
    questions = [question(row) for row in table.rows]
    lengths = [len(q.prompt) for q in questions]
    order = [i for batch in answering.plan(questions, lengths, 5) for i in batch]
    assert sorted(order) == list(range(18))
    keys = [questions[i].pictures[0].key for i in order]
    assert sum(a != b for a, b in zip(keys, keys[1:], strict=False)) == 2
    assert lengths[order[0]] == max(lengths)


@pytest.mark.parametrize("batches", [0, 1, 3])
def test_a_killed_run_goes_on_where_it_stopped(
    run: Kit, monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    wanted = run("whole")
    asked: list[int] = []
    limit = batches

    def dying(assistant: Assistant, prompts: list[Any], *rest: Any) -> list[list[int]]:
        if len(asked) == limit:
            raise KeyboardInterrupt
        asked.append(len(prompts))
        return generate_groups(assistant, prompts, *rest)

    monkeypatch.setattr(answering, "generate_groups", dying)
    with pytest.raises(KeyboardInterrupt):
        run("killed")
    assert len(answers(run.root / "killed")) == 4 * batches
    limit = -1
    assert run("killed", batch_size=3) == wanted
    assert sum(asked) == 18  # no row twice
    assert run("killed") == wanted and sum(asked) == 18  # nothing is left to answer
    assert run.report["counts"]["missing"] == 0


@pytest.mark.parametrize("cut", [1, 60, 400, 1000, 1500, -1, -30])
def test_a_file_cut_at_any_byte_is_completed(run: Kit, cut: int) -> None:
    wanted = run("whole")
    path = run.root / "whole" / "predictions.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    assert run("whole") == wanted
    assert len(path.read_bytes().splitlines()) == 19


def test_a_broken_line_in_the_middle_is_named(run: Kit) -> None:
    run()
    path = run.root / "work" / "predictions.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b"{half\n", *lines[4:]]))
    with pytest.raises(UserError, match="line 4: no answer"):
        run()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_new_tokens": 7}, "max_new_tokens was 6 and is now 7"),
        ({"blank_images": True}, "blank_images was False and is now True"),
        ({"stop_words": ["x"]}, r"stop_words was \[\] and is now \['x'\]"),
    ],
)
def test_other_settings_are_refused_before_loading(
    run: Kit, change: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    monkeypatch.setattr("llava_tools.eval.run.load_assistant", pytest.fail)
    with pytest.raises(UserError, match=message) as error:
        run(**change, assistant=None)
    assert "predictions.jsonl" in error.value.message and "--work-dir" in error.value.hint


def test_other_data_and_other_weights_are_refused(run: Kit) -> None:
    run()
    other = tables.write(run.root / "other.tsv", tables.small(5))
    with pytest.raises(UserError, match="data_md5 was .*; prompts was"):
        run(data=other)
    with torch.no_grad():
        run.assistant.model.projector.model[2].weight += 0.01  # type: ignore[union-attr]
    with pytest.raises(UserError, match="holds the answers of another run: weights was"):
        run()
    assert len(answers(run.root / "work")) == 18


def test_blank_images_are_grey_ones_of_the_same_size(run: Kit) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 16), (128, 128, 128)).save(buffer, "PNG")
    grey = base64.b64encode(buffer.getvalue()).decode()
    rows = [r | ({"image": grey} if len(r["image"]) > 20 else {}) for r in tables.small()]
    data = tables.write(run.root / "grey.tsv", rows)
    assert run("blank", blank_images=True) == run("grey", data=data) != run("seen")


def test_the_report_says_what_it_rests_on(run: Kit, capsys: Any) -> None:
    run(protocol="xtuner", stop_words=["two"], batch_size=5)
    made = run.report["run"]
    assert run.report["protocol"] == "xtuner" and run.report["counts"]["rows"] == 18
    assert (made["model"], made["format"], made["dtype"]) == ("model", "xtuner", "float32")
    assert (made["prompt_template"], made["batch_size"], made["device"]) == ("phi3_chat", 5, "cpu")
    assert made["generation"]["max_new_tokens"] == 6 and made["stop_words"] == ["two"]
    assert made["data_md5"] == run.report["data"]["md5"]
    assert made["versions"]["torch"] == torch.__version__.split("+")[0]
    show(run.report)
    assert "phi3_chat, float32, greedy, at most 6 tokens" in capsys.readouterr().out


def test_the_model_is_loaded_with_the_options(
    model_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    report = evaluate("mmbench", model_folder, data, dtype="bf16", max_new_tokens=1)
    assert report["run"]["dtype"] == "bfloat16"
    assert (tmp_path / "work_dirs" / "model" / "small" / "scores.json").is_file()
    with pytest.raises(UserError, match="does not fit the tokenizer"):
        evaluate("mmbench", model_folder, data, "other", prompt_template="llama3_chat")


def test_data_without_answers_gives_a_submission(run: Kit) -> None:
    rows = [{**row, "answer": ""} for row in tables.small()]
    data = tables.write(run.root / "test.tsv", rows)
    run(data=data)
    names = {path.name for path in (run.root / "work").iterdir()}
    assert names == {"predictions.jsonl", "submission.xlsx", "submission.json"}
    assert not run.report["scored"] and run.report["counts"]["answered"] == 18


def test_a_picture_that_breaks_on_decoding_is_named_and_answers_stay(run: Kit) -> None:
    noise = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(noise, "PNG")
    half = base64.b64encode(noise.getvalue()[:1200]).decode()
    rows = tables.small() + [{**tables.copies(9, ["a", "b"], image=half)[0], "answer": "A"}]
    data = tables.write(run.root / "broken.tsv", rows)
    with pytest.raises(UserError, match=r"row 19 \(index 9\).* is broken or no image"):
        run(data=data)
    assert len(answers(run.root / "work")) >= 8


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"max_new_tokens": 0}, "--max-new-tokens is 0"),
        ({"protocol": "official"}, "not scored by a protocol 'official'"),
    ],
)
def test_wrong_settings_are_named(run: Kit, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(**kwargs)


def test_a_table_that_cannot_be_scored_is_refused_before_any_answer(run: Kit) -> None:
    data = tables.write(run.root / "copies.tsv", [r for r in tables.small() if r["index"] != 4])
    with pytest.raises(UserError, match="index 4, which is in no row|copy of question 4"):
        run(data=data)
    assert not (run.root / "work").exists()


def test_rows_longer_than_the_context_are_named(run: Kit, caplog: Any) -> None:
    run("short")
    assert "context" not in caplog.text
    rows = [{**row, "hint": "very " * 120 if row["index"] == 3 else ""} for row in tables.small()]
    run("long", data=tables.write(run.root / "long.tsv", rows))
    assert (
        "1 of 18 rows are longer, answers included, than the model's context of 512" in caplog.text
    )
    assert "(index 3)" in caplog.text


def test_a_text_model_is_named(run: Kit) -> None:
    run.assistant.image_processor = None
    with pytest.raises(UserError, match="is a text model and cannot look at images"):
        run()


def test_a_work_dir_that_cannot_be_written_is_named(run: Kit) -> None:
    (run.root / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write '.*file/work/predictions.jsonl'"):
        run("file/work")
