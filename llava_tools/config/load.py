"""Find a config by path or by recipe name, and load it with its bases and overrides."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_tools.config.check import Origin, settings_from
from llava_tools.config.files import check_files as check_files_of
from llava_tools.config.settings import Settings
from llava_tools.errors import UserError, nearest

if TYPE_CHECKING:
    from mmengine.config import Config

SUFFIXES = (".py", ".json", ".yaml", ".yml")


def recipes() -> dict[str, Path]:
    """Return the shipped recipes, name -> file, read from the folder itself."""
    import llava_tools.configs

    root = Path(llava_tools.configs.__path__[0])
    files = (file for file in root.rglob("*.py") if file.name != "__init__.py")
    return {f.stem: f for f in sorted(files) if f.relative_to(root).parts[0] != "base"}


def find_config(name_or_path: str) -> Path:
    """Return the file of a config, given its path or the bare name of a recipe.

    Raises:
        UserError: neither a file nor a recipe.
    """
    path = Path(name_or_path).expanduser()
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise UserError(f"{path} is not a config.", f"A config ends in {', '.join(SUFFIXES)}.")
        return path
    known = recipes()
    if name_or_path.removesuffix(".py") in known:
        return known[name_or_path.removesuffix(".py")]
    close = nearest(path.stem, known)
    proposal = f"Did you mean '{close}'? " if close else ""
    raise UserError(
        f"There is no config '{name_or_path}': neither a file nor the name of a recipe.",
        f"{proposal}`llava-tools config list` prints the recipes.",
    )


def load_config(name_or_path: str, overrides: Sequence[str] = ()) -> Config:
    """Return the config with its bases resolved and `key=value` overrides applied, unchecked.

    Raises:
        UserError: no such config, a file that cannot be read, or an override that fits nothing.
    """
    from mmengine.config import Config

    path = find_config(name_or_path)
    config = Config(_read(path), filename=str(path))
    options = parse_overrides(overrides)
    for key in options:
        if "." in key and config.get(key.split(".")[0], "") is None:
            config[key.split(".")[0]] = {}  # so that `llm_lora.r=8` may start a dict
    try:
        config.merge_from_dict(options)
    except (KeyError, TypeError, AssertionError) as error:
        message = f"--cfg-options: {' '.join(overrides)} does not fit {path}: {error}"
        hint = "Write a.b=1 for a key of a dict, datasets.0.data_path=x for a member of a list."
        raise UserError(message, hint) from error
    return config


def load_settings(
    name_or_path: str, overrides: Sequence[str] = (), *, check_files: bool = False
) -> Settings:
    """Return the checked settings of a config; `check_files` also looks for the files it names.

    Raises:
        UserError: what is wrong, in which file, and the nearest right name.
    """
    config = load_config(name_or_path, overrides)
    roots = frozenset(key.split(".")[0] for key in parse_overrides(overrides))
    settings = settings_from(config.to_dict(), Origin(str(config.filename), roots))
    if check_files:
        check_files_of(settings, str(config.filename))
    return settings


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Return `a.b=1`, `k=[1,2]`, `k=(a,b)` as a dict, read as mmengine's DictAction does.

    Unlike there, a plain text keeps its spaces, and quotes keep commas: `system='a, b'`.
    """
    from argparse import ArgumentParser, Namespace

    from mmengine.config import DictAction

    action, result = DictAction(["--cfg-options"], "options"), {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not (key and equals):
            message = f"--cfg-options: '{override}' is not KEY=VALUE."
            raise UserError(message, "Write for example lr=1e-4 or datasets.0.data_path=x.json.")
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            result[key] = value[1:-1]
            continue
        space = Namespace()
        try:
            action(ArgumentParser(), space, [override])
        except AssertionError as error:
            raise UserError(f"--cfg-options: {error}.", "Close every bracket.") from error
        parsed = space.options[key]
        result[key] = value if isinstance(parsed, str) else parsed
    return result


def _read(path: Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the values of one file over those of its `base`."""
    path = path.resolve()
    if path in children:
        chain = " -> ".join(file.name for file in (*children, path))
        raise UserError(f"{path}: 'base' goes in a circle: {chain}", "Remove one `base = ...`.")
    values = _values(path)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        message = f"{path}: 'base' must be the name or path of one config, not {base!r}."
        raise UserError(message, "`llava-tools config list` prints the names of the recipes.")
    beside = path.parent / base
    parent = beside if beside.is_file() else find_config(base)
    return _merge(_read(parent, (*children, path)), values)


def _values(path: Path) -> dict[str, Any]:
    """Return the plain values of one file; `_names`, modules and functions are helpers."""
    from mmengine.config import Config

    try:
        # mmengine's own guess takes `import os` for an inherited config.
        inherits = path.suffix == ".py" and _uses_read_base(path)
        values = Config.fromfile(str(path), lazy_import=inherits).to_dict()
    except (Exception, SystemExit) as error:  # a config is Python: it may raise anything
        line = getattr(error, "lineno", None)
        place = f"{path}, line {line}" if line else str(path)
        kind = type(error).__name__
        message = f"{place}: this config cannot be read ({kind}: {error})"
        raise UserError(
            message, "A config is a short Python file of `name = value` lines."
        ) from error
    helper = (inspect.ismodule, inspect.isroutine, inspect.isclass)
    return {
        key: value
        for key, value in values.items()
        if not key.startswith("_") and not any(test(value) for test in helper)
    }


def _uses_read_base(path: Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return any(isinstance(node, ast.With) for node in tree.body)


def _merge(base: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `new`; dicts merge, everything else is replaced."""
    merged = dict(base)
    for key, value in new.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if both else value
    return merged
