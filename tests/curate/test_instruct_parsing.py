"""Replies read by self-instruct's and Alpaca's rules, and what is usable of them."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest

from llava_tools.curate.instruct.filters import (
    BEYOND_TEXT,
    BEYOND_TEXT_ALPACA,
    count_words,
    instruction_fault,
    usable_examples,
)
from llava_tools.curate.instruct.parsing import (
    Instance,
    examples,
    grade,
    labelled,
    numbered,
    whole_tasks,
    yes_or_no,
)
from llava_tools.curate.instruct.prompts import (
    classify_prompt,
    input_first_prompt,
    instructions_prompt,
    output_first_prompt,
    shots,
    whole_tasks_prompt,
)
from llava_tools.curate.instruct.seeds import OWN, Seeds, read_seeds
from llava_tools.errors import UserError
from tests.jsonl import write


def test_numbered_lists() -> None:
    text = " explain  NASA's\nplan.\n10. sort the list\n11 . ask 3.5 things"
    assert numbered(text) == ["Explain NASA's plan.", "Sort the list", "Ask 3.5 things"]
    assert numbered(text, compat=True) == [
        "Explain nasa's plan.",
        "Sort the list",
        "Ask 3.5 things",
    ]
    chat = "9. First one\n\n10) Second one\n  11. Third one"
    assert numbered(chat) == ["First one", "Second one", "Third one"]
    assert numbered("9。写一首诗\n10、唱歌") == ["写一首诗", "唱歌"]
    assert numbered("") == [] and numbered("\n10. \n11. ") == []


def test_whole_tasks() -> None:
    text = (
        " Sum up.\n4. Input:\n1 2\n4. Output:\n3\n###\n5. Instruction: Greet.\n5. Input:\n"
        "<NoInput>\n5. Output: Hello\n###\n6. Instruction: Half"
    )
    two = [("Sum up.", Instance("1 2", "3")), ("Greet.", Instance("", "Hello"))]
    for compat in (False, True):
        assert whole_tasks(text, 4, cut=True, compat=compat) == two
        assert whole_tasks(text + "\n6. Output: x", 4, cut=False, compat=compat) == two
    again = "4. Instruction:" + text.replace("5. ", "7. ")  # said again, and numbered anyhow
    assert whole_tasks(again, 4, cut=True) == two
    assert whole_tasks(text.replace("5. ", "7. "), 4, cut=True, compat=True) == two[:1]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "Example 1\nInput: a\nOutput: b\nExample 2\nInput: c\nOutput: d",
            [("a", "b"), ("c", "d")],
        ),
        ("Example 1:\nInput: a\nOutput: b", [("a", "b")]),
        ("Example 1.\nJust an answer", [("", "Just an answer")]),
        ("Output: alone", [("", "alone")]),
        ("Input: a\nOutput 1: b\nOutput 2: c", [("a", "b")]),
        ("Text\nOutput: b\nInput: c", [("Text", "b")]),
        ("a field: x\nOutput: y", [("a field: x", "y")]),
        ("nothing of that form", []),
        ("", []),
    ],
)
def test_examples_input_first(text: str, found: list[tuple[str, str]]) -> None:
    assert examples(text, cut=False) == found
    assert examples(text, cut=True) == found[:-1]


def test_examples_of_compat() -> None:
    text = "Example\nInput: a\nOutput: b"
    assert examples(text, cut=False, compat=True) == [("a", "b")]
    assert examples(text, cut=False) == [("Example\nInput: a", "b")]


def test_labels_first() -> None:
    text = "Class label: good\nSentence: x\ny\nClass label: bad\nClass label:"
    assert labelled(text, cut=False) == [("Sentence: x\ny", "good"), ("", "bad"), ("", "")]
    assert labelled(text, cut=True) == [("Sentence: x\ny", "good"), ("", "bad")]
    assert labelled("good", cut=False) == []


def test_yes_or_no() -> None:
    said = {"Yes": True, " Yes.": True, "yes,": True, "**No**": False, "NO!": False, "": None}
    said |= {"continue": None, "Sure, go ahead": None, "Nothing": None, "Yesterday": None}
    assert {text: yes_or_no(text) for text in said} == said
    strict = {text for text in said if yes_or_no(text, compat=True)}
    assert strict == {"Yes"} and yes_or_no("continue", compat=True) is False


def test_grades() -> None:
    said: dict[str, float | None] = {
        "9/10": 9, "Score: 10": 10, "8.5 out of 10": 8.5, "On a scale of 0 to 10, a 7.": 7,
        "3": 3, "I like it": None, "85": None, "-3": None, "Rating is 6, of 10 criteria": 6,
    }  # fmt: skip
    assert {text: grade(text) for text in said} == said
    assert (
        grade("On a scale of 0 to 10, a 7.", compat=True) == 0 and grade("x", compat=True) is None
    )


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("Name three birds", "too_short"),
        ("Name three rare birds", None),
        ("word " * 150, None),
        ("word " * 151, "too_long"),
        ("Describe the picture in words", "beyond_text"),
        ("Say where to Go To tonight, please", "beyond_text"),
        ("Describe the cartography of mapping", None),
        ("WRITE A PROGRAM that counts to ten", "program"),
        ("(Optional) say something nice today", "punctuation"),
        ("Écris un poème sur la mer", None),
        ("请写一首关于秋天的短诗", None),
        ("写诗", "too_short"),
        ("Compose a piece of music quickly", None),
    ],
)
def test_faults_of_instructions(text: str, fault: str | None) -> None:
    assert instruction_fault(text) == fault


def test_faults_of_other_rules() -> None:
    music = "Compose a piece of music quickly"
    assert instruction_fault(music, BEYOND_TEXT_ALPACA) == "beyond_text"
    assert instruction_fault("Écris un poème sur la mer", compat=True) == "not_ascii"
    assert instruction_fault("请写一首关于秋天的短诗", compat=True) == "too_short"
    assert instruction_fault("WRITE A PROGRAM to count up", BEYOND_TEXT, compat=True) is None
    assert count_words("ein Satz 我喜欢 สวัส") == 2 + 3 + 4


def test_usable_examples() -> None:
    a, b, c = Instance("a", "1"), Instance("b", "2"), Instance("", "3")
    bad = [Instance("x", "x"), Instance("y", ""), Instance("z:", "1"), Instance("z", "1:")]
    kept, dropped = usable_examples([a, b, *bad, a, c], 5, random.Random(0))
    assert kept == [a, b, c]
    assert dropped == {"output_is_input": 1, "empty_output": 1, "colon_end": 2, "repeated": 1}
    contradiction = [a, Instance("a", "9"), b, Instance("", "1"), Instance("", "2")]
    assert usable_examples(contradiction, 5, random.Random(0)) == ([], {"contradiction": 5})
    assert usable_examples(contradiction[3:], 5, random.Random(0))[0] == contradiction[3:]
    many = [Instance(str(i), f"is {i}") for i in range(9)]
    kept, dropped = usable_examples(many, 5, random.Random(0))
    assert len(kept) == 5 and kept == sorted(kept) and dropped == {"surplus": 4}
    shuffled = usable_examples(many, 5, random.Random(0), compat=True)[0]
    assert shuffled == random.Random(0).sample(many, 5) != kept
    assert usable_examples([Instance("<image>", "1")], 5, random.Random(0))[1] == {"image_word": 1}


def test_prompts_have_the_structure_of_the_originals() -> None:
    prompt = instructions_prompt(["Say  it\n now:", "Sing"])
    assert prompt.endswith("\n1. Say it now\n2. Sing\n3.")
    assert "classification" in instructions_prompt(["x"], classification=True).splitlines()[0]
    tasks = read_seeds().tasks[:3]
    whole = whole_tasks_prompt(tasks)
    assert whole.endswith("###\n4. Instruction:") and whole.count("###") == 4
    assert (
        "\n1. Input:\n<noinput>\n" in whole and "\n2. Input:\n25 °C\n2. Output:\n77 °F\n" in whole
    )
    labels = [label for _, label in shots()["classify"]]
    assert len(labels) == 31 and sum(labels) == 12
    assert len(shots()["input_first"]) == 11 and len(shots()["output_first"]) == 16
    assert classify_prompt("Sing").endswith("Task: Sing\nIs it classification?")
    for make in (input_first_prompt, output_first_prompt):
        assert make("Sing").endswith("\n\nTask: Sing\n")


def test_our_shots_follow_our_own_rules() -> None:
    for task, shown in shots()["input_first"]:
        single = input_first_prompt("x").split(f"Task: {task}\n")[1].split("Task:")[0]
        assert examples(single, cut=False) == [tuple(pair) for pair in shown]
    for task, shown in shots()["output_first"]:
        single = output_first_prompt("x").split(f"Task: {task}\n")[1].split("Task:")[0]
        assert labelled(single, cut=False) == [(given, label) for label, given in shown]


def test_our_seeds_are_novel_and_usable() -> None:
    seeds = read_seeds()
    assert len(seeds.tasks) == 20 and not seeds.repeated
    assert sum(task.is_classification for task in seeds.tasks) >= 4
    assert not [t.instruction for t in seeds.tasks if instruction_fault(t.instruction)]


def test_seeds_of_both_shapes_and_repeated_ones(tmp_path: Path) -> None:
    ours = {"instruction": "Add.", "instances": [{"input": "1 1", "output": "2"}]}
    rows = [ours | {"is_classification": True}, {"instruction": "Sing", "output": "la"}]
    seeds = read_seeds(write(tmp_path / "s.jsonl", *rows, ours | {"instruction": " add. "}))
    assert [task.examples for task in seeds.tasks] == [(("1 1", "2"),), (("", "la"),)]
    assert [task.is_classification for task in seeds.tasks] == [True, False]
    assert (
        seeds.repeated == 1 and isinstance(seeds, Seeds) and read_seeds(OWN).digest != seeds.digest
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1], "line 2: a seed task is an object, not [1]"),
        ({"instruction": "x"}, "line 2: the seed task has no 'instances'"),
        ({"instruction": "x", "instances": []}, "line 2: the seed task has no 'instances'"),
        ({"instruction": " ", "output": "y"}, "line 2: 'instruction' of the seed task is ' '"),
        ({"instruction": "x", "instances": [3]}, "line 2: 'input' of the seed task is None"),
        ({"instruction": "x", "output": 3}, "line 2: 'output' of the seed task is 3"),
        (
            {"instruction": "x", "output": "y", "is_classification": "yes"},
            "line 2: 'is_classification' is 'yes'",
        ),
    ],
)
def test_malformed_seeds(row: Any, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", {"instruction": "a", "output": "b"}, row)
    with pytest.raises(UserError, match=re.escape(message)):
        read_seeds(path)


def test_no_seeds(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no seed tasks"):
        read_seeds(write(tmp_path / "s.jsonl"))
    (tmp_path / "t.jsonl").write_text('{"instruction": "a", "output": "b"}\n{nonsense\n')
    with pytest.raises(UserError, match="line 2: malformed JSON"):
        read_seeds(tmp_path / "t.jsonl")
