"""The page in a headless Chromium: images, streaming, stop, regenerate, parameters, export."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from llava_tools.chat.pictures import read_picture
from llava_tools.chat.session import Session
from llava_tools.model.load import Assistant
from tests.web.browser import Browser, find_browser
from tests.web.conftest import SETTINGS, Serve

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason="no chromium here"),
]
IDLE = "!document.querySelector('#send').disabled"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    program = find_browser()
    assert program
    page = Browser(program, tmp_path)
    yield page
    page.close()


def drop(browser: Browser, *files: Path, kind: str = "image/png") -> None:
    """Drop files on the page."""
    listed = [[file.name, base64.b64encode(file.read_bytes()).decode()] for file in files]
    browser.run(f"""(() => {{
        const data = new DataTransfer();
        for (const [name, text] of {json.dumps(listed)}) {{
            const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
            data.items.add(new File([bytes], name, {{type: "{kind}"}}));
        }}
        document.body.dispatchEvent(
            new DragEvent("drop", {{dataTransfer: data, bubbles: true, cancelable: true}}));
    }})()""")


def ask(browser: Browser, text: str) -> None:
    """Type a question and press Enter."""
    browser.run("document.querySelector('#question').focus()")
    browser.call("Input.insertText", text=text)
    key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
    browser.call("Input.dispatchKeyEvent", type="keyDown", **key)
    browser.call("Input.dispatchKeyEvent", type="keyUp", **key)


def answers(browser: Browser) -> list[str]:
    """Return the answers on the page, without the notes beneath them."""
    script = "[...document.querySelectorAll('.answer')].map((e) => e.firstChild?.data ?? '')"
    result: list[str] = browser.run(script)
    return result


def put(browser: Browser, name: str, value: object) -> None:
    browser.run(f"document.querySelector('#{name}').value = {json.dumps(value)}")


def expected(assistant: Assistant, picture: Path, *questions: str) -> list[str]:
    """Return what the terminal's dialogue answers."""
    session = Session(assistant, SETTINGS, "Be brief.")
    session.show([read_picture(str(picture))])
    return ["".join(session.ask(question)) for question in questions]


def test_two_models_side_by_side_answer_as_in_the_terminal(
    browser: Browser, serve: Serve, assistants: dict[str, Assistant], parts: Path, tmp_path: Path
) -> None:
    picture = parts / "images" / "0.png"
    url = serve("phi3", "llama3", system="Be brief.")
    browser.open(url)
    browser.wait(IDLE)
    drop(browser, picture)
    browser.wait("document.querySelectorAll('#images img').length === 1")
    questions = ("What is <b>it</b>, 'Ü' 🐱?", "And what else?")
    for count, question in enumerate(questions, 1):
        ask(browser, question)
        browser.wait(f"{IDLE} && document.querySelectorAll('.answer').length === {2 * count}")
    wanted = [expected(assistants[family], picture, *questions) for family in ("phi3", "llama3")]
    assert answers(browser) == [wanted[0][0], wanted[1][0], wanted[0][1], wanted[1][1]]
    assert browser.run("document.querySelectorAll('.question img').length") == 1
    assert browser.run("document.querySelectorAll('b').length") == 0
    shot = tmp_path / "page.png"
    browser.shoot(shot)
    colours = Image.open(shot).convert("RGB").getcolors(2**20)
    assert colours is not None and len(colours) > 20
    outside = [r for r in browser.requests if not r.startswith((url, "data:", "about:"))]
    assert outside == [] and browser.console == []


def test_regenerate_stop_and_parameters(
    browser: Browser, serve: Serve, tmp_path: Path, assistants: dict[str, Assistant]
) -> None:
    browser.open(serve("llama3"))
    browser.wait(IDLE)
    assert browser.run("document.querySelector('#max_tokens').value") == "12"
    assert browser.run("document.querySelector('#stop_words').value") == "never said"
    assert browser.run("document.querySelector('#again').disabled")
    put(browser, "temperature", 1.5)
    ask(browser, "one?")
    browser.wait(f"{IDLE} && document.querySelectorAll('.answer').length === 1")
    assert "(cut at the longest answer)" in browser.run("document.body.innerText")
    [first] = answers(browser)
    browser.run("document.querySelector('#again').click()")
    browser.wait(IDLE)
    assert browser.run("document.querySelector('#seed').value") == "1"
    assert answers(browser) != [first]
    put(browser, "seed", -1)
    browser.run("document.querySelector('#again').click()")
    browser.wait(IDLE)
    assert answers(browser) == [first]  # seed 0 again
    put(browser, "temperature", 0)  # greedy, it goes in circles: it cannot end before it is stopped
    put(browser, "max_tokens", 20000)
    ask(browser, "long?")
    browser.wait("(document.querySelectorAll('.answer')[1]?.firstChild?.data ?? '').length > 20")
    assert browser.run("document.querySelector('#send').disabled")  # it is streaming
    browser.run("document.querySelector('#stop').click()")
    browser.wait(f"{IDLE} && document.body.innerText.includes('(stopped)')")
    browser.run("document.querySelector('#again').click()")
    browser.wait("document.querySelector('#talk').ariaBusy === 'true'")
    escape = {"key": "Escape", "code": "Escape", "windowsVirtualKeyCode": 27}
    browser.call("Input.dispatchKeyEvent", type="keyDown", **escape)
    browser.wait(f"{IDLE} && document.body.innerText.includes('(stopped)')")
    assert browser.run("document.querySelector('#talk').ariaBusy") == "false"
    put(browser, "max_tokens", 5)
    ask(browser, "Go on.")
    browser.wait(f"{IDLE} && document.querySelectorAll('.answer').length === 3")
    assert answers(browser)[2]


