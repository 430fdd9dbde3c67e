"""Hostile checkpoints: each does its harm under a plain unpickler, and none through any door here.

The harm is a file in the current folder. Every attack is shown to work first, so that a test of
one that had never been dangerous cannot pass.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import marshal
import operator
import os
import pathlib
import pickle
import runpy
import shutil
import subprocess
import sys
import timeit
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llava_tools.errors import UserError
from llava_tools.model.safe_pickle import Inert, read_pickle
from tests.model.test_safe_pickle import checkpoint, tensor_program

MARK = "touched"
SHELL, CODE = f"touch {MARK}", f"open({MARK!r}, 'w')"
HELPER = "a_module_beside"  # importing it does harm


class Call:
    """Pickles as a call of `function`, which may be the result of another call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call

    def __call__(self) -> None:
        """Only there because pickle asks whether what it writes can be called."""


def calling(function: Any, *arguments: Any) -> bytes:
    return pickle.dumps(Call(function, *arguments), 2)


BYTECODE = marshal.dumps(compile(CODE, "x", "exec"))
ATTACKS: dict[str, bytes] = {
    "shell": calling(os.system, SHELL),
    "process": calling(subprocess.call, ["touch", MARK]),
    "eval": calling(eval, CODE),
    "exec, protocol 4": pickle.dumps(Call(exec, CODE), 4),
    "open": calling(open, MARK, "w"),
    "new folder": calling(os.mkdir, MARK),
    "copied file": calling(shutil.copyfile, os.__file__, MARK),
    "numpy": calling(np.save, MARK, 1),
    "torch": calling(torch.save, 1, MARK),
    "download": calling(torch.hub.download_url_to_file, Path(os.__file__).as_uri(), MARK),
    "an attribute of a name": b"c__builtin__\ngetattr\n(cos\nsystem\nS'__call__'\ntR"
    b"(S'touch touched'\ntR.",
    "a method of an object": calling(operator.methodcaller("touch"), pathlib.Path(MARK)),
    "a nested name": b"\x80\x04\x8c\x07pathlib\x8c\x0aPath.touch\x93\x8c\x07pathlib\x8c\x04Path\x93"
    b"\x8c\x07touched\x85R\x85R.",
    "a partial function": calling(functools.partial(os.system, SHELL)),
    "a pickle in a pickle": calling(pickle.loads, pickle.dumps(Call(os.system, SHELL), 2)),
    "code as a text": calling(runpy._run_code, CODE, {}),  # type: ignore[attr-defined]
    "code to be timed": calling(timeit.timeit, CODE, "pass", timeit.default_timer, 1),
    "bytecode": calling(exec, Call(marshal.loads, BYTECODE)),
    "the C library": calling(Call(getattr, Call(ctypes.CDLL, None), "system"), SHELL.encode()),
    "a module that is imported": calling(importlib.import_module, HELPER),
    "the name of such a module": f"c{HELPER}\nx\n.".encode(),
    "protocol 0's instance": f"(S'{SHELL}'\nios\nsystem\n.".encode(),
    "protocol 1's object": f"(cos\nsystem\nS'{SHELL}'\no.".encode(),
    "a function that torch lets call": calling(
        torch._tensor._rebuild_from_type_v2, os.system, None, (SHELL,), None
    ),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and a module that does harm when it is imported."""
    folder, beside = tmp_path / "here", tmp_path / "beside"
    folder.mkdir()
    beside.mkdir()
    (beside / f"{HELPER}.py").write_text(CODE)
    monkeypatch.syspath_prepend(beside)
    monkeypatch.delitem(sys.modules, HELPER, raising=False)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_works_on_a_plain_unpickler_and_does_nothing_here(
    tmp_path: Path, here: Path, name: str
) -> None:
    program = ATTACKS[name]
    beside = _beside_weights(tmp_path / "beside.pth", program)
    (tmp_path / "legacy.bin").write_bytes(program)
    for file in (checkpoint(tmp_path / "x.pth", program), beside, tmp_path / "legacy.bin"):
        try:
            found = read_pickle(file)
        except UserError as refused:  # as good as inert
            assert str(file) in refused.message
        else:
            assert file != beside or torch.equal(found["a"].read(), torch.arange(4.0))
        assert list(here.iterdir()) == [], file
    with suppress(Exception):  # some end in an error, after their harm
        pickle.loads(program)
    assert len(list(here.iterdir())) == 1


def _beside_weights(path: Path, program: bytes) -> Path:
    """Write a genuine checkpoint of one tensor `a` with the attack as one more entry."""
    body = program[2:-1] if program[:1] == b"\x80" else program[:-1]
    whole = tensor_program(4)[:-1] + b"X\x05\x00\x00\x00extra" + body + b"s."
    return checkpoint(path, whole, {"data/0": torch.arange(4.0).numpy().tobytes()})


def state_of(target: Any, state: Any) -> bytes:
    """Return a pickle that sets the state of a global (BUILD on a class or function)."""
    body = pickle.dumps(state, 2)[2:-1]
    return b"\x80\x02c" + f"{target.__module__}\n{target.__qualname__}\n".encode() + body + b"b."


@pytest.mark.parametrize("target", [OrderedDict, torch._utils._rebuild_tensor_v2, Inert])
def test_names_that_are_answered_keep_their_state(tmp_path: Path, target: Any) -> None:
    with suppress(UserError):
        read_pickle(checkpoint(tmp_path / "x.pth", state_of(target, {"harm": 1})))
    assert not hasattr(target, "harm")
    with suppress(TypeError):  # of a class, whose attributes are set one by one
        pickle.loads(state_of(target, (None, {"harm": 1})))
        assert target.harm == 1
        del target.harm
    with suppress(UserError):
        read_pickle(checkpoint(tmp_path / "x.pth", state_of(target, (None, {"harm": 1}))))
    assert not hasattr(target, "harm")
