"""Seeded faults are all found, with their reason and row; clean rows raise none."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import PreTrainedTokenizerFast

from llava_tools.cli.entry import run
from llava_tools.config import Settings
from llava_tools.data import audit as audit_module
from llava_tools.data.audit import audit
from llava_tools.data.audit_page import to_html, to_lines
from llava_tools.data.prepare import Limits
from llava_tools.data.show import shown_rows
from llava_tools.errors import UserError
from llava_tools.model.vision import check_features
from tests.train.runs import write_config

MakeSettings = Callable[..., Settings]
TEMPLATES = {
    "phi3_chat": "phi3",
    "llama3_chat": "llama3",
    "vicuna": "vicuna",
    "internlm2_chat": "phi3",
}


@pytest.fixture(scope="session")
def fitting(parts: Path) -> dict[str, Any]:
    """Return a tokenizer for each template."""
    made = {n: PreTrainedTokenizerFast.from_pretrained(parts / f) for n, f in TEMPLATES.items()}
    tokens = ["<|im_start|>", "<|im_end|>"]
    made["internlm2_chat"].add_special_tokens({"additional_special_tokens": tokens})
    return made


def human(text: Any) -> dict[str, Any]:
    return {"from": "human", "value": text}


def gpt(text: Any) -> dict[str, Any]:
    return {"from": "gpt", "value": text}


def talk(*turns: Any, **more: Any) -> dict[str, Any]:
    return {"conversations": list(turns), **more}


ASK, TEXT, REPLY = human("<image>\nWhat?"), human("one?"), gpt("two")
FAULTS: dict[str, tuple[str, Any]] = {
    "a list": ("not_an_object", [1]),
    "a string": ("not_an_object", "two"),
    "no conversations": ("no_conversations", {"image": "0.png"}),
    "empty conversations": ("no_conversations", talk()),
    "conversations as text": ("no_conversations", {"conversations": "two"}),
    "a turn as text": ("bad_turn", talk("one", REPLY)),
    "a value that is a number": ("bad_turn", talk(human(3), REPLY)),
    "no from": ("bad_turn", talk({"value": "x"}, REPLY)),
    "an unknown role": ("unknown_role", talk({"from": "robot", "value": "x"}, REPLY)),
    "a late system": ("misplaced_system", talk(TEXT, REPLY, {"from": "system", "value": "x"})),
    "image as number": ("bad_image_field", talk(ASK, REPLY, image=3)),
    "empty image path": ("bad_image_field", talk(ASK, REPLY, image="")),
    "image, no token": ("image_without_token", talk(TEXT, REPLY, image="0.png")),
    "token, no image": ("token_without_image", talk(ASK, REPLY)),
    "two images, one token": ("image_count", talk(ASK, REPLY, image=["0.png", "1.png"])),
    "token in an answer": ("misplaced_image_token", talk(ASK, gpt("a <image>"), image="0.png")),
    "only a question": ("no_answer", talk(TEXT)),
    "only an answer": ("no_answer", talk(REPLY)),
    "control token in a question": ("control_text_escaped", talk(human("BOS x"), REPLY)),
    "control token in an answer": ("control_text_escaped", talk(TEXT, gpt("x BOS"))),
    "image beyond max_length": (
        "image_cut",
        talk(TEXT, gpt("two " * 300), ASK, REPLY, image="0.png"),
    ),
    "a long question": ("nothing_supervised", talk(human("one " * 300), REPLY)),
    "beyond context": ("beyond_context", talk(*[ASK, REPLY] * 3, image=["0.png"] * 3)),
    "outside": ("outside_folder", talk(ASK, REPLY, image="../clip/config.json")),
    "missing": ("missing_image", talk(ASK, REPLY, image="no.png")),
    "cut file": ("broken_image", talk(ASK, REPLY, image="cut.png")),
    "text as image": ("broken_image", talk(ASK, REPLY, image="text.png")),
    "empty file": ("broken_image", talk(ASK, REPLY, image="empty.png")),
    "long answer": ("answer_cut", talk(TEXT, gpt("two " * 300))),
    "no last answer": ("question_unanswered", talk(TEXT, REPLY, TEXT)),
    "two questions": ("questions_merged", talk(TEXT, TEXT, REPLY)),
    "answer first": ("answer_first", talk(REPLY, TEXT, REPLY)),
    "empty answer": ("no_answer", talk(TEXT, gpt(" "))),
    "the same id": ("duplicate_id", talk(human("another"), REPLY, id="clean")),
    "the same row": ("duplicate_row", talk(human("clean?"), gpt("yes"))),
}
CLEAN = talk(human("clean?"), gpt("yes"), id="clean")


@pytest.fixture
def pictures(parts: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    shutil.copytree(parts / "images", folder)
    whole = (folder / "0.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("no picture")
    (folder / "empty.png").write_bytes(b"")
    return folder


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_found(
    kind: str, template: str, make_settings: MakeSettings, fitting: Any, pictures: Path
) -> None:
    reason, row = FAULTS[kind]
    tokenizer = fitting[template]
    text = json.dumps(row).replace("BOS", tokenizer.bos_token)
    made = make_settings(
        [CLEAN, json.loads(text)],
        prompt_template=template,
        image_folder=str(pictures),
        max_length=250,
    )
    limits = Limits(context=850, image_positions=300)
    report = audit(made, tokenizer, limits)
    assert reason in report.counts, report.counts
    assert [f.origin.split(", ")[-1] for f in report.examples[reason]] == ["row 2"]
    assert set(report.counts) <= {reason, "answer_cut"}


@pytest.mark.parametrize("template", TEMPLATES)
def test_clean_rows_raise_nothing(template: str, make_settings: MakeSettings, fitting: Any) -> None:
    report = audit(make_settings(prompt_template=template), fitting[template])
    assert (report.seen, report.faults, dict(report.counts)) == (6, 0, {})


def test_several_processes_find_the_same(
    make_settings: MakeSettings, fitting: Any, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [CLEAN, *(row for _, row in FAULTS.values())]
    made = make_settings(rows, image_folder=str(pictures), num_workers=2)
    alone = audit(made, fitting["phi3_chat"])
    monkeypatch.setattr(audit_module, "PARALLEL_BYTES", 0)
    monkeypatch.setattr("llava_tools.data.blocks.BLOCK_ROWS", 5)
    monkeypatch.setattr(audit_module, "count_cpus", lambda: 2)
    assert audit(made, fitting["phi3_chat"]) == alone


def _hostile(tmp_path: Path, parts: Path, **changes: Any) -> str:
    attack = "<script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"
    rows = [talk(human("<image>\n" + attack), gpt(attack), image="0.png", id=attack)]
    rows += [talk(ASK, gpt(attack), image=attack, id=attack)]
    path = tmp_path / "hostile.json"
    path.write_text(json.dumps(rows))
    spec = {"data_path": str(path), "image_folder": str(parts / "images")}
    return str(write_config(tmp_path, parts, datasets=[spec], **changes))


def test_the_command_reports_and_ends_with_2(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = str(write_config(tmp_path / "clean", parts))
    assert run(["data", "audit", clean, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == {"rows": 6, "faults": 0, "reasons": []}
    config = _hostile(tmp_path, parts)
    assert run(["data", "audit", config, "--json", str(tmp_path / "a.json")]) == 2
    printed = capsys.readouterr()
    assert "2 rows, 1 with a fault" in printed.out
    assert "1 of 2 rows have a fault, more than max_skipped = 0.01 allows" in printed.err
    found = json.loads((tmp_path / "a.json").read_text())["reasons"]
    assert [(r["reason"], r["fault"], r["count"]) for r in found if r["fault"]] == [
        ("missing_image", True, 1)
    ]


def test_a_report_that_cannot_be_written_is_told_before_the_rows_are_read(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, data = _hostile(tmp_path, parts), tmp_path / "hostile.json"
    before = data.read_bytes()
    for target, message in (
        (tmp_path / "no" / "a.html", "its folder is not there"),
        (tmp_path, "it is a folder"),
        (data, "is one of the inputs"),
        (Path(config), "is one of the inputs"),
    ):
        for flag in ("--html", "--json"):
            assert run(["data", "audit", config, flag, str(target)]) == 2
            printed = capsys.readouterr()
            assert message in printed.err and not printed.out
    both = str(tmp_path / "a.html")
    assert run(["data", "audit", config, "--json", both, "--html", both]) == 2
    assert f"--json and --html are both '{both}'" in capsys.readouterr().err
    assert data.read_bytes() == before


def test_the_page_is_escaped_and_shows_the_image(parts: Path, tmp_path: Path) -> None:
    page = _page(parts, tmp_path).read_text()
    assert "<script" not in page and "<img src=x" not in page and "&lt;script&gt;" in page
    assert page.count("data:image/png;base64,") == 1 and "http://" not in page
    assert 'class="trained"' in page and 'class="image"' in page


def test_a_browser_runs_nothing_of_a_hostile_row(parts: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no chromium here")
    page, shot = _page(parts, tmp_path), tmp_path / "page.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command = [browser, *flags, "--virtual-time-budget=2000", f"--user-data-dir={tmp_path / 'b'}"]
    dumped = subprocess.run(
        [*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert "<title>Data audit</title>" in dumped.stdout
    page.with_name("open.html").write_text("<title>x</title><script>document.title='run'</script>")
    seen = subprocess.run(
        [*command, "--dump-dom", page.with_name("open.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "<title>run</title>" in seen.stdout  # the same attack, where nothing holds it off
    subprocess.run(
        [*command, f"--screenshot={shot}", "--window-size=400,800", page.as_uri()],
        capture_output=True,
        timeout=120,
    )
    colours = Image.open(shot).convert("RGB").getcolors(2**20)
    assert colours is not None and len(colours) > 20


def test_a_malformed_line_is_a_fault_and_the_rest_goes_on(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "rows.jsonl"
    lines = ['{"id": 1', json.dumps(CLEAN), '{"id": NaN}', json.dumps(FAULTS["only a question"][1])]
    data.write_text("\n".join(lines))
    spec = {"data_path": str(data), "image_folder": str(parts / "images")}
    config = str(write_config(tmp_path, parts, datasets=[spec], max_skipped=1.0))
    files = ["--json", str(tmp_path / "a.json"), "--html", str(tmp_path / "a.html")]
    assert run(["data", "audit", config, *files]) == 2
    error = capsys.readouterr().err
    assert "Rows that are no valid JSON: 2. Training stops at the first of them: " in error
    assert "rows.jsonl, line 1: malformed JSON: " in error
    found = json.loads((tmp_path / "a.json").read_text())
    assert (found["rows"], found["faults"]) == (4, 3)
    counts = {r["reason"]: [e["origin"][-6:] for e in r["examples"]] for r in found["reasons"]}
    assert counts == {"malformed_json": ["line 1", "line 3"], "no_answer": ["line 4"]}
    page = (tmp_path / "a.html").read_text()
    assert "clean?" in page and "malformed_<wbr>json" in page
    assert run(["train", config, "--work-dir", str(tmp_path / "work")]) == 2
    assert "rows.jsonl, line 1: malformed JSON: " in capsys.readouterr().err


def test_a_key_twice_is_noted(make_settings: MakeSettings, fitting: Any) -> None:
    made = make_settings([])
    text = json.dumps([CLEAN]).replace('"id"', '"id": "other", "id"')
    Path(made.datasets[0].data_path).write_text(text)
    report = audit(made, fitting["phi3_chat"])
    assert (report.faults, dict(report.counts)) == (0, {"duplicate_key": 1})


def test_what_a_row_says_of_itself_stays_short_and_moves_no_cursor(
    make_settings: MakeSettings, fitting: Any
) -> None:
    name = "\x1b[31m\u202e\0" + "L" * 3000
    report = audit(
        make_settings([talk(ASK, REPLY, image=name[:2] + "x.png", id=name)]), fitting["phi3_chat"]
    )
    shown = "\n".join(to_lines(report)) + to_html(report, [], None, None)
    assert "L" * 290 in shown and "L" * 300 not in shown
    assert not {"\x1b", "\u202e", "\0"} & set(shown)


def test_texts_cannot_turn_the_page_around(make_settings: MakeSettings, fitting: Any) -> None:
    made = make_settings([talk(human("a\u202eb\0c\n"), gpt("\u2067d"))])
    tokenizer = fitting["phi3_chat"]
    shown = [(made.datasets[0], row) for row in shown_rows(made, tokenizer)]
    page = to_html(audit(made, tokenizer), shown, tokenizer, None)  # type: ignore[arg-type]
    assert "a[U+202E]b[U+0000]c\n" in page and "[U+2067]d" in page
    assert not {"\u202e", "\u2067", "\0"} & set(page)


def test_a_tower_that_gives_other_features_is_an_error(parts: Path) -> None:
    check_features(str(parts / "clip"), -2, 28, 4)
    check_features(str(parts / "siglip"), -2, 28, 4)
    with pytest.raises(UserError, match="gives 4 features an image, where 9 positions are"):
        check_features(str(parts / "clip"), -2, 28, 9)
    with pytest.raises(UserError, match="does not take the images of its own"):
        check_features(str(parts / "clip"), -2, 42, 4)


def _page(parts: Path, tmp_path: Path) -> Path:
    page = tmp_path / "audit.html"
    run(["data", "audit", _hostile(tmp_path, parts), "--html", str(page)])
    return page
