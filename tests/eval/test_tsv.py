"""The table reader: every form of image cell, odd quoting, and everything that can be wrong."""

from __future__ import annotations

import base64
import hashlib
import io
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava_tools.errors import UserError
from llava_tools.eval.tsv import Table, read_table
from tests.eval import tables
from tests.eval.tables import picture

NEEDED = ("image", "question")


def table(tmp_path: Path, *rows: dict[str, Any], **kwargs: Any) -> Table:
    filled = [{"question": "Which?", "index": i, **row} for i, row in enumerate(rows)]
    return read_table(tables.write(tmp_path / "t.tsv", filled), NEEDED, **kwargs)


def colors(read: Table) -> list[list[tuple[int, ...]]]:
    """Return the colour of every picture of every row, decoded from the file."""
    images = [
        [Image.open(io.BytesIO(read.picture_bytes(p))) for p in r.pictures] for r in read.rows
    ]
    return [[image.convert("RGB").getpixel((0, 0)) for image in row] for row in images]


def test_base64_list_and_references_lead_to_their_pictures(tmp_path: Path) -> None:
    both = repr([picture("green"), picture("blue")])
    read = table(
        tmp_path,
        {"image": "3"},  # forward, and two hops further
        {"image": picture("red")},
        {"image": both},
        {"image": "4"},
        {"image": "1"},
        {"image": " 2 "},
        {"image": picture("red")},
    )
    red, green, blue = (tables.COLORS[name] for name in ("red", "green", "blue"))
    assert colors(read) == [[red], [red], [green, blue], [red], [red], [green, blue], [red]]
    keys = [[p.key for p in row.pictures] for row in read.rows]
    assert keys[0] == keys[1] == keys[6] and keys[2] == keys[5]
    assert len({key for row in keys for key in row}) == 3


def test_a_text_refers_to_a_row_whose_index_is_a_text(tmp_path: Path) -> None:
    rows = [{"index": "VD_1_0", "image": "VD_2_0"}, {"index": "VD_2_0", "image": picture("blue")},
            {"index": "VD_3_0", "image": "VD_1_0"}]  # fmt: skip
    assert colors(table(tmp_path, *rows)) == [[tables.COLORS["blue"]]] * 3


def test_a_chain_longer_than_the_stack_is_followed(tmp_path: Path) -> None:
    rows = [{"image": str(i + 1)} for i in range(1500)] + [{"image": picture("blue")}]
    read = table(tmp_path, *rows)
    assert len({row.pictures for row in read.rows}) == 1


def test_quotes_newlines_tabs_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    text = (
        "index\tquestion\timage\n"
        f'1\t"two\nlines, a ""quote""\tand a tab"\t{picture("red")}\n'
        f'2\t5" disk of 答案\t"{picture("green")}"\n'
        "\n"
        f"x_3\tlast\t{picture('blue')}"
    )
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    read = read_table(path, NEEDED)
    assert [row.cells["question"] for row in read.rows] == [
        'two\nlines, a "quote"\tand a tab',
        '5" disk of 答案',
        "last",
    ]
    assert [row.index for row in read.rows] == [1, 2, "x_3"]
    assert colors(read) == [[tables.COLORS[name]] for name in ("red", "green", "blue")]
    assert read.md5 == hashlib.md5(path.read_bytes()).hexdigest()


def test_windows_line_ends_are_no_part_of_the_cells(tmp_path: Path) -> None:
    path = tables.write(
        tmp_path / "t.tsv", [{"index": 1, "question": "q", "image": picture("red")}]
    )
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert "split" not in read_table(path, NEEDED).rows[0].cells


def test_blank_and_nan_cells_are_absent(tmp_path: Path) -> None:
    read = table(
        tmp_path, {"image": picture("red"), "hint": "nan", "A": " ", "B": "NaN", "C": "no"}
    )
    assert read.rows[0].cells == {"index": "0", "question": "Which?", "C": "no"}


