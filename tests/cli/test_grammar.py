"""Options with many values, options that may stand alone, commands of two words."""

from __future__ import annotations

import pytest

from llava_tools.cli.app import command
from llava_tools.cli.grammar import spread

COMMANDS = command().commands


@pytest.mark.parametrize(
    ("name", "line", "expected"),
    [
        ("train", "c --cfg-options a=1 b=2", "c --cfg-options a=1 --cfg-options b=2"),
        ("train", "--cfg-options a=1 b=2 c", "--cfg-options a=1 --cfg-options b=2 c"),
        ("train", "c --cfg_options a=1 b=2", "c --cfg_options a=1 --cfg_options b=2"),
        ("train", "c --resume", "c --resume auto"),
        ("train", "c --resume --seed 3", "c --resume auto --seed 3"),
        ("train", "c --resume iter_3.pth", "c --resume iter_3.pth"),
        ("train", "--resume iter_3.pth c", "--resume iter_3.pth c"),
        ("train", "--resume c", "--resume auto c"),
        ("chat", "m --image a b", "m --image a --image b"),
        ("chat", "--image a m", "--image a m"),
        ("chat", "--image a b m", "--image a --image b m"),
        ("chat", "--image a --prompt x m", "--image a --prompt x m"),
        ("chat", "m --stop-words a b --seed 1", "m --stop-words a --stop-words b --seed 1"),
        ("chat", "m --visual-select-layer -2", "m --visual-select-layer -2"),
        ("chat", "m --image=a b", "m --image=a b"),
        ("chat", "m --json --image a b", "m --json --image a --image b"),
        ("chat", "--image a -- m", "--image a -- m"),
        ("train", "c --seed", "c --seed"),
        ("train", "c --nope a b", "c --nope a b"),
    ],
)
def test_values_find_their_option(name: str, line: str, expected: str) -> None:
    assert spread(line.split(), COMMANDS[name]) == expected.split()
