"""`generate`: a file of prompts, resumed after a kill, the same answers at any batch size."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llava_tools.chat.batch import generate_file
from llava_tools.chat.prompts import read_prompts
from llava_tools.chat.session import Session
from llava_tools.chat.start import open_assistant, open_pictures
from llava_tools.cli.entry import run as command
from llava_tools.errors import UserError
from llava_tools.model.generate import GenerationSettings
from llava_tools.model.load import Assistant
from tests.jsonl import read, write

SETTINGS = GenerationSettings(max_new_tokens=12)
WORDS = ("cat", "dog and two blue circles", "one", "three or four red squares, which of them?")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Rows of every kind, of several lengths, three of them with an image."""
    ask = [{"id": f"q{i}", "prompt": f"{WORDS[i % 4]} {i}"} for i in range(6)]
    chat = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cat."}]
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a dog"}]
    more = [
        {"instruction": "Count", "input": "one two"},
        {"messages": [*chat, {"role": "user", "content": "And now?"}], "system": "Be brief."},
        {"conversations": said, "image": "0.png"},
        {"prompt": "What is in the picture?", "image": "1.png"},
        {"prompt": "Which?", "image": ["0.png", "2.png"]},
    ]
    return write(tmp_path / "prompts.jsonl", *ask, *more)


def answered(assistant: Assistant, prompts: Path, parts: Path, out: Path, **options: Any) -> Any:
    given = {"settings": SETTINGS, "image_folder": str(parts / "images")} | options
    generate_file(lambda: assistant, prompts, out, **given)
    return read(out)


