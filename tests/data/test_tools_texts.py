"""The data tools on what texts are: HTML, languages, rounds; and what they tell scripts."""

from __future__ import annotations

import json
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from llava_tools.data.tools import languages, markup
from llava_tools.data.tools.languages import Languages
from llava_tools.data.tools.markup import to_markdown
from llava_tools.errors import UserError
from tests.data.test_tools import chat, run
from tests.jsonl import read, write

CODE = (
    '<pre><div class="bg-black"><div><span>{bar}</span><button>Copy code</button></div>'
    '<code class="{kind}">def f(x):\n    return "&lt;b&gt;"  # _x_\n</code></div></pre>'
)
PAGES = {
    '<div class="markdown prose"><p>Some <strong>bold</strong>, snake_case * 2.</p></div>': (
        "Some **bold**, snake_case * 2."
    ),
    "<ol><li>one<ul><li>in</li></ul></li><li>two</li></ol>": "1. one\n   - in\n2. two",
    f"<p>Code:</p>{CODE.format(bar='x', kind='hljs language-python')}": (
        'Code:\n\n```python\ndef f(x):\n    return "<b>"  # _x_\n```'
    ),
    CODE.format(bar="c++", kind="hljs"): '```c++\ndef f(x):\n    return "<b>"  # _x_\n```',
    "<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table>": (
        "| a | b |\n| --- | --- |\n| 1 | 2 |"
    ),
    "<p>2 / 3</p><p>Hello</p><p>Copy512 chars / 80 words</p>": "Hello",
    "<p>1 / 2</p>": "1 / 2",
}


@pytest.mark.parametrize(("page", "text"), PAGES.items())
def test_a_page_becomes_markdown(page: str, text: str) -> None:
    assert to_markdown(page) == text


def test_only_answers_that_are_pages_are_changed(tmp_path: Path) -> None:
    about = "Use <b>bold</b> or <p>a paragraph</p> there, as in `<p>x</p>`."
    pasted = "<div>Why is this div not closed properly?</div>"
    rows = [
        chat("a", pasted, "<p>Since it <em>is</em> closed.</p>", "And?", about),
        chat("b", "What is a lens, please?", "A piece of glass."),
    ]
    data = write(tmp_path / "in.jsonl", *rows)
    found = json.loads(run("clean", data, tmp_path / "o.jsonl", "--html", "--json"))
    assert found["notes"] == {"html_to_markdown": 1} and found["written"] == 2
    first, second = read(tmp_path / "o.jsonl")
    texts = [turn["value"] for turn in first["conversations"]]
    assert texts == [pasted, "Since it *is* closed.", "And?", about]
    assert second == rows[1]
    run("clean", data, tmp_path / "kept.jsonl")
    assert read(tmp_path / "kept.jsonl") == rows


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("alpaca", {"instruction": "<p>What is this?</p>", "input": "<p>x</p>", "output": "PAGE"}),
        ("airoboros", {"instruction": "<p>What is this?</p>", "response": "PAGE"}),
    ],
)
def test_answers_under_a_key_of_their_own_become_markdown(
    tmp_path: Path, kind: str, row: dict[str, str]
) -> None:
    page = "<p>It is a <b>cat</b>, no dog.</p><ul><li>red</li></ul>"
    text = "Write <p>it</p> so, in two tags."
    data = tmp_path / "in.jsonl"
    held = [
        {key: value.replace("PAGE", answer) for key, value in row.items()}
        for answer in (page, text)
    ]
    data.write_text("".join(json.dumps(one) + "\n" for one in held))
    found = json.loads(
        run("clean", data, tmp_path / "o.jsonl", "--html", "--json", "--format", kind)
    )
    assert found["notes"] == {"html_to_markdown": 1} and found["written"] == 2
    out = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    key = "output" if "output" in row else "response"
    assert out == [row | {key: "It is a **cat**, no dog.\n\n- red"}, row | {key: text}]


def test_copies_are_told_after_the_html_is_gone(tmp_path: Path) -> None:
    rows = [
        chat("a", "What is a lens?", "A piece of glass."),
        chat("b", "What is a lens?", "<p>A piece of glass.</p>"),
    ]
    data = write(tmp_path / "in.jsonl", *rows)
    found = json.loads(run("clean", data, tmp_path / "o.jsonl", "--html", "--json"))
    assert found["dropped"] == {"duplicate_first_exchange": 1}