def test_export_and_a_new_conversation(
    browser: Browser, serve: Serve, parts: Path, tmp_path: Path
) -> None:
    browser.open(serve("phi3", system="Be brief."))
    browser.wait(IDLE)
    picture = parts / "images" / "1.png"
    drop(browser, picture)
    browser.wait("document.querySelectorAll('#images img').length === 1")
    ask(browser, "one?")
    browser.wait(f"{IDLE} && document.querySelectorAll('.answer').length === 1")
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.run("document.querySelector('#export').click()")
    file = tmp_path / "conversation.json"
    browser.wait("true")
    for _ in range(500):
        if file.exists() and file.stat().st_size:
            break
        browser.run("new Promise((done) => setTimeout(done, 20))")
    exported = json.loads(file.read_text())
    [talk] = exported["conversations"]
    assert [m["role"] for m in talk["messages"]] == ["system", "user", "assistant"]
    assert (talk["model"], talk["template"]) == ("tiny-phi3", "phi3_chat")
    url = talk["messages"][1]["content"][0]["image_url"]["url"]
    assert base64.b64decode(url.split(",")[1]) == picture.read_bytes()
    assert talk["messages"][2]["content"] == answers(browser)[0]
    assert exported["settings"]["max_tokens"] == 12
    browser.run("document.querySelector('#clear').click()")
    assert answers(browser) == []


def test_what_goes_wrong_is_said(browser: Browser, serve: Serve, tmp_path: Path) -> None:
    browser.open(serve("phi3"))
    browser.wait(IDLE)
    text = tmp_path / "a.txt"
    text.write_text("no image")
    drop(browser, text, kind="text/plain")
    browser.wait("document.querySelector('#problem').textContent === 'a.txt is no image.'")
    drop(browser, text)  # it says that it is one
    browser.wait("document.querySelectorAll('#images img').length === 1")
    ask(browser, "   ")
    assert browser.run("document.querySelector('#problem').textContent") == "Ask something."
    ask(browser, "What is it?")
    browser.wait(f"{IDLE} && document.querySelectorAll('.failed').length === 1")
    assert "broken or no image" in browser.run("document.querySelector('.failed').textContent")
    ask(browser, "And without?")  # the image that could not be read is not sent again
    browser.wait(f"{IDLE} && document.querySelectorAll('.answer').length === 2")
    assert browser.run("document.querySelectorAll('.failed').length") == 1 and answers(browser)[1]
    put(browser, "temperature", 11)
    browser.run("document.querySelector('#again').click()")
    browser.wait(IDLE)
    assert "temperature" in browser.run("document.querySelectorAll('.failed')[1].textContent")


def test_code_keeps_its_columns_and_everything_has_a_name(browser: Browser, serve: Serve) -> None:
    browser.open(serve("phi3"))
    browser.wait(IDLE)
    text = "One\n```html\n<b>x</b>\n    y\n```\ntwo `z` <i>w</i>\n```\nnot closed"
    shown = f"answerBox({{text: {json.dumps(text)}, note: '', failed: false}})"
    parts = browser.run(f"[...{shown}.childNodes].map((n) => [n.nodeName, n.textContent])")
    assert parts == [
        ["#text", "One"],
        ["PRE", "<b>x</b>\n    y"],
        ["#text", "two `z` <i>w</i>"],
        ["PRE", "not closed"],
    ]
    assert browser.run("answerBox({text: '', note: 'no', failed: true}).textContent") == "no"
    browser.run("images = ['data:,', 'data:,']; showControls()")
    tree = browser.call("Accessibility.getFullAXTree")["nodes"]
    asks = ("button", "textbox", "spinbutton", "log", "DisclosureTriangle", "image")
    found = [node for node in tree if node.get("role", {}).get("value") in asks]
    assert len(found) > 10
    assert [node["role"]["value"] for node in found if not node["name"]["value"]] == []
