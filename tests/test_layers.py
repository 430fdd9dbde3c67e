"""Imports go down only, and what must start at once imports nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# room -> the rooms that it may import (besides itself)
BOTTOM = {"config", "constants", "errors", "locks", "whole_files", "__init__"}
PARTS = {"data", "model"} | BOTTOM
ASKING = PARTS | {"backends"}
MAY_IMPORT = {
    "__init__": set(),
    "__main__": {"cli"},
    "constants": set(),
    "errors": set(),
    "locks": {"errors"},
    "whole_files": {"errors"},
    "config": BOTTOM | {"configs"},
    "configs": set(),
    "data": BOTTOM,
    "model": PARTS,
    "backends": PARTS,
    "train": PARTS | {"configs"},
    "chat": ASKING,
    "curate": ASKING,
    "serve": ASKING | {"chat"},
    "web": ASKING | {"chat", "serve"},
    "converters": PARTS,
    "eval": ASKING,
    "quickstart": PARTS,
    "cli": ASKING
    | {"train", "chat", "curate", "serve", "web"}
    | {"converters", "eval", "quickstart"},
}
HEAVY = ["torch", "transformers", "deepspeed", "matplotlib", "sklearn", "mmengine", "rich", "PIL"]
LIGHT = ["llava_tools.cli.app", "llava_tools.config", "llava_tools.errors", "llava_tools.constants"]
LIGHT += ["llava_tools.curate.selection", "llava_tools.curate.merging"]  # rows are chosen at once


def files() -> Iterator[tuple[str, Path]]:
    """Yield (room, file) of all library files."""
    for file in sorted((ROOT / "llava_tools").rglob("*.py")):
        yield file.relative_to(ROOT / "llava_tools").parts[0].removesuffix(".py"), file
    for room in ("converters", "eval", "configs"):
        for file in sorted((ROOT / room).rglob("*.py")):
            yield room, file


def imported_rooms(tree: ast.AST) -> set[str]:
    """Return the rooms of llava_tools that a module imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
            if node.module == "llava_tools":
                names |= {f"llava_tools.{alias.name}" for alias in node.names}
    parts = [name.split(".") for name in names if name.split(".")[0] == "llava_tools"]
    rooms = {part[1] for part in parts if len(part) > 1}
    return {"__init__" if room.startswith("__") else room for room in rooms}


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_imports_go_down(room: str) -> None:
    wrong = {
        str(file.relative_to(ROOT)): rooms
        for owner, file in files()
        if owner == room
        and (rooms := imported_rooms(ast.parse(file.read_text())) - MAY_IMPORT[room] - {room})
    }
    assert not wrong


def test_every_room_has_its_rule() -> None:
    assert {room for room, _ in files()} == set(MAY_IMPORT)


def test_imports_are_seen() -> None:
    source = "import llava_tools.data.x\ndef f():\n    from llava_tools import chat, __version__\n"
    assert imported_rooms(ast.parse(source)) == {"data", "chat", "__init__"}


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_load_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*({set(HEAVY)!r} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == ""
