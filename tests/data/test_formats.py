"""LLaVA rows become samples by XTuner's rules; what cannot be used says why."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from llava_tools.data.formats import get_format, image_first, llava_sample, read_samples
from llava_tools.data.sample import MENDED_REASONS, SKIP_REASONS, Sample, Skip, Turn
from llava_tools.errors import UserError
from tests import tiny

Q, A = ("human", "What?"), ("gpt", "That.")


def turns(*messages: tuple[str, str], **fields: Any) -> list[dict[str, Any]]:
    return [{"from": speaker, "value": text, **fields} for speaker, text in messages]


def row(*messages: tuple[str, str], **fields: Any) -> dict[str, Any]:
    return {"id": 7, "conversations": turns(*messages), **fields}


def sample(*messages: tuple[str, str], **fields: Any) -> Sample:
    found = llava_sample(row(*messages, **fields), "x.json, row 1")
    assert isinstance(found, Sample), found
    return found


def texts(found: Sample) -> list[str]:
    return [turn.text for turn in found.turns]


def test_a_row_with_an_image() -> None:
    found = sample(("human", "What?\n<image>"), A, image="a/b.jpg")
    assert found == Sample(
        "7",
        (Turn("user", "<image>\nWhat?"), Turn("assistant", "That.")),
        ("a/b.jpg",),
        "x.json, row 1",
    )


def test_several_images_keep_their_order_and_count() -> None:
    found = sample(
        ("human", "Compare <image> and <image>."), A, ("human", "<image>"), A, image=list("abc")
    )
    assert texts(found)[0] == "<image>\n<image>\nCompare  and ."
    assert texts(found)[2] == "<image>"
    assert found.images == ("a", "b", "c")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<image>\nWhat?", "<image>\nWhat?"),
        ("  What <image> is it?  ", "<image>\nWhat  is it?"),
        ("<image>", "<image>"),
        ("  no image stays as it is  ", "  no image stays as it is  "),
    ],
)
def test_the_image_comes_first_in_its_message(text: str, expected: str) -> None:
    assert image_first(text) == expected


def test_the_order_is_mended_and_counted() -> None:
    found = sample(A, A, Q, ("human", "Now?"), A, ("gpt", "More."), ("human", "And?"))
    assert texts(found) == ["What?Now?", "That.", "", "More."]
    assert found.mended == (
        "answer_first",
        "answer_first",
        "questions_merged",
        "answer_repeated",
        "question_unanswered",
    )
    assert set(found.mended) <= set(MENDED_REASONS)


def test_a_merged_question_keeps_the_place_of_its_image() -> None:
    found = sample(Q, ("human", "Look <image>"), A, image="a")
    assert texts(found)[0] == "What?<image>\nLook"


def test_other_names_of_the_roles() -> None:
    found = sample(("system", "Be kind."), ("user", "What?"), ("assistant", "That."))
    assert [turn.role for turn in found.turns] == ["system", "user", "assistant"]


def test_a_system_text_beside_a_system_turn_is_counted() -> None:
    for turn, field, told in (("S", "T", ("second_system",)), ("S", " S\n", ()), ("S", "", ())):
        found = sample(("system", turn), Q, A, system=field)
        assert texts(found)[0] == "S" and found.mended == told
    found = llava_sample(row(Q, A) | {"system": "T"}, "x")
    assert isinstance(found, Sample) and texts(found)[0] == "T" and not found.mended


@pytest.mark.parametrize("user", ["human", "user", "prompter", "Human", " USER "])
@pytest.mark.parametrize("assistant", ["gpt", "assistant", "chatgpt", "bing", "bard", "claude",
                                       "model", "bot", "GPT"])  # fmt: skip
def test_collections_of_dialogues_name_roles_in_many_ways(user: str, assistant: str) -> None:
    listed = [{"role": "developer", "content": "S"}, {"role": user, "content": "What?"},
              {"role": assistant, "content": "That."}]  # fmt: skip
    plain = sample(("system", "S"), Q, A)
    assert llava_sample({"id": 7, "conversations": listed}, "x.json, row 1") == plain


@pytest.mark.parametrize(
    ("bad", "reason", "detail"),
    [
        (3, "not_an_object", "found int"),
        ({"id": 1}, "no_conversations", "found None"),
        ({"conversations": []}, "no_conversations", r"found \[\]"),
        ({"conversations": "Q: A:"}, "no_conversations", "Q: A:"),
        ({"conversations": ["Q"]}, "bad_turn", "turn 1 is 'Q'"),
        ({"conversations": [{"from": "human"}]}, "bad_turn", "turn 1"),
        (row(Q, ("gpt", 5)), "bad_turn", "turn 2"),  # type: ignore[arg-type]
        (row(Q, ("robot", "x")), "unknown_role", "turn 2 is from 'robot'"),
        (row(Q, ("system", "x"), A), "misplaced_system", "turn 2"),
        ({"conversations": [*turns(Q), *turns(A, weight=0)]}, "weighted_answer", "turn 2 has"),
        (row(Q, A, image=5), "bad_image_field", "found 5"),
        (row(Q, A, image=""), "bad_image_field", "found ''"),
        (row(Q, A, image=["a", None]), "bad_image_field", "None"),
        (row(Q, A, image="a\0b"), "bad_image_field", r"a\\x00b"),
        (row(Q, A, image="a.jpg"), "image_without_token", "a.jpg"),
        (row(("human", "<image>"), A), "token_without_image", "1 times <image>"),
        (row(("human", "<image>"), A, image=["a", "b"]), "image_count", "1 <image> for 2 images"),
        (row(("human", "<image><image>"), A, image="a"), "image_count", "2 <image> for 1 images"),
        (row(Q, ("gpt", "an <image>")), "misplaced_image_token", "1 times"),
        (row(("system", "<image>"), Q, A), "misplaced_image_token", "1 times"),
        (row(Q), "no_answer", "messages: 1"),
        (row(A), "no_answer", "messages: 1"),
        (row(("system", "Be kind.")), "no_answer", "messages: 1"),
    ],
)
def test_an_unusable_row_says_why(bad: Any, reason: str, detail: str) -> None:
    found = llava_sample(bad, "x.json, row 9")
    assert isinstance(found, Skip)
    assert (found.origin, found.reason) == ("x.json, row 9", reason)
    assert re.search(detail, found.detail)
    assert str(found).startswith(f"x.json, row 9: {SKIP_REASONS[reason]} (")


def test_weights_of_one_and_of_questions_say_nothing() -> None:
    listed = [*turns(Q, weight=0), *turns(A, weight=1)]
    assert isinstance(llava_sample({"conversations": listed}, "x"), Sample)


def test_a_null_image_is_none() -> None:
    assert sample(Q, A, image=None).images == ()


def test_an_image_that_only_a_dropped_question_shows_is_missed() -> None:
    found = llava_sample(row(Q, A, ("human", "<image>"), image="a"), "x")
    assert isinstance(found, Skip) and found.reason == "image_without_token"


def test_keys_that_only_later_rows_have_are_not_lost(tmp_path: Path) -> None:
    rows = tiny.llava_rows(["a.png", "b.png"])[::-1]
    assert "image" not in rows[0]
    path = tmp_path / "x.json"
    path.write_text(json.dumps(rows))
    images = [s.images for s in read_samples(path) if isinstance(s, Sample)]
    assert images == [(), (), ("b.png",), ("a.png",)]


def test_list_and_lines_give_the_same_samples(tmp_path: Path) -> None:
    rows = [*tiny.llava_rows(["a.png"]), 5]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    listed = list(read_samples(tmp_path / "x.json"))
    lines = list(read_samples(tmp_path / "x.jsonl"))
    assert [getattr(s, "turns", None) for s in listed] == [getattr(s, "turns", None) for s in lines]
    assert isinstance(listed[-1], Skip) and listed[-1].origin.endswith("x.json, row 4")


def test_an_unknown_format_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Unknown data format 'lava'.\nDid you mean 'llava'"):
        get_format("lava")


def test_images_that_no_text_mentions_are_put_first_where_the_format_says_so() -> None:
    turns = [{"from": "human", "value": "Was ist das?"}, {"from": "gpt", "value": "Ein Hund."}]
    row = {"id": 1, "image": ["a.jpg", "b.jpg"], "conversations": turns}
    read = get_format("llava_add_image_token")
    sample = read(row, "x.jsonl, row 1")
    assert isinstance(sample, Sample)
    assert sample.turns[0].text == "<image>\n<image>\nWas ist das?"
    assert sample.mended == ("image_token_added",)
    assert isinstance(get_format("llava")(row, "x.jsonl, row 1"), Skip)
    wrong = {**row, "conversations": [{"from": "human", "value": "<image>?"}, turns[1]]}
    assert isinstance(read(wrong, "x.jsonl, row 1"), Skip)
