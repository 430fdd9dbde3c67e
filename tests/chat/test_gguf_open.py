"""Which GGUF files make a model; runs without llama.cpp."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from llava_tools.chat import gguf_open
from llava_tools.chat.gguf_open import is_gguf
from llava_tools.chat.start import open_assistant, open_session
from llava_tools.cli.entry import run
from llava_tools.errors import UserError


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """Stop where the files are known; return their names."""
    found: list[tuple[str, str | None]] = []
    beside = gguf_open._mmproj_beside

    def stop(file: Path, *_: str) -> None:
        mmproj = beside(file)
        found.append((file.name, mmproj and mmproj.name))
        raise UserError("enough")

    monkeypatch.setattr(gguf_open, "_load", stop)
    return found


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).touch()


def test_the_files_of_a_folder(tmp_path: Path, asked: list[tuple[str, str | None]]) -> None:
    touch(tmp_path, "m-f16.gguf", "m-mmproj-f16.gguf")
    for model in (tmp_path, tmp_path / "m-f16.gguf"):
        with pytest.raises(UserError, match="enough"):
            open_session(str(model))
    assert asked == [("m-f16.gguf", "m-mmproj-f16.gguf")] * 2


def test_of_several_towers_the_one_that_is_named_alike(
    tmp_path: Path, asked: list[tuple[str, str | None]]
) -> None:
    touch(tmp_path, "m-f16.gguf", "m-q8_0.gguf", "m-mmproj-f16.gguf", "mmproj-n-f16.gguf")
    with pytest.raises(UserError, match="has m-f16.gguf, m-q8_0.gguf."):
        open_session(str(tmp_path))
    with pytest.raises(UserError, match="enough"):
        open_session(str(tmp_path / "m-f16.gguf"))
    assert asked == [("m-f16.gguf", "m-mmproj-f16.gguf")]
    with pytest.raises(UserError, match="several vision towers: m-mmproj-f16.gguf, mmproj-n-f16"):
        open_session(str(tmp_path / "m-q8_0.gguf"))


def test_files_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no file '.*gone.gguf'"):
        open_session(str(tmp_path / "gone.gguf"))
    touch(tmp_path, "m-mmproj-f16.gguf")
    with pytest.raises(UserError, match="is the vision tower alone"):
        open_session(str(tmp_path / "m-mmproj-f16.gguf"))
    with pytest.raises(UserError, match="has only vision towers"):
        open_session(str(tmp_path))


def test_a_model_folder_with_a_gguf_file_in_it_is_a_model_folder(tmp_path: Path) -> None:
    touch(tmp_path, "m.gguf")
    assert is_gguf(str(tmp_path)) and is_gguf("gone.gguf")
    touch(tmp_path, "config.json")
    assert not is_gguf(str(tmp_path)) and not is_gguf(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (None, "(?s)m.gguf' is a GGUF file.*llama-cpp-python.*pip install llama-cpp-python"),
        (SimpleNamespace(__version__="0.3.9"), "(?s)0.3.9 is too old.*llama-cpp-python>=0.3.36"),
    ],
)
def test_llama_cpp_is_missing_or_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: object, message: str
) -> None:
    touch(tmp_path, "m.gguf")
    monkeypatch.setitem(sys.modules, "llama_cpp", module)
    with pytest.raises(UserError, match=message):
        open_session(str(tmp_path / "m.gguf"))


def test_only_the_dialogue_takes_gguf(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What does serve it is told, with the files of this model."""
    touch(tmp_path, "a m.gguf", "a m-mmproj-f16.gguf")
    wanted = f"llama-server -m '{tmp_path}/a m.gguf' --mmproj '{tmp_path}/a m-mmproj-f16.gguf' "
    with pytest.raises(UserError, match="is GGUF: it can be talked with in the terminal") as told:
        open_assistant(str(tmp_path))
    assert told.value.hint.startswith(f"{wanted}--port 8000 ")
    assert run(["serve", str(tmp_path), "--port", "0"]) == 2
    assert wanted in " ".join(capfd.readouterr().err.split()) + " "
    with pytest.raises(UserError, match="There is no file"):
        open_assistant(str(tmp_path / "gone.gguf"))
