"""Rows of JSON lists and JSONL files are cut exactly where a JSON parser would cut them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_tools.data.rows import origin, parse_row, read_rows
from llava_tools.errors import UserError

TRICKY = [
    {"a": 'quote " and backslash \\ and \\" both'},
    {"b": "braces } { in } text", "c": {"d": [{}, {"e": "}"}]}},
    {},
    {"f": "newline \n tab \t unicode é 漢 \u2028"},
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def parsed(path: Path) -> list[Any]:
    return [parse_row(path, row) for row in read_rows(path)]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_list_is_cut_into_its_rows(tmp_path: Path, indent: int | None, ascii_only: bool) -> None:
    path = write(
        tmp_path / "x.json", json.dumps(TRICKY, indent=indent, ensure_ascii=ascii_only) + "\n"
    )
    assert parsed(path) == TRICKY
    assert [row.number for row in read_rows(path)] == [1, 2, 3, 4]


def test_lines_are_rows_and_numbered_as_lines(tmp_path: Path) -> None:
    text = "\n\n" + "\r\n".join(json.dumps(row) for row in TRICKY)
    path = write(tmp_path / "x.jsonl", text)
    assert parsed(path) == TRICKY
    assert [row.number for row in read_rows(path)] == [3, 4, 5, 6]
    assert origin(path, 3) == f"{path}, line 3"
    assert origin("x.json", 3) == "x.json, row 3"


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_byte_order_mark_is_no_content(tmp_path: Path, suffix: str) -> None:
    text = '[{"a": 1}]' if suffix == ".json" else '{"a": 1}'
    assert parsed(write(tmp_path / f"x{suffix}", b"\xef\xbb\xbf" + text.encode())) == [{"a": 1}]


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(VALUES, max_size=5), indent=st.sampled_from([None, 1]))
def test_any_list_gives_its_rows(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], indent: int | None
) -> None:
    path = write(tmp_path_factory.mktemp("any") / "x.json", json.dumps(rows, indent=indent))
    assert parsed(path) == rows


def test_rows_that_are_no_objects_come_too(tmp_path: Path) -> None:
    rows = [{"a": 1}, 2, "three", None, [4], {"b": 5}]
    assert parsed(write(tmp_path / "x.json", json.dumps(rows))) == rows


def test_reading_may_stop_early(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / "x.json", json.dumps(TRICKY)))
    assert parse_row("x.json", next(rows)) == TRICKY[0]
    rows.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"a": 1}, {"a": }]', r"x.json, row 2: malformed JSON: .* at character 7 of the row"),
        ('[{"a": 1}, {"a": 2', r"x.json, row 2: malformed JSON"),
        ('[{"a": 1}, {"a": "b}]', r"x.json, row 2: malformed JSON"),
        ('[{"a": 1} {"a": 2}]', r"x.json, row 2: malformed JSON: .* at line 1, column 11"),
        ('[{"a": 1},]', r"x.json, row 2: malformed JSON"),
        ('[{"a": 1}]]', r"x.json, row 2: malformed JSON"),
        ('[{"a": 1}}]', r"x.json, row 2: malformed JSON"),
        ('{"a": 1}\n{"a": 2}', r"x.json, row 1: malformed JSON"),
        ("", r"x.json, row 1: malformed JSON"),
        ('{"rows": []}', r"holds a single JSON value, not a list of rows"),
        (b'[{"a": "\xff"}]', r"x.json, row 1: malformed JSON"),
    ],
)
def test_a_broken_list_names_the_row(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parsed(write(tmp_path / "x.json", content))


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", '{"a": 1}\n{"a": \n')
    with pytest.raises(UserError, match=r"x.jsonl, line 2: malformed JSON: .* of the row"):
        parsed(path)


def test_an_ending_that_does_not_fit_is_told(tmp_path: Path) -> None:
    for name, text, hint in (
        ("x.json", '{"a": 1}\n{"a": 2}', "It looks like a row a line: name it .jsonl"),
        ("x.jsonl", '\ufeff [\n{"a": 1}\n]', "It looks like one list: name it .json,"),
        ("y.jsonl", '{"a": 1\n', "Mend the file;"),
    ):
        with pytest.raises(UserError, match="malformed JSON") as caught:
            parsed(write(tmp_path / name, text))
        assert caught.value.hint.startswith(hint)


def test_what_is_no_data_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x.json' cannot be read: No such file"):
        parsed(tmp_path / "x.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UserError, match=r"folder.json' holds no data files"):
        parsed(tmp_path / "folder.json")
    with pytest.raises(UserError, match=r"must be a file of one of the kinds"):
        parsed(write(tmp_path / "x.csv", "a,b"))
