"""Rows are prepared alike in one process and in several, and say why they are left out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llava_tools.config import Settings
from llava_tools.data import paths, prepare
from llava_tools.data.packed import Growing, PackedRows
from llava_tools.data.prepare import Block, choose_processes, prepare_blocks, prepare_row
from llava_tools.data.rows import RawRow, read_rows
from llava_tools.data.sample import SKIP_REASONS, Skip
from llava_tools.data.sources import make_plan
from llava_tools.errors import UserError
from tests import tiny

MakeSettings = Callable[..., Settings]


@pytest.fixture(autouse=True)
def forget_files() -> None:
    """Let no test profit from the files that another one looked at."""
    prepare._locate_once.cache_clear()


def turns(question: str, *answers: str) -> list[dict[str, str]]:
    return [
        turn
        for answer in answers
        for turn in ({"from": "human", "value": question}, {"from": "gpt", "value": answer})
    ]


def outcome(settings: Settings, tokenizer: Any, row: Any, *, sees_images: bool = True) -> Any:
    plan = make_plan(settings, settings.datasets[0], tokenizer, sees_images=sees_images)
    return prepare_row(plan, RawRow(4, json.dumps(row).encode()))


IMAGE = "<image>\nWhat?"


@pytest.mark.parametrize(
    ("row", "changes", "reason", "detail"),
    [
        ({"image": "no.png", "q": IMAGE}, {}, "missing_image", "no.png' cannot be read"),
        ({"image": "../clip/config.json", "q": IMAGE}, {}, "outside_folder", "lies outside"),
        ({"image": ".", "q": IMAGE}, {}, "outside_folder", "lies outside"),
        ({"image": "0.png", "q": IMAGE}, {"tower": False}, "image_without_tower", "image '0.png'"),
        (
            {"q": "What?", "a": ["x", "y"]},
            {"prompt_template": "plain"},
            "several_captions",
            "2 answers",
        ),
        ({"image": "0.png", "q": IMAGE}, {"max_length": 2}, "image_cut", "max_length = 2"),
        ({"q": "What?"}, {"max_length": 4}, "nothing_supervised", "max_length = 4"),
        ({"image": "0.png", "q": "What?"}, {}, "image_without_token", "0.png"),
    ],
)
def test_a_row_is_left_out_for_a_reason(
    make_settings: MakeSettings,
    tokenizers: dict[str, Any],
    row: dict[str, Any],
    changes: dict[str, Any],
    reason: str,
    detail: str,
) -> None:
    full = {"id": "r", "conversations": turns(row["q"], *row.get("a", ["That."]))}
    full |= {"image": row["image"]} if "image" in row else {}
    tower = changes.pop("tower", True)
    settings = make_settings([full], **changes)
    skip = outcome(settings, tokenizers["phi3"], full, sees_images=tower)
    assert isinstance(skip, Skip), skip
    assert (skip.id, skip.reason) == ("r", reason)
    assert skip.origin == f"{settings.datasets[0].data_path}, row 4"
    assert detail in skip.detail
    assert reason in SKIP_REASONS


def test_a_folder_or_a_huge_file_is_no_image(
    make_settings: MakeSettings, tokenizers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"id": 1, "image": "1.png", "conversations": turns(IMAGE, "That.")}
    settings = make_settings([row])
    monkeypatch.setattr(paths, "MAX_BYTES", 10)
    skip = outcome(settings, tokenizers["phi3"], row)
    assert (skip.reason, "the limit is 10" in skip.detail) == ("broken_image", True)


def test_links_are_followed_if_the_dataset_says_so(
    make_settings: MakeSettings, tokenizers: dict[str, Any], parts: Path, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "coco").symlink_to(parts / "images")
    row = {"id": 1, "image": "coco/0.png", "conversations": turns(IMAGE, "That.")}
    folder = str(tmp_path / "images")
    strict = make_settings([row], image_folder=folder)
    assert outcome(strict, tokenizers["phi3"], row).reason == "outside_folder"
    lenient = make_settings([row], image_folder=folder, follow_links=True)
    assert not isinstance(outcome(lenient, tokenizers["phi3"], row), Skip)


def test_each_file_is_looked_at_once(
    make_settings: MakeSettings, tokenizers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"id": i, "image": "2.png", "conversations": turns(IMAGE, "A.")} for i in range(9)]
    looked = Counter[str]()
    monkeypatch.setattr(prepare, "locate", lambda path, *_, **__: looked.update([path]))
    settings = make_settings(rows)
    plan = make_plan(settings, settings.datasets[0], tokenizers["phi3"], sees_images=True)
    list(prepare_blocks(plan, read_rows(plan.path), 1))
    assert looked == {"2.png": 1}


def joined(blocks: list[Block], dtype: Any) -> PackedRows:
    growing = Growing(dtype)
    for block in blocks:
        growing.add(block.rows)
    return growing.finish()


def test_several_processes_give_the_same_rows(
    make_settings: MakeSettings, tokenizers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tiny.llava_rows([f"{i}.png" for i in range(4)]) * 20
    rows[17] = {"id": "bad"}
    settings = make_settings(rows)
    plan = make_plan(settings, settings.datasets[0], tokenizers["phi3"], sees_images=True)
    monkeypatch.setattr("llava_tools.data.blocks.BLOCK_ROWS", 16)
    serial, parallel = (list(prepare_blocks(plan, read_rows(plan.path), n)) for n in (1, 2))
    assert len(serial) == len(parallel) == 8
    for left, right in zip(serial, parallel, strict=True):
        assert (left.skips, left.mended, left.seen) == (right.skips, right.mended, right.seen)
    one, other = (joined(blocks, plan.token_dtype) for blocks in (serial, parallel))
    for name in PackedRows.__dataclass_fields__:
        assert np.array_equal(getattr(one, name), getattr(other, name))


def test_a_broken_row_in_another_process_is_the_same_error(
    make_settings: MakeSettings, tokenizers: dict[str, Any]
) -> None:
    settings = make_settings([{"id": 1}], format="llava")
    Path(settings.datasets[0].data_path).write_text('[{"a": 1}, {"b": }]')
    plan = make_plan(settings, settings.datasets[0], tokenizers["phi3"], sees_images=True)
    errors = []
    for processes in (1, 2):
        with pytest.raises(UserError, match="rows.json, row 2: malformed") as caught:
            list(prepare_blocks(plan, read_rows(plan.path), processes))
        errors.append((caught.value.message, caught.value.hint))
    assert errors[0] == errors[1]


def test_small_files_need_no_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b" " * 100)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert choose_processes(str(path), 4) == 1
    monkeypatch.setattr(prepare, "PARALLEL_BYTES", 100)
    assert choose_processes(str(path), 4) == 8
    assert choose_processes(str(path), 0) == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert choose_processes(str(path), 4) == 2