@pytest.mark.parametrize("family", ["phi3", "llama3"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_answers_depend_on_no_other_row(
    assistants: dict[str, Assistant],
    parts: Path,
    prompts: Path,
    tmp_path: Path,
    family: str,
    temperature: float,
) -> None:
    ask = partial(answered, assistants[family], prompts, parts)
    settings = replace(SETTINGS, temperature=temperature)
    alone = ask(tmp_path / "1.jsonl", batch_size=1, settings=settings)
    together = ask(tmp_path / "7.jsonl", batch_size=7, settings=settings)
    assert alone == together
    assert [row["row"] for row in alone] == list(range(11))
    assert [row["id"] for row in alone[:2]] == ["q0", "q1"] and alone[6]["id"] == 6
    assert len({row["answer"] for row in alone}) > 3


def test_an_answer_is_that_of_a_session(
    assistants: dict[str, Assistant], parts: Path, prompts: Path, tmp_path: Path
) -> None:
    rows = answered(assistants["llama3"], prompts, parts, tmp_path / "out.jsonl")
    session = Session(assistants["llama3"], SETTINGS)
    assert "".join(session.ask("cat 0")).strip() == rows[0]["answer"]
    session.show(open_pictures([str(parts / "images/1.png")]))
    assert "".join(session.ask("What is in the picture?")).strip() == rows[9]["answer"]
    session.show([])
    assert "".join(session.ask("Count\nInput:\none two")).strip() == rows[6]["answer"]


def test_a_stopped_run_goes_on(
    assistants: dict[str, Assistant], parts: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    whole = answered(assistants["phi3"], prompts, parts, out)
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[3:7]) + lines[8][:15])  # in another order, the last cut short
    again = answered(assistants["phi3"], prompts, parts, out, batch_size=3)
    assert again == whole

    def never() -> Assistant:
        raise AssertionError("the model is loaded, though nothing is left to do")

    folder = str(parts / "images")
    report = generate_file(never, prompts, out, SETTINGS, image_folder=folder)
    assert report["kept"] == 11 and report["answered"] == 0
    assert read(out) == whole


KILLED = """
import os, signal, sys
from llava_tools.chat.answers import AnswerFile
from llava_tools.cli.entry import run

append = AnswerFile.append

def then_die(self, answer):
    append(self, answer)
    if len(self.done) == 7:
        os.kill(os.getpid(), signal.SIGKILL)

AnswerFile.append = then_die
run(sys.argv[1:])
"""


def test_a_killed_process_goes_on(models: dict[str, Path], tmp_path: Path) -> None:
    rows = [{"prompt": f"{WORDS[i % 4]} {i}"} for i in range(20)]
    prompts, out = write(tmp_path / "p.jsonl", *rows), tmp_path / "out.jsonl"
    words = ["generate", str(models["phi3"]), str(prompts), str(out), "--max-new-tokens", "12"]
    ended = subprocess.run([sys.executable, "-c", KILLED, *words], capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert len(read(out)) == 7
    assert command([*words, "--json"]) == 0
    found = read(out)
    assert command([*words[:3], str(tmp_path / "fresh.jsonl"), *words[4:]]) == 0
    assert found == read(tmp_path / "fresh.jsonl") and len(found) == 20


def test_other_settings_are_refused(
    assistants: dict[str, Assistant], parts: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    ask = partial(answered, assistants["phi3"], prompts, parts, out)
    before = ask(made_by={"model": "a"})
    hot = replace(SETTINGS, temperature=0.5)
    with pytest.raises(UserError, match=r"another run: temperature was 0.0 and is now 0.5"):
        ask(settings=hot, made_by={"model": "a"})
    with pytest.raises(UserError, match="model was 'a' and is now 'b'"):
        ask(made_by={"model": "b"})
    out.write_bytes(b"".join(out.read_bytes().splitlines(keepends=True)[:4]))
    with pytest.raises(UserError, match=r"prompt_template was 'phi3_chat' and is now 'vicuna'"):
        answered(assistants["vicuna"], prompts, parts, out, made_by={"model": "a"})
    assert read(out) == before[:4]
    write(prompts, {"prompt": "Another"})
    with pytest.raises(UserError, match="prompts was"):
        ask(made_by={"model": "a"})


def test_files_of_others_are_left_alone(
    assistants: dict[str, Assistant], parts: Path, prompts: Path, tmp_path: Path
) -> None:
    out = write(tmp_path / "mine.jsonl", {"mine": 1})
    with pytest.raises(UserError, match="holds no answers of this command"):
        answered(assistants["phi3"], prompts, parts, out)
    assert read(out) == [{"mine": 1}]
    good = tmp_path / "out.jsonl"
    answered(assistants["phi3"], prompts, parts, good)
    content = good.read_bytes()
    first = content.splitlines()[0]
    others = [first.replace(b'"row":0', b'"row":' + row) for row in (b'"a"', b"true", b"11", b"-1")]
    for line in (b"{nonsense", b"null", b'{"row":0}', *others):
        good.write_bytes(line + b"\n" + content)
        with pytest.raises(UserError, match="line 1 is no answer of this command"):
            answered(assistants["phi3"], prompts, parts, good)
        assert good.read_bytes() == line + b"\n" + content
    good.write_bytes(content)
    beside = tmp_path / "out.jsonl.settings.json"
    beside.write_text("{")
    with pytest.raises(UserError, match="is damaged: what made"):
        answered(assistants["phi3"], prompts, parts, good)
    with pytest.raises(UserError, match="Cannot write"):
        answered(assistants["phi3"], prompts, parts, prompts / "below.jsonl")


def test_two_writers_are_refused(
    assistants: dict[str, Assistant], parts: Path, prompts: Path, tmp_path: Path
) -> None:
    import fcntl

    out = tmp_path / "out.jsonl"
    with out.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="Another process is writing"):
            answered(assistants["phi3"], prompts, parts, out)


def test_what_a_model_cannot_read_is_told_and_the_rest_answered(
    assistants: dict[str, Assistant], parts: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": "one"}, {"prompt": "cat " * 600}, {"prompt": "two"}]
    found = answered(
        assistants["phi3"], write(tmp_path / "p.jsonl", *rows), parts, tmp_path / "o.jsonl"
    )
    assert [row["finish"] == "failed" for row in found] == [False, True, False]
    assert "tokens long; this model reads 512" in found[1]["error"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (3, "found int, not an object"),
        ({}, "found nothing, where one of prompt, instruction"),
        ({"text": "x"}, "found text, where one of"),
        ({"prompt": "x", "messages": []}, "found prompt and messages"),
        ({"prompt": 3}, "'prompt' is 3, not a text"),
        ({"prompt": "  "}, "its question is empty"),
        ({"instruction": "x", "input": 3}, "'input' is 3, not a text"),
        ({"messages": "x"}, "'messages' is no list of objects"),
        ({"messages": []}, "it asks nothing"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "turn 1 is from 'tool'"),
        ({"messages": [{"role": "user", "content": "x"}] * 2}, "turn 2 is user's, after user"),
        ({"conversations": [{"from": "gpt", "value": "x"}]}, "it asks nothing"),
        ({"prompt": "x", "image": 3}, "'image' is 3, not a path"),
        ({"prompt": "x", "image": "no.png"}, "no.png' cannot be read"),
        ({"prompt": "x", "image": "../llava.json"}, "lies outside the image folder"),
        ({"prompt": "<image>x"}, "say <image> 1 times, for 0 images"),
        ({"prompt": "x", "system": "<image>"}, "in a text that is no user's"),
    ],
)
def test_bad_rows_are_told_before_the_model_loads(
    parts: Path, tmp_path: Path, row: Any, message: str
) -> None:
    path = write(tmp_path / "p.jsonl", {"prompt": "good"}, row, row)
    with pytest.raises(UserError, match="p.jsonl, line 2: ") as caught:
        read_prompts(path, str(parts / "images"))
    assert message in caught.value.message
    assert "1 more rows cannot be asked either" in caught.value.message


def test_broken_and_empty_files(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "x"}\n{"prompt": \n')
    with pytest.raises(UserError, match="line 2: malformed JSON"):
        read_prompts(path)
    path.write_text("\n")
    with pytest.raises(UserError, match="holds no prompts"):
        read_prompts(path)


def test_a_text_model_takes_no_images(parts: Path, prompts: Path, tmp_path: Path) -> None:
    model = open_assistant(str(parts / "phi3"))
    found = answered(model, prompts, parts, tmp_path / "o.jsonl")
    assert ["cannot look at images" in row.get("error", "") for row in found[7:]] == [
        *(False, True, True, True),
    ]


def test_the_command(
    models: dict[str, Path], prompts: Path, parts: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "deep" / "out.jsonl"
    words = ["generate", str(models["phi3"]), str(prompts), str(out)]
    words += ["--image-folder", str(parts / "images"), "--max-new-tokens", "3"]
    assert command([*words, "--json", "--batch-size", "4"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rows"] == report["answered"] == 11 and report["failed"] == 0
    assert command(words) == 0
    assert "11 answers, 0 of them new" in capsys.readouterr().out
    assert command([*words, "--bits", "4"]) == 2
    assert "quantization was None" in capsys.readouterr().err
