"""Write configs: the resolved file of a run, a stand-alone copy of a recipe, a difference."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from llava_tools import __version__
from llava_tools.config.load import find_config, load_settings
from llava_tools.config.settings import DatasetSpec, Settings
from llava_tools.errors import UserError
from llava_tools.whole_files import write_whole

RUN_HEAD = '"""Every setting of this run, as resolved by llava-tools'


def config_text(settings: Settings, *, defaults: bool = True) -> str:
    """Return `settings` as a config file; without `defaults` only what differs from them."""
    lines = [
        f"{name} = {_literal(value)}"
        for name, value, is_default in _values(settings)
        if defaults or not is_default
    ]
    return "\n".join(lines) + "\n"


def dump_config(settings: Settings, path: Path) -> None:
    """Write every setting of a run to `path`, so that it needs no base and no later default."""
    head = f'{RUN_HEAD} {__version__}."""\n\n'
    write_whole(path, (head + config_text(settings)).encode())


def is_run_config(path: Path) -> bool:
    """Return whether `path` is a file that `dump_config` wrote."""
    with path.open("rb") as file:
        return file.read(len(RUN_HEAD)) == RUN_HEAD.encode()


def copy_config(name_or_path: str, folder: Path) -> Path:
    """Write a config as a stand-alone file into `folder`; return the new file.

    Raises:
        UserError: the file is there already.
    """
    source = find_config(name_or_path)
    target = folder / f"{source.stem}_copy.py"
    if target.exists():
        raise UserError(f"{target} is there already.", "Remove it, or give another folder.")
    text = config_text(load_settings(name_or_path), defaults=False)
    folder.mkdir(parents=True, exist_ok=True)
    note = "Settings that are not here keep their defaults: see `llava-tools config show`."
    head = f'"""A copy of {source.stem} (llava-tools {__version__}).\n\n{note}\n"""\n\n'
    target.write_text(head + text, encoding="utf-8")
    return target


def diff_configs(left: str, right: str, overrides: Sequence[str] = ()) -> str:
    """Return the settings in which two configs differ, as unified-diff lines without context."""
    old, new = (config_text(load_settings(name, overrides)).splitlines() for name in (left, right))
    lines = difflib.unified_diff(old, new, left, right, n=0, lineterm="")
    return "\n".join(line for line in lines if not line.startswith("@@"))


def _values(record: Settings | DatasetSpec) -> list[tuple[str, Any, bool]]:
    """Return (name, value, is the default) of each field."""
    found = []
    for field in fields(record):
        value = getattr(record, field.name)
        found.append((field.name, value, field.default is not MISSING and value == field.default))
    return found


def _literal(value: Any, indent: str = "") -> str:
    """Return Python source for a value; datasets take a line for each key."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, DatasetSpec):
        given = [(k, v) for k, v, is_default in _values(value) if not is_default]
        inner = [f"{indent}    {k}={_literal(v)},\n" for k, v in given]
        return f"dict(\n{''.join(inner)}{indent})"
    if isinstance(value, dict):
        return "dict(" + ", ".join(f"{k}={_literal(v)}" for k, v in value.items()) + ")"
    if isinstance(value, tuple) and value and isinstance(value[0], DatasetSpec):
        return "[\n" + "".join(f"    {_literal(v, '    ')},\n" for v in value) + "]"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_literal(v) for v in value) + "]"
    return repr(value)
