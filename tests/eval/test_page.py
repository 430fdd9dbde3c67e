"""The page of an evaluation: what it shows, that it filters, and that it runs nothing."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llava_tools.cli.entry import run
from llava_tools.eval.page_rows import _place
from llava_tools.eval.report import score_file
from tests.eval import tables
from tests.web.browser import Browser, find_browser

ATTACK = "<script>document.title='run'</script>"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A scored run of 4 questions: right, wrong, undecided and missing; one row is hostile."""
    rows = [
        {"index": i, "question": f"Q{i}? {ATTACK}", "A": "cat", "B": f"dog {ATTACK}",
         "answer": "A", "category": ["x", ATTACK][i % 2], "image": tables.picture("red")}
        for i in range(4)
    ]  # fmt: skip
    data = tables.write(tmp_path / "data.tsv", rows)
    (tmp_path / "p.csv").write_text(f"index,prediction\n0,A\n1,B {ATTACK}\n2,who knows\n")
    score_file("seed", tmp_path / "p.csv", data, "vlmevalkit", tmp_path / "work")
    return tmp_path / "work"


def test_every_row_is_shown_and_escaped(work: Path, capsys: Any) -> None:
    assert run(["eval", "show", str(work)]) == 0
    assert capsys.readouterr().out.strip() == str(work / "report.html")
    page = (work / "report.html").read_text()
    assert page.count("<article") == 4 and page.count("data:image/jpeg;base64,") == 1
    assert "<script" not in page and "&lt;script&gt;" in page and "http://" not in page
    assert re.findall(r'<article class="(\w+) ', page) == ["wrong", "undecided", "missing", "right"]
    assert "wrong: read as B, right is A" in page and "undecided: right is A" in page
    assert "Accuracy % 25.0" in page and "Protocol vlmevalkit" in page
    assert "4 of 4 rows" in page
    assert run(["eval", "show", str(work), "--most", "1", "--out", str(work / "x.html")]) == 0
    assert (work / "x.html").read_text().count("<article") == 1


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("no chromium here")
    started = Browser(program, tmp_path_factory.mktemp("browser"))
    yield started
    started.close()


SEEN = "[...document.querySelectorAll('article')].filter(a => a.checkVisibility())"


def press(browser: Browser, button: str) -> str:
    """Press a button; return the states of the rows that are seen then, by their first letters."""
    browser.run(f"document.querySelector('label[for={button}]').click()")
    return str(browser.run(f"{SEEN}.map(a => a.className[0]).join('')"))


def test_a_browser_filters_and_runs_nothing(work: Path, browser: Browser) -> None:
    assert run(["eval", "show", str(work)]) == 0
    browser.open((work / "report.html").as_uri())
    assert browser.run("document.title").startswith("seed")
    assert press(browser, "s0") == "wumr"
    assert (press(browser, "s2"), press(browser, "s3"), press(browser, "s4")) == ("w", "u", "m")
    kinds = [ATTACK, "x"]  # in the order of the buttons: rows 1 and 3, rows 2 and 0
    assert sorted(kinds) == kinds
    assert (press(browser, "k1"), press(browser, "s0"), press(browser, "k2")) == ("m", "wm", "ur")
    assert press(browser, "s2") == ""
    empty = "getComputedStyle(document.querySelector('main'), '::before').content"
    assert "No such row is shown" in browser.run(empty)
    drawn = "[...document.querySelectorAll('svg.picture')].map(p => p.getBBox().width)"
    press(browser, "s0"), press(browser, "k0")
    assert browser.run(drawn) == [20] * 4  # the one picture that is defined, in every row
    assert browser.console == [] and len(browser.requests) == 2  # the page and its picture


def test_the_page_fits_a_phone_and_the_dark(work: Path, browser: Browser) -> None:
    assert run(["eval", "show", str(work)]) == 0
    size = {"width": 360, "height": 700, "deviceScaleFactor": 1, "mobile": True}
    browser.call("Emulation.setDeviceMetricsOverride", **size)
    papers = []
    for scheme in ("light", "dark"):
        wanted = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.call("Emulation.setEmulatedMedia", features=wanted)
        browser.open((work / "report.html").as_uri())
        assert browser.run("document.documentElement.scrollWidth") == 360
        papers.append(browser.run("getComputedStyle(document.body).backgroundColor"))
    browser.call("Emulation.clearDeviceMetricsOverride")
    assert papers == ["rgb(255, 255, 255)", "rgb(23, 24, 26)"]