def test_scoring_needs_no_image_column_and_looks_at_no_image(tmp_path: Path) -> None:
    assert table(tmp_path, {"image": "broken!"}, images=False).rows[0].pictures == ()
    path = tmp_path / "bare.tsv"
    path.write_text("index\tquestion\n1\twhat\n")
    assert read_table(path, NEEDED, images=False).rows[0].cells["question"] == "what"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"image": "1"}, {"image": "2"}, {"image": "1"}], r"row 1 \(index 0\).*0 -> 1 -> 2 -> 1"),
        ([{"image": "0"}], r"refers to itself: 0 -> 0"),
        ([{"image": picture("red")}, {"image": "77"}], r"row 2 \(index 1\).*index 77.*in no row"),
        ([{"image": "some text"}], r"row 1 \(index 0\).*index some text, which is in no row"),
        ([{"image": picture("red")}, {"image": ""}], r"row 2 \(index 1\).*image cell is empty"),
        ([{"image": "nan"}], r"image cell is empty"),
        ([{"image": picture("red")[:-3]}], r"row 1 \(index 0\).*not base64"),
        ([{"image": "!!!" + picture("red")}], r"not base64"),
        ([{"image": base64.b64encode(b"x" * 90).decode()}], r"is no picture after base64"),
        ([{"image": "['abc', 3]"}], r"no list of base64"),
        ([{"image": "[]"}], r"no list of base64"),
        ([{"image": "[__import__('os').getcwd()]"}], r"no list of base64"),
        ([{"image": "[" * 5000}], r"no list of base64"),
        ([{"image": picture("red")}] * 2, None),
        (
            [{"image": picture("red"), "index": 5}, {"image": picture("red"), "index": "5"}],
            r"row 2 \(index 5\): the same index as .*row 1",
        ),
        ([{"image": picture("red"), "index": ""}], r"row 1 has no index"),
    ],
)
def test_bad_rows_are_named(
    tmp_path: Path, rows: list[dict[str, Any]], message: str | None
) -> None:
    if message is None:
        assert len(table(tmp_path, *rows).rows) == len(rows)
        return
    with pytest.raises(UserError, match=message) as error:
        table(tmp_path, *rows)
    assert "t.tsv" in str(error.value) and error.value.hint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"index\tquestion\timage\n", "header but no rows"),
        (b"index\timage\n1\tx\n", "no column question; it has: index, image"),
        (b"index,question,image\n1,2,3\n", "(?s)no column.*separated by tabs"),
        (b"index\tquestions\timage\n1\t2\t3\n", "(?s)no column question;.*Is 'questions' meant"),
        (b"index\tquestion\timage\timage\n", "column image twice"),
        (b"index\tquestion\timage\n1\twhat\n", "row 1 has 2 fields, the header has 3"),
        (b'index\tquestion\timage\n1\t"what\t2\n', "row 1 has 2 fields"),
        (b"index\tquestion\timage\n1\t2\t3\t4\n", "row 1 has 4 fields"),
        (b"PK\x03\x04\xff\xfe\x00\x00", "not text in UTF-8"),
        (b"index\tquestion\timage\n1\tx\xff\t3\n", r"not text in UTF-8 \(line 2\)"),
        (b"index\tquestion\timage\n1\tx\ry\t3\n", "line 2: new-line character"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "t.tsv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_table(path, NEEDED)
    assert "t.tsv" in str(error.value) and error.value.hint


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file '.*absent.tsv'"):
        read_table(tmp_path / "absent.tsv", NEEDED)


def test_pictures_stay_on_disk(tmp_path: Path) -> None:
    noise = Image.effect_noise((400, 400), 90)
    buffer = io.BytesIO()
    noise.save(buffer, "PNG")
    cell = base64.b64encode(buffer.getvalue()).decode()
    rows = [{"image": cell} for _ in range(60)]
    path = tables.write(
        tmp_path / "t.tsv", [{"index": i, "question": "q", **r} for i, r in enumerate(rows)]
    )
    tracemalloc.start()
    read = read_table(path, NEEDED)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(read.rows) == 60
    assert path.stat().st_size > 60 * 100_000
    assert peak < path.stat().st_size / 4
