"""MMMU's questions with several images: which are shown, and in which places."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava_tools.cli.entry import run
from llava_tools.constants import IMAGE_TOKEN_ID
from llava_tools.data.images import decode_image
from llava_tools.data.render import render_prompt
from llava_tools.data.sample import Turn
from llava_tools.errors import UserError
from llava_tools.eval.benchmark import Question, get_benchmark
from llava_tools.eval.compare import compare_protocols
from llava_tools.eval.endpoint import content_of
from llava_tools.eval.pictures import Picture
from llava_tools.eval.predictions import prompt_hash
from llava_tools.eval.report import score_file
from llava_tools.eval.run import evaluate
from llava_tools.eval.tsv import Row, read_table
from llava_tools.model.generate import GenerationSettings, answer_text, generate
from llava_tools.model.load import Assistant
from tests.eval import tables
from tests.fake_openai import fake_server

LETTER = "Answer with the option's letter from the given choices directly."
SHORT = "Answer the question using a single word or phrase."
BOTH = ("lmms-eval-interleaved", "vlmevalkit-interleaved")


def row(question: str, pictures: int = 2, **cells: str) -> Row:
    shown = tuple(Picture(str(number), 0, 0, "") for number in range(1, pictures + 1))
    return Row(7, {"question": question, **cells}, "'t.tsv', row 1", shown)


def asked(protocol: str, given: Row) -> Question:
    return get_benchmark("mmmu").question(given, protocol)


def keys(question: Question) -> list[int]:
    return [int(picture.key) for picture in question.pictures]


def test_images_stand_at_their_markers_as_often_as_these_occur() -> None:
    given = row("Is <image 2> in <image 1>\nor in <image 2>?", A="<image 1>", B="none", answer="A")
    text = "Is <image> in <image>\nor in <image>?\nA. <image>\nB. none\n"
    for protocol, gap in zip(BOTH, ("\n", ""), strict=True):
        found = asked(protocol, given)
        assert found.prompt == f"{text}{gap}{LETTER}"
        assert keys(found) == [2, 1, 2, 1]
    found = asked("lmms-eval-interleaved", row("What is <image 12>?", 12))
    assert (found.prompt, keys(found)) == (f"What is <image>?\n\n{SHORT}", [12])


@pytest.mark.parametrize("protocol", get_benchmark("mmmu").protocols)
def test_without_a_marker_images_stand_in_front(protocol: str) -> None:
    found = asked(protocol, row("What?", 1))
    assert found.prompt.startswith("<image>\nWhat?\n") and keys(found) == [1]
    number = 2 if protocol.startswith("lmms-eval") or protocol in BOTH else 1
    found = asked(protocol, row("What?", 2))
    assert found.prompt.startswith("<image>\n" * number + "What?") and len(keys(found)) == number


def test_models_of_one_image_see_what_each_kit_shows_in_front() -> None:
    pair = row("Which is <image 2>, not <image 1> or <image 2>?", 3)
    options = row("Which?", A="<image 1>", B="<image 2>")
    shown = {
        "lmms-eval": ([1, 2], [1, 2]),
        "official": ([1], []),
        "vlmevalkit": ([1], [1]),
        "vlmevalkit-2026": ([1], [1]),
    }
    for protocol, wanted in shown.items():
        for given, numbers in zip((pair, options), wanted, strict=True):
            found = asked(protocol, given)
            assert keys(found) == numbers, protocol
            text = found.prompt.removeprefix("<image>\n" * len(numbers))
            assert text.startswith(given.cells["question"]) and "<image>" not in text


def test_an_open_question_is_asked_in_its_language_by_vlmevalkit() -> None:
    assert asked("vlmevalkit", row("How much?", 1)).prompt.endswith(
        "?\nAnswer the question directly."
    )
    assert asked("vlmevalkit", row("多少?", 1)).prompt == "<image>\n多少?\n请直接回答问题。"


@pytest.mark.parametrize("protocol", [*BOTH, "lmms-eval"])
@pytest.mark.parametrize("number", [0, 3])
def test_a_marker_of_an_image_that_is_not_there_is_named(protocol: str, number: int) -> None:
    with pytest.raises(UserError, match=f"row 1 has a marker <image {number}>, but 2 image"):
        asked(protocol, row(f"What is <image {number}>?"))


@pytest.mark.parametrize("protocol", get_benchmark("mmmu").protocols)
def test_scoring_asks_the_same_without_looking_at_images(protocol: str) -> None:
    given = row("<image 1>\nIs it <image 2>?", A="<image 1>", B="it")
    unread = row("<image 1>\nIs it <image 2>?", 0, A="<image 1>", B="it")
    assert prompt_hash(asked(protocol, given)) == prompt_hash(asked(protocol, unread))


def test_an_image_named_in_the_text_is_none() -> None:
    for name, benchmark in {"mmmu": BOTH[0], "pope": "llava", "gqa": "llava"}.items():
        found = get_benchmark(name).question(row("What does <image> say?", 1), benchmark)
        assert found.prompt.startswith("<image>\nWhat does  say?"), name


def table(folder: Path) -> Path:
    """Write questions whose images stand in several places, in several orders."""
    red, green, blue = (tables.picture(color) for color in ("red", "green", "blue"))
    texts = [
        ("Is <image 1> like <image 2>?", [red, green], {}),
        ("Is <image 2> like <image 1>?", [red, green], {}),
        ("Is <image 1> like <image 2>?", [green, red], {}),
        ("What is between? <image 1> and then again <image 1>", [blue], {}),
        ("Which one?", [red, blue], {"A": "<image 1>", "B": "<image 2>", "C": "neither of them"}),
        ("<image 1>\nIs it good?", [red], {"A": "yes", "B": "no"}),
        ("Is it good?", [red], {"A": "yes", "B": "no"}),
    ]
    rows = [
        {"index": i, "image": repr(images), "question": text, "answer": "A", **options}
        for i, (text, images, options) in enumerate(texts)
    ]
    return tables.write(folder / "mmmu.tsv", rows)


def plainly(assistant: Assistant, data: Path, protocol: str) -> dict[Any, str]:
    """Answer row by row: the text is cut at its markers, and every image stands for its own."""
    read = read_table(data, ("image", "question"))
    answers = {}
    for given in read.rows:
        found = asked(protocol, given)
        images = [decode_image(read.picture_bytes(p), "here") for p in found.pictures]
        ids = render_prompt([Turn("user", found.prompt)], assistant.template, assistant.tokenizer)
        settings = GenerationSettings(max_new_tokens=6)
        (said,) = generate(assistant, [ids], [assistant.pixels(images)], settings)
        answers[given.index] = answer_text(assistant, said)
    return answers


def test_any_batch_size_answers_alike_and_places_matter(
    assistant: Assistant, tmp_path: Path
) -> None:
    data, protocol = table(tmp_path), "lmms-eval-interleaved"
    wanted = plainly(assistant, data, protocol)
    for size in (1, 3, 7):
        kept = tmp_path / f"b{size}"
        evaluate("mmmu", "m", data, kept, protocol=protocol, batch_size=size, max_new_tokens=6,
                 assistant=assistant)  # fmt: skip
        lines = map(json.loads, (kept / "predictions.jsonl").read_text().splitlines()[1:])
        assert {line["index"]: line["prediction"] for line in lines} == wanted
    assert len(set(wanted.values())) == 7 - 2  # 1 and 2 show the same images in one order, ...
    assert wanted[1] == wanted[2] and wanted[5] == wanted[6]
    front = plainly(assistant, data, "lmms-eval")
    assert all(front[i] != wanted[i] for i in range(5)) and front[6] == wanted[6]
    report = score_file("mmmu", kept / "predictions.jsonl", data, protocol="official")
    assert report["run"]["asked_as"] == protocol and report["counts"]["with_several_images"] == 4
    rules = compare_protocols("mmmu", kept / "predictions.jsonl", data)["protocols"]
    assert list(rules) == ["official", "lmms-eval", "vlmevalkit", "vlmevalkit-2026"]


def test_another_choice_of_images_is_another_run(assistant: Assistant, tmp_path: Path) -> None:
    """The words are the same, the images are not."""
    data, settings = table(tmp_path), {"assistant": assistant, "max_new_tokens": 1}
    evaluate("mmmu", "m", data, tmp_path / "w", protocol="official", **settings)
    with pytest.raises(UserError, match="answers of another run: prompts was '[0-9a-f]{16}'"):
        evaluate("mmmu", "m", data, tmp_path / "w", protocol="lmms-eval", **settings)


def test_tokens_have_one_image_each_between_the_texts_own(assistant: Assistant) -> None:
    """XTuner's way, written again: fill in the template, cut at `<image>`, encode every piece."""
    prompt = asked(BOTH[0], row("Is <image 1> like <image 2>?", A="<image 2>", B="no")).prompt
    tokenizer, template = assistant.tokenizer, assistant.template
    whole = f"<|user|>\n{prompt}<|end|>\n<|assistant|>\n"
    wanted = [tokenizer.bos_token_id]
    for number, piece in enumerate(whole.split("<image>")):
        wanted += [IMAGE_TOKEN_ID] if number else []
        wanted += tokenizer.encode(piece, add_special_tokens=False)
    assert template.name == "phi3_chat" and wanted.count(IMAGE_TOKEN_ID) == 3
    assert render_prompt([Turn("user", prompt)], template, tokenizer) == wanted


