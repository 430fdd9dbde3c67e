"""The command line as a user meets it: help, names, errors, exit codes, what it imports."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import llava_tools.config
from llava_tools.cli.app import command
from llava_tools.cli.entry import run
from llava_tools.cli.grammar import ALIASES, hyphens
from llava_tools.errors import UserError

RECIPE = "llava_phi3_mini_4k_instruct_clip_vit_large_p14_336_e1_gpu8_pretrain"
HEAVY = {"torch", "transformers", "deepspeed", "mmengine", "pydantic", "rich", "numpy", "PIL"}


def walk(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command with the words that call it."""
    yield path, group
    for name, member in getattr(group, "commands", {}).items():
        yield from walk(member, (*path, *name.split(" ")))


COMMANDS = dict(walk(command()))


def raising(error: BaseException) -> Any:
    """Return a function that raises `error`."""

    def fail(*arguments: Any, **options: Any) -> Any:
        raise error

    return fail


def error_lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    return captured.err.splitlines()


@pytest.mark.parametrize("words", sorted(COMMANDS), ids=lambda words: " ".join(words) or "root")
def test_every_command_has_help(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*words, "--help"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"Usage: {' '.join(['llava-tools', *words])} [OPTIONS]")
    assert err == "" and len(out.splitlines()) > 4
    help_text = COMMANDS[words].help
    assert help_text and help_text.split("\n")[0].endswith((".", "people can use."))


def test_every_option_and_argument_is_explained() -> None:
    silent = [
        (" ".join(words), param.name)
        for words, member in COMMANDS.items()
        for param in member.params
        if not param.help
    ]
    assert not silent


@pytest.mark.parametrize("words", sorted(COMMANDS), ids=lambda words: " ".join(words) or "root")
def test_hyphen_and_underscore_mean_the_same(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    spelled = [word.replace("-", "_") for word in words]
    for param in COMMANDS[words].params:
        for name in param.opts:
            if name.startswith("--") and "-" in name[2:]:
                other = "--" + name[2:].replace("-", "_")
                assert run([*spelled, other, "x", "--help"]) == 0, (words, other)
    assert run([*spelled, "--no_such_option", "x", "--help"]) == 2


@pytest.mark.parametrize("arguments", [[], ["help"], ["--help"], ["-h"]])
def test_without_a_command_there_is_help(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 0
    out = capsys.readouterr().out
    visible = [name for name, member in command().commands.items() if not member.hidden]
    assert visible and all(f"\n  {name} " in out for name in visible)


@pytest.mark.parametrize("alias", sorted(ALIASES))
def test_an_alias_is_another_name(alias: str, capsys: pytest.CaptureFixture[str]) -> None:
    helps = []
    for words in ([alias], [hyphens(alias)], [alias.replace("-", "_")], ALIASES[alias].split()):
        assert run([*words, "--help"]) == 0
        helps.append(capsys.readouterr().out)
    assert len(set(helps)) == 1


def test_help_of_a_command_and_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["help", "train"]) == 0
    assert capsys.readouterr().out.startswith("Usage: llava-tools train")
    for arguments in (["version"], ["--version"]):
        assert run(arguments) == 0
        assert capsys.readouterr().out == f"{llava_tools.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "first", "second"),
    [
        (["list-cgf"], "no command 'list-cgf'.", "Did you mean 'list-cfg'?"),
        (["tarin"], "llava-tools has no command 'tarin'.", "Did you mean 'train'?"),
        (["config", "shw"], "llava-tools config has no command 'shw'.", "Did you mean 'show'?"),
        (["nothing-like-it"], "no command 'nothing-like-it'.", "Known: "),
        (["train", "x", "--sed", "3"], "No such option: --sed", "Did you mean '--seed'?"),
        (["train", "x", "--qqqq"], "No such option: --qqqq", "See `llava-tools train --help`."),
        (["train"], "Missing argument 'CONFIG'.", "See `llava-tools train --help`."),
        (["train", "a", "b"], "Got unexpected extra argument", "`llava-tools train --help`"),
        (["train", "a", "--seed", "x"], "'--seed'", "See `llava-tools train --help`."),
        (["config"], "Missing command.", "See `llava-tools config --help`."),
        (["config", "show", f"{RECIPE}s"], "There is no config", f"Did you mean '{RECIPE}'?"),
        (["config", "show", RECIPE, "--cfg-options", "lrr=1"], "unknown key 'lrr'", "'lr'"),
    ],
)
def test_wrong_input_is_two_lines_and_exit_code_2(
    arguments: list[str], first: str, second: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    lines = error_lines(capsys)
    assert len(lines) == 2 and lines[0].startswith("Error: ")
    assert first in lines[0] and second in lines[1]


def test_a_bug_is_one_line_and_how_to_see_more(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llava_tools.config, "recipes", raising(ValueError("two\nlines")))
    assert run(["config", "list"]) == 1
    lines = error_lines(capsys)
    assert len(lines) == 2 and lines[0].endswith("ValueError: two lines") and "--debug" in lines[1]


@pytest.mark.parametrize(
    "arguments", [["--debug", "config", "list"], ["config", "list", "--debug"]]
)
def test_debug_shows_where(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llava_tools.config, "recipes", raising(ValueError("here")))
    assert run(arguments) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_message_of_several_lines_becomes_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llava_tools.config, "recipes", raising(UserError("one\ntwo", "do\nthis")))
    assert run(["config", "list"]) == 2
    assert error_lines(capsys) == ["Error: one two", "do this"]