@pytest.mark.parametrize(
    ("protocol", "said"),
    [
        ("xtuner", "{<50><20><100><60>}"),
        ("lmms-eval", "[0.5, 0.2, 1.0, 0.6]"),
        ("vlmevalkit-2026", "[100, 20, 200, 60]"),
        ("llava", "[0.5, 0.35, 1.0, 0.55]"),
    ],
)
def test_boxes_lie_where_they_were_meant(tmp_path: Path, protocol: str, said: str) -> None:
    """The picture has 200 x 100 pixels, so that every unit is another one."""
    row = {"question": "left", "width": 200, "height": 100, "answer": "[20, 10, 120, 60]",
           "image": tables.picture("red", (200, 100)), "category": "RefCOCO val"}  # fmt: skip
    if protocol == "vlmevalkit-2026":
        said = "[500, 200, 1000, 600]"
    rows = [{"index": i, **row} for i in range(3)]
    data = tables.write(tmp_path / "r.tsv", rows, list(rows[0]))
    far = "{<120><20><150><60>}" if protocol == "xtuner" else "[1.2, 0.2, 1.5, 0.6]"
    (tmp_path / "p.csv").write_text(f'index,prediction\n0,"{said}"\n1,left\n2,"{far}"\n')
    score_file("refcoco", tmp_path / "p.csv", data, protocol, tmp_path / "work")
    assert run(["eval", "show", str(tmp_path / "work")]) == 0
    page = (tmp_path / "work" / "report.html").read_text()
    shapes = r'<rect class="(\w+)-box" x="(.*?)" y="(.*?)" width="(.*?)" height="(.*?)"/>'
    rights, answers = (
        [tuple(map(float, box)) for kind, *box in re.findall(shapes, page) if kind == wanted]
        for wanted in ("gold", "said")
    )
    assert rights == [(20, 10, 100, 50)] * 3
    assert (100, 20, 100, 40) in answers and len(answers) == 2
    assert page.count("the answer has no box") == 1
    # VLMEvalKit cuts what lies outside, down to a line on the edge.
    assert page.count("outside the picture") == (protocol != "vlmevalkit-2026")


def test_a_page_of_some_rows_has_every_state_and_category(tmp_path: Path) -> None:
    rows = [{"index": i, "question": "Q?", "A": "cat", "B": "dog", "answer": "A",
             "category": "abcd"[i // 250], "image": tables.picture("red")}
            for i in range(1000)]  # fmt: skip
    data = tables.write(tmp_path / "data.tsv", rows)
    said = "".join(f"{i},{['B', 'B', 'who knows', 'A'][i % 4]}\n" for i in range(1000))
    (tmp_path / "p.csv").write_text(f"index,prediction\n{said}")
    score_file("seed", tmp_path / "p.csv", data, "vlmevalkit", tmp_path / "work")
    assert run(["eval", "show", str(tmp_path / "work"), "--most", "88"]) == 0
    page = (tmp_path / "work" / "report.html").read_text()
    shown = Counter(re.findall(r'<article class="(\w+) (c\d)', page))
    assert shown == {(s, f"c{k}"): n for s, n in (("wrong", 10), ("undecided", 10), ("right", 2))
                     for k in range(4)}  # fmt: skip
    assert "right 8 of 250" in page and "88 of 1000 rows" in page
    assert page.count("data:image") == 1


def test_a_suite_gets_a_page_for_each_benchmark(work: Path, capsys: Any) -> None:
    """One has verdicts, one is to be submitted, one failed."""
    root = work.parent / "suite"
    root.mkdir()
    work.rename(root / "AI2D_TEST")
    counts = {"rows": 4, "undecided": 1, "missing": 1}
    data = {"path": "data.tsv", "published_as": None}
    cell = {"protocol": "lmms-eval", "data": data, "counts": counts, "split": "",
            "submission": None, "values": [0.25], "work_dir": "elsewhere/AI2D_TEST"}  # fmt: skip
    test = cell | {"values": None, "work_dir": "x/TEST", "submission": "submission.xlsx"}
    results = {"suite": "llava-table", "model": "model & co", "failed": {"POPE": "no column <x>"},
               "cells": {"AI2D Test": cell, "MMBench Test (EN)": test}}  # fmt: skip
    (root / "results.json").write_text(json.dumps(results))
    assert run(["eval", "show", str(root)]) == 0
    assert capsys.readouterr().out.strip() == str(root / "report.html")
    page = (root / "report.html").read_text()
    assert '<a href="AI2D_TEST/report.html">AI2D Test</a><td>25.0<td>data.tsv, protocol' in page
    assert "<td>submit<td>" in page and "No page: &#x27;" in page and "no column &lt;x&gt;" in page
    assert "model &amp; co" in page and (root / "AI2D_TEST" / "report.html").is_file()
    assert run(["eval", "show", str(root), "--out", "x.html"]) == 2
    assert "holds a suite, which gets several pages" in capsys.readouterr().err


def test_what_cannot_be_shown_is_named(work: Path, tmp_path: Path, capsys: Any) -> None:
    data = tmp_path / "data.tsv"
    data.write_text(data.read_text().replace("cat", "cow"))
    assert run(["eval", "show", str(work)]) == 2
    data.rename(tmp_path / "moved.tsv")
    assert run(["eval", "show", str(work)]) == 2
    assert run(["eval", "show", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "is not the file that was evaluated" in error
    assert "There is no file" in error and "holds no scores.json" in error
    rows = [{**row, "answer": ""} for row in tables.small(1)]
    (tmp_path / "q.csv").write_text("index,prediction\n0,A\n")
    bare = tables.write(tmp_path / "test.tsv", rows)
    score_file("mmbench", tmp_path / "q.csv", bare, work_dir=tmp_path / "bare")
    assert run(["eval", "show", str(tmp_path / "bare")]) == 2
    assert "has no verdicts" in capsys.readouterr().err


def test_a_box_that_is_turned_round_is_drawn_all_the_same() -> None:
    """A rectangle of SVG has no negative sides."""
    wanted = 'x="10.0" y="25.0" width="40.0" height="25.0"'
    assert (
        _place((0.5, 0.5, 0.1, 0.25), 100, 100) == wanted == _place((0.1, 0.25, 0.5, 0.5), 100, 100)
    )