def shape(parts: list[dict[str, Any]]) -> list[str]:
    """Return the texts and the colours of the images of a message, in order."""
    found = []
    for part in parts:
        if part["type"] == "text":
            found.append(part["text"])
            continue
        data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
        pixel = Image.open(io.BytesIO(data)).getpixel((0, 0))
        found.append(next(name for name, value in tables.COLORS.items() if value == pixel))
    return found


def test_a_server_gets_texts_and_images_in_their_order(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    data, end = table(tmp_path), f"\n\n{SHORT}"
    with fake_server(lambda body: "A") as server:
        command = ["eval", "mmmu", "m", "--data-path", str(data), "--endpoint", server.url]
        options = ["--work-dir", str(tmp_path / "w"), "--protocol", "lmms-eval-interleaved"]
        assert run([*command, "--endpoint-model", "fake", *options]) == 0
        shapes = [shape(body["messages"][0]["content"]) for body in server.asked]
    letters = f"\nC. neither of them\n\n{LETTER}"
    assert sorted(shapes) == sorted([
        ["Is ", "red", " like ", "green", f"?{end}"],
        ["Is ", "green", " like ", "red", f"?{end}"],
        ["Is ", "green", " like ", "red", f"?{end}"],
        ["What is between? ", "blue", " and then again ", "blue", end],
        ["Which one?\nA. ", "red", "\nB. ", "blue", letters],
        *[["red", f"Is it good?\nA. yes\nB. no\n\n{LETTER}"]] * 2,
    ])  # fmt: skip


def test_parts_of_a_message() -> None:
    image = Image.new("RGB", (2, 2), tables.COLORS["red"])
    assert shape(content_of("<image>\n<image>\nWhat?\n", [image] * 2)) == ["red", "red", "What?\n"]
    assert shape(content_of("A\n<image>\nB<image>", [image] * 2)) == ["A\n", "red", "\nB", "red"]
    assert shape(content_of("only text", [])) == ["only text"]