def test_a_full_disk_is_no_bug(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/model.safetensors")
    monkeypatch.setattr(llava_tools.config, "copy_config", raising(full))
    assert run(["config", "copy", RECIPE, "out"]) == 2
    lines = error_lines(capsys)
    assert lines[0] == "Error: No space left on device: out/model.safetensors"
    assert "Free some space" in lines[1]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["config", "copy", RECIPE, "file"], "Error: File exists: file"),
        (["config", "copy", RECIPE, "file/below"], "Error: Not a directory: file/below"),
        (
            ["config", "from-args", "-o", "no/where.py", "--", "--model_name_or_path", "a"]
            + ["--data_path", "b"],
            "Error: No such file or directory: no/where.py",
        ),
    ],
)
def test_a_path_that_cannot_be_written_is_no_bug(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert run(command) == 2
    assert message in error_lines(capsys)


def test_a_path_error_without_a_path_is_a_bug(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    monkeypatch.setattr(llava_tools.config, "recipes", raising(lost))
    assert run(["config", "list"]) == 1
    assert "a bug" in error_lines(capsys)[0]


def test_the_log_goes_to_stderr_and_only_while_a_command_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("llava_tools.test")

    def recipes() -> dict[str, Path]:
        logger.info("looking")
        return {}

    monkeypatch.setattr(llava_tools.config, "recipes", recipes)
    for rank, expected in (("0", "looking\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        assert run(["config", "list"]) == 0
        assert capsys.readouterr() == ("", expected)
    assert logger.parent is not None and not logger.parent.handlers and logger.parent.propagate


def test_ctrl_c_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llava_tools.config, "recipes", raising(KeyboardInterrupt()))
    assert run(["config", "list"]) == 130
    assert error_lines(capsys) == ["Interrupted."]


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = "from llava_tools.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "config", "show", RECIPE],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["chat", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from llava_tools.cli.entry import run; code = run(sys.argv[1:]);"
        f"sys.exit(code or ' '.join({HEAVY!r} & set(sys.modules)) or 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_module_and_script_are_the_same_command() -> None:
    for start in (
        [sys.executable, "-m", "llava_tools"],
        [str(Path(sys.executable).parent / "llava-tools")],
    ):
        result = subprocess.run([*start, "version"], capture_output=True, text=True)
        assert result.stdout == f"{llava_tools.__version__}\n", result.stderr


def test_config_commands(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for arguments in (["config", "list", "-p", "PHI3"], ["list_cfg", "--pattern", "phi3"]):
        assert run(arguments) == 0
        names = capsys.readouterr().out.split()
        assert RECIPE in names and all("phi3" in name for name in names)
    assert run(["config", "show", RECIPE, "--gpus", "4", "--cfg-options", "max_epochs=2"]) == 0
    shown = capsys.readouterr().out
    assert "max_epochs = 2\n" in shown and "# with 4 device(s): 8722 micro-batches" in shown
    for arguments in (["config", "copy", RECIPE], ["copy-cfg", RECIPE]):
        folder = tmp_path / arguments[0]
        assert run([*arguments, str(folder)]) == 0
        written = capsys.readouterr().out.strip()
        assert written == str(folder / f"{RECIPE}_copy.py")
        assert run(["config", "diff", RECIPE, written]) == 0
        assert capsys.readouterr().out == ""
    assert run(["config", "diff", RECIPE, RECIPE.replace("pretrain", "sharegpt4v_pretrain")]) == 0
    assert "\n+batch_size = 16\n" in capsys.readouterr().out


def test_config_show_of_a_file_without_row_counts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "my.py"
    file.write_text(f'base = "{RECIPE}"\ndatasets = [dict(data_path="a.json")]\n')
    assert run(["config", "show", str(file)]) == 0
    assert "# iterations: unknown until the data is read" in capsys.readouterr().out
