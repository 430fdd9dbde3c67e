"""The wheel holds exactly the tree, under the mapped names."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAPPED = {
    "llava_tools": "llava_tools",
    "converters": "llava_tools/converters",
    "eval": "llava_tools/eval",
    "configs": "llava_tools/configs",
}
SOURCES = ["setup.cfg", "pyproject.toml", "README.md", "LICENSE", *MAPPED]


def tree() -> set[str]:
    """Return every file of the four folders as its path in the wheel."""
    return {
        f"{target}/{file.relative_to(ROOT / source).as_posix()}"
        for source, target in MAPPED.items()
        for file in (ROOT / source).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a clean copy, without network."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignore)
        else:
            (folder / "source").mkdir(exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    subprocess.run([*command, "-w", str(folder), str(folder / "source")], check=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_tree_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if ".dist-info/" not in name} == tree()


def test_data_files_and_licence_are_there(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "llava_tools/configs/deepspeed/deepspeed_zero2.json" in names
    assert "llava_tools/py.typed" in names
    assert any(name.endswith("LICENSE") for name in names)


def test_the_wheel_works_without_the_source_tree(wheel: Path, tmp_path: Path) -> None:
    """Unpacked somewhere, it finds its recipes and its commands."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import llava_tools.cli.entry as entry;"
        "assert entry.__file__.startswith(sys.argv[1]), entry.__file__;"
        "sys.exit(entry.run(['config', 'list']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "site")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "llava_phi3_mini_4k_instruct" in result.stdout