TEXTS = {
    "en": ("What is the weather like today?", "It is sunny and warm, with a little wind."),
    "de": ("Wie ist heute das Wetter?", "Es ist sonnig und warm, mit ein wenig Wind."),
    "zh": ("今天天气怎么样？", "今天天气晴朗，温度适中，有一点风。"),
    "?": ("2+2", "4"),
    "code": ("```x```", "```\nWie ist heute das Wetter? Es ist sonnig und warm.\n```"),
}


@pytest.mark.parametrize(
    ("options", "stay"),
    [
        (("--keep-language", "en"), ["en", "?", "code"]),
        (("--keep-language", "en", "--keep-language", "zh"), ["en", "zh", "?", "code"]),
        (("--skip-language", "de"), ["en", "zh", "?", "code"]),
    ],
)
def test_languages(tmp_path: Path, options: tuple[str, ...], stay: list[str]) -> None:
    rows = [chat(name, *texts) for name, texts in TEXTS.items()]
    data = write(tmp_path / "in.jsonl", *rows)
    found = json.loads(run("filter", data, tmp_path / "o.jsonl", *options, "--json"))
    assert [row["id"] for row in read(tmp_path / "o.jsonl")] == stay
    assert found["dropped"] == {"other_language": len(TEXTS) - len(stay)}
    assert found["notes"] == {"language_unknown": 2}


def test_libraries_and_codes_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="There is no language 'english'") as caught:
        Languages(keep=["english"]).check()
    assert caught.value.hint.startswith("Did you mean 'en'? Give a code of ISO 639")
    with pytest.raises(UserError, match="contradict each other"):
        Languages(["en"], ["de"]).check()
    lacking = ("markdownify", "py3langid")
    for module in (markup, languages):
        monkeypatch.setattr(module, "find_spec", lambda n: None if n in lacking else find_spec(n))
    with pytest.raises(UserError, match="--html needs markdownify") as caught:
        markup.check_markup()
    assert "llava-tools[clean]" in caught.value.hint
    with pytest.raises(UserError, match="needs py3langid, which is not installed"):
        Languages(["en"]).check()
    Languages().check()


def test_the_first_round_with_its_system_text_and_images(tmp_path: Path) -> None:
    long = chat("a", "<image>\nOne?", "Two.", "<image>\nThree?", "Four.", image=["x.png", "y.png"])
    system = {"from": "system", "value": "Be brief."}
    with_system = chat("b", "One?", "Two.", "Three?", "Four.")
    with_system["conversations"].insert(0, system)
    single = chat("c", "One?", "Two.")
    nameless = {key: value for key, value in with_system.items() if key != "id"}
    data = write(tmp_path / "in.jsonl", long, with_system, single, nameless)
    found = json.loads(run("filter", data, tmp_path / "o.jsonl", "--first-round", "--json"))
    assert found["notes"] == {"later_rounds_left_out": 3} and not found["dropped"]
    first, second, third, fourth = read(tmp_path / "o.jsonl")
    assert first["image"] == "x.png" and first["id"] == "a"
    assert first["conversations"] == long["conversations"][:2]
    assert second["conversations"] == [system, *with_system["conversations"][1:3]]
    assert third == single and "id" not in fourth
    text = {"text": "### Human: One?### Assistant: Two.### Human: Three?### Assistant: Four."}
    data = write(tmp_path / "guanaco.jsonl", text)
    found = json.loads(run("filter", data, tmp_path / "g.jsonl", "--first-round", "--json"))
    assert found["notes"] == {"no_list_of_messages": 1} and read(tmp_path / "g.jsonl") == [text]


ALL: dict[str, tuple[Any, ...]] = {
    "clean": ("--html",),
    "split": ("--budget", 40),
    "filter": ("--repeated-digits", "--keep-language", "en", "--first-round"),
    "merge": (),
    "sample": ("--rows", 3, "--seed", 5),
    "convert": ("--to", "messages"),
}


