"""Data files tokenised once into a folder, which training maps into memory: no JSON, no waiting.

One sub-folder a data file, `00-train`, with the arrays of `PackedRows`, the skipped rows, and a
manifest of all that decides the tokens; a run that would tokenise otherwise refuses the folder. The
folder appears under its name when it is complete.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from llava_tools import __version__
from llava_tools.config import Settings
from llava_tools.data.detect import AUTO
from llava_tools.data.folders import data_files, is_single
from llava_tools.data.index import fingerprint
from llava_tools.data.packed import PackedRows
from llava_tools.data.prepare import Plan, Prepared
from llava_tools.data.skipped import from_lines, to_lines
from llava_tools.errors import UserError
from llava_tools.locks import hold

VERSION = 4  # of the folder's layout
MANIFEST, SKIPPED = "manifest.json", "skipped.jsonl"
NAMES = [field.name for field in fields(PackedRows)]


def deciding(settings: Settings, which: int, plan: Plan) -> dict[str, Any]:
    """Return what decides the tokens of a data file; the file itself only if it is there."""
    spec = settings.datasets[which]
    values: dict[str, Any] = {
        "version": VERSION,
        "format": plan.format,
        "prompt_template": plan.template.name,
        "template_hash": hashlib.sha256(repr(plan.template).encode()).hexdigest()[:16],
        "tokenizer": plan.codec.identity(),
        "chat_template": plan.codec.own_template.identity()
        if plan.template.from_tokenizer
        else None,
        "max_length": plan.max_length,
        "train_on": plan.train_on,
        "fastchat_compat": plan.fastchat_compat,
        "sees_images": plan.sees_images,
        "context": plan.limits.context,
        "image_positions": plan.limits.image_positions,
        "max_rows": spec.max_rows,
        "first_rows": spec.first_rows,
        "max_tokens": spec.max_tokens,
        "keep_system": spec.keep_system,
        "first_round": spec.first_round,
        "seed": None if spec.max_rows is None else settings.seed,
    }
    if plan.format == AUTO:  # without the data, nobody can tell
        del values["format"]
    if is_single(plan.path) and not os.path.isfile(plan.path):
        return values
    files = data_files(plan.path)
    size = sum(os.path.getsize(file) for file in files)
    prints = [fingerprint(file)[:16] for file in files]
    together = hashlib.sha256("".join(prints).encode()).hexdigest()[:16]
    values["data"] = f"{size} bytes, {prints[0] if len(files) == 1 else together}"
    return values


def _folder_name(plan: Plan, which: int) -> str:
    name = re.sub(r"[^\w.-]", "_", Path(plan.path).name)
    return f"{which:02d}-{name.removesuffix('.gz').rpartition('.')[0] or name}"


def is_finished(folder: Path, settings: Settings, plans: Sequence[Plan]) -> bool:
    """Return whether a folder holds the rows of all data files; False when it is not there.

    Raises UserError for a folder that holds something else.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    for which, plan in enumerate(plans):
        read_manifest(folder, settings, which, plan)
    return True


def read_manifest(folder: Path, settings: Settings, which: int, plan: Plan) -> dict[str, Any]:
    """Return the manifest of a data file. Raises UserError when it does not fit the run."""
    place = folder / _folder_name(plan, which)
    try:
        found: dict[str, Any] = orjson.loads((place / MANIFEST).read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise UserError(
            f"'{folder}' does not hold the tokenised rows of '{plan.path}': '{place / MANIFEST}' "
            "is not there or cannot be read.",
            f"Run `llava-tools data tokenize CONFIG --save-folder {folder}` with all data files of "
            "the config, in their order, and a folder that is not there yet.",
        ) from error
    wanted = deciding(settings, which, plan)
    differing = [key for key in wanted if found.get(key) != wanted[key]]
    if differing:
        values = [f"{key} is {found.get(key)!r} there, {wanted[key]!r} here" for key in differing]
        raise UserError(
            f"'{place}' was tokenised for another run: {'; '.join(values)}.",
            "Tokenise into another folder, or set in the config what the folder was made with.",
        )
    return found


def load_rows(settings: Settings, which: int, plan: Plan) -> Prepared[PackedRows]:
    """Map the rows of a data file into memory. Raises UserError for a folder that does not fit."""
    root = Path(settings.tokenized_folder or "")
    manifest = read_manifest(root, settings, which, plan)
    folder = root / _folder_name(plan, which)
    try:
        arrays = {n: np.asarray(np.load(folder / f"{n}.npy", mmap_mode="r")) for n in NAMES}
        skips = from_lines((folder / SKIPPED).read_bytes())
    except (OSError, ValueError, EOFError) as error:
        message = f"'{folder}' is damaged: {error}."
        raise UserError(message, "Copy it again, or run `llava-tools data tokenize`.") from error
    return Prepared(PackedRows(**arrays), skips, Counter(manifest["mended"]), manifest["seen"])


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to write into; it gets its name at the end, and is removed on an error.

    Raises UserError when another process is writing it, or when it cannot be written.
    """
    unfinished = folder.with_name(f"{folder.name}.partial")
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        with _held(unfinished):
            try:
                for left in unfinished.iterdir():  # by a process that was killed
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
                yield unfinished
                unfinished.rename(folder)
            except BaseException:
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
    except OSError as error:
        reason = error.strerror or error
        message = f"The folder '{folder}' cannot be written: {reason}."
        raise UserError(message, "Name another one with --save-folder.") from error


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    hint = "Wait for it, or name another --save-folder."
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        hold(descriptor, folder, UserError(f"Another process is writing '{folder}'.", hint))
        yield
    finally:
        os.close(descriptor)


def write_rows(
    folder: Path, settings: Settings, which: int, plan: Plan, prepared: Prepared[PackedRows]
) -> None:
    """Write the rows of a data file into its sub-folder."""
    place = folder / _folder_name(plan, which)
    place.mkdir()
    for name in NAMES:
        with (place / f"{name}.npy").open("wb") as file:
            np.save(file, getattr(prepared.rows, name))
            file.flush()
            os.fsync(file.fileno())
    (place / SKIPPED).write_bytes(to_lines(prepared.skips))
    manifest = {
        **deciding(settings, which, plan),
        "data_path": plan.path,
        "rows": len(prepared.rows),
        "seen": prepared.seen,
        "mended": dict(prepared.mended),
        "llava_tools_version": __version__,
    }
    (place / MANIFEST).write_bytes(orjson.dumps(manifest, option=orjson.OPT_INDENT_2))