@pytest.mark.parametrize("tool", ALL)
@pytest.mark.parametrize("ending", [".json", ".jsonl"])
def test_a_rerun_gives_the_same_bytes(tmp_path: Path, tool: str, ending: str) -> None:
    rows = [
        chat(str(i), *[f"What is number {i}, my friend?", "<p>It is.</p>"] * 3) for i in range(9)
    ]
    data = write(tmp_path / "in.jsonl", *rows)
    said = []
    for name in ("a", "b"):
        out, report = tmp_path / f"{name}{ending}", tmp_path / f"{name}.report"
        summary = json.loads(run(tool, data, out, *ALL[tool], "--json", "--report", report))
        assert summary.pop("out") == str(out)
        said.append((summary, out.read_bytes(), report.read_bytes()))
    assert said[0] == said[1]
    assert said[0][0]["rows"] == 9 or tool == "sample"


def test_both_sides_of_a_hold_out_are_told_and_repeat(tmp_path: Path) -> None:
    data = write(
        tmp_path / "in.jsonl", *(chat(str(i), f"What is {i}?", "This.") for i in range(50))
    )
    words = ("hold-out", data, tmp_path / "t.jsonl", "--eval", tmp_path / "e.jsonl")
    first = json.loads(run(*words, "--share", 0.3, "--json"))
    before = [(tmp_path / name).read_bytes() for name in ("t.jsonl", "e.jsonl")]
    assert json.loads(run(*words, "--share", 0.3, "--json", "--overwrite")) == first
    assert [(tmp_path / name).read_bytes() for name in ("t.jsonl", "e.jsonl")] == before
    assert first["train"]["written"] + first["eval"]["written"] == 50
    assert "rows read" in run(*words, "--overwrite")


def test_rows_of_two_formats_are_not_merged(tmp_path: Path) -> None:
    chats = write(tmp_path / "a.jsonl", chat("a", "Hello?", "Yes."))
    alpaca = write(tmp_path / "b.jsonl", {"instruction": "Add.", "input": "", "output": "15"})
    with pytest.raises(UserError, match="a.jsonl, line 1 and .*b.jsonl, line 1 are rows of two"):
        run("merge", chats, alpaca, tmp_path / "o.jsonl")
    assert not (tmp_path / "o.jsonl").exists() and len(list(tmp_path.iterdir())) == 2


def test_long_work_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("llava_tools.data.progress.PLAIN_SECONDS", -1.0)
    data = write(tmp_path / "in.jsonl", *(chat(str(i), "Hello?", "Yes.") for i in range(3)))
    with caplog.at_level(logging.INFO):
        assert "mean_length              10.00\n" in run("stats", data)
    assert f"{data}: 3 rows" in caplog.text and "ETA 0 s" in caplog.text


def test_what_a_conversion_mends_is_told(tmp_path: Path) -> None:
    row = chat("a", "One?", "", "Two?", "Yes.", "Three?")
    data = write(tmp_path / "in.jsonl", row)
    found = json.loads(run("convert", data, tmp_path / "o.jsonl", "--to", "llava", "--json"))
    assert found["notes"] == {"empty_pair": 1, "question_unanswered": 1}
    assert read(tmp_path / "o.jsonl")[0]["conversations"] == row["conversations"][2:4]


def test_a_conversion_names_the_fields_that_it_leaves_out(tmp_path: Path) -> None:
    row = {"instruction": "Hi", "response": "Yo", "system": "S", "category": "x", "score": 1}
    data, report = write(tmp_path / "in.jsonl", row), tmp_path / "report"
    run("convert", data, tmp_path / "o.jsonl", "--to", "messages", "--report", report)
    (told,) = read(report)
    assert (told["note"], told["detail"]) == ("other_fields_left_out", "category, score")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    data = write(tmp_path / "in.jsonl", chat("a", "What is a lens?", "A piece of glass."))
    with pytest.raises(UserError, match="Cannot write '.*in.jsonl/out.jsonl'"):
        run("clean", data, data / "out.jsonl")
    words = ("convert", data, tmp_path / "o.jsonl", "--to", "alpaca", "--dataset-info")
    with pytest.raises(UserError, match="Cannot write '.*in.jsonl/info.json'"):
        run(*words, data / "info.json")
