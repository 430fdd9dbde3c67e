"""Which tasks of lm-eval to run, and how: the presets, the task files, one clear error a fault."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson
import yaml

from llava_tools.errors import UserError, first_line, nearest

log = logging.getLogger(__name__)

OWN_TASKS = Path(__file__).parent / "lm_harness"


@dataclass(frozen=True)
class Column:
    """One number of a table: a task with its shots, and which of its metrics is reported."""

    title: str
    task: str
    metric: str  # as lm-eval names it: metric, comma, filter
    shots: int | None = None  # None: what the task says


PRESETS: dict[str, tuple[Column, ...]] = {
    # The Open LLM Leaderboard, version 1; the average is the plain mean of the six.
    "open-llm-v1": (
        Column("ARC", "arc_challenge", "acc_norm,none", 25),
        Column("HellaSwag", "hellaswag", "acc_norm,none", 10),
        Column("MMLU", "mmlu", "acc,none", 5),
        Column("TruthfulQA", "truthfulqa_mc2", "acc,none", 0),
        Column("Winogrande", "winogrande", "acc,none", 5),
        Column("GSM8K", "gsm8k", "exact_match,strict-match", 5),
    ),
    # The columns of MobileLLaMA's table. Its harness was never told; the shots are OpenCompass's.
    "mobilellama": (
        Column("TriviaQA", "triviaqa", "exact_match,remove_whitespace", 0),
        Column("NQ", "nq_open", "exact_match,remove_whitespace", 0),
        Column("HellaSwag", "hellaswag", "acc_norm,none", 0),
        Column("RACE-middle", "race_middle", "acc,none", 0),
        Column("RACE-high", "race_high", "acc,none", 0),
        Column("XSum", "xsum_rouge1", "rouge1,none", 0),
    ),
}


class _Names(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
    """Reads a task file for its structure; `!function` and the like stay unread."""


_Names.add_multi_constructor("!", lambda loader, suffix, node: None)


def task_manager(include_path: Path | None, names: Sequence[str]) -> Any:
    """Return a table of tasks: ours and those of a folder, and lm-eval's where a name needs them.

    lm-eval ships thousands of files, whose reading takes seconds.

    Raises UserError: lm-eval is not installed, the folder has no YAML file, or a broken one.
    """
    if find_spec("lm_eval") is None:
        raise UserError(
            "Evaluating language models needs lm-eval, which is not installed.",
            "Install it with: pip install 'llava-tools[lm]'",
        )
    if include_path is not None:
        _check_folder(include_path)
    from lm_eval.tasks import TaskManager

    folders = [str(OWN_TASKS)]
    if include_path is not None:
        folders.append(str(include_path.expanduser().resolve()))
    local = TaskManager(include_path=folders, include_defaults=False)
    if set(names) <= set(local.all_tasks):
        return local
    return TaskManager(include_path=folders)


def _check_folder(folder: Path) -> None:
    files = sorted(folder.rglob("*.yaml")) if folder.is_dir() else []
    if not files:
        raise UserError(
            f"'{folder}' holds no task files (*.yaml).", "Give the folder with your task files."
        )
    for file in files:
        try:
            yaml.load(file.read_text(encoding="utf-8"), Loader=_Names)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            where = getattr(error, "problem_mark", None)
            line = f", line {where.line + 1}" if where else ""
            raise UserError(
                f"'{file}'{line} is no YAML: {first_line(error)}.", "Mend the task file."
            ) from error


def choose(tasks: str | None, preset: str | None, shots: int | None) -> list[Column]:
    """Return the columns of a preset, or one for each task named with commas between.

    Raises UserError unless exactly one of the two is given, and for an unknown preset.
    """
    if (tasks is None) == (preset is None):
        raise UserError("Give either --tasks or --preset.", f"Presets: {', '.join(PRESETS)}.")
    if preset is not None:
        if preset not in PRESETS:
            raise UserError(f"Unknown preset '{preset}'.", f"Known: {', '.join(PRESETS)}.")
        if shots is not None:
            raise UserError(
                f"Preset '{preset}' has shots of its own.", "Leave --num-fewshot out, or --preset."
            )
        return list(PRESETS[preset])
    names = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    if not names:
        raise UserError("--tasks names no task.", "For example: --tasks arc_challenge,hellaswag")
    return [Column(name, name, "", shots) for name in dict.fromkeys(names)]


def check_names(columns: Sequence[Column], manager: Any) -> None:
    """Raise UserError with the nearest name for the first task that lm-eval does not know."""
    for column in columns:
        if column.task not in manager.all_tasks:
            close = nearest(column.task, manager.all_tasks)
            raise UserError(
                f"lm-eval {_version()} has no task '{column.task}'.",
                f"Did you mean '{close}'?" if close else "`lm-eval ls tasks` lists all of them.",
            )


def load(column: Column, manager: Any) -> dict[str, Any]:
    """Load a task with its data, by lm-eval's names: `tasks`, and `groups` where it has some.

    Raises UserError when that fails.
    """
    try:
        loaded: dict[str, Any] = manager.load([column.task])
    except Exception as error:  # every dataset library and task file raises its own kind
        cause = f" ({first_line(error.__cause__)})" if error.__cause__ else ""
        raise UserError(
            f"Task '{column.task}' cannot be loaded: {first_line(error)}{cause}",
            "Without network, its data must be downloaded already (unset HF_HUB_OFFLINE to "
            "download), lie under --data-root by its name on the hub, or come from files by a "
            "task file of yours: --include-path.",
        ) from error
    return loaded


@contextmanager
def data_under(root: Path | None) -> Iterator[None]:
    """Read data sets in a folder: in the current one `datasets` looks for names before the hub.

    It keeps what it read by that name alone, and would not see another folder or a file that
    changed: here it keeps it apart, by the folder's files. Raises UserError without a folder.
    """
    if root is None:
        yield
        return
    if not root.is_dir():
        raise UserError(f"There is no folder '{root}'.", "Give the folder of the data sets.")
    from datasets import config

    before, kept = Path.cwd(), config.HF_DATASETS_CACHE
    config.HF_DATASETS_CACHE = Path(kept).absolute() / "llava_tools" / _stamp(root.resolve())
    os.chdir(root)
    try:
        yield
    finally:
        os.chdir(before)
        config.HF_DATASETS_CACHE = kept


def _stamp(root: Path) -> str:
    """Return a hash over the files of a folder: their paths, sizes and times of change."""
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*")):
        if file.is_file():
            seen = file.stat()
            digest.update(f"{file} {seen.st_size} {seen.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def set_shots(column: Column, loaded: Mapping[str, Any], seed: int) -> None:
    """Give the tasks their examples. One whose file says none keeps none, lm-eval's rule."""
    for name, task in loaded["tasks"].items():
        own = task.get_config("num_fewshot")
        if column.shots and own == 0:
            log.warning("%s is a task without examples: it keeps 0 shots.", name)
        if own != 0:
            wanted = own or 0 if column.shots is None else column.shots
            task.set_config(key="num_fewshot", value=wanted)
        task.set_fewshot_seed(seed=seed)


# Where a task lies, which says nothing of what it asks.
_PLACES = ("dataset_path", "dataset_name", "dataset_kwargs", "metadata", "num_fewshot")


def data_digest(loaded: Mapping[str, Any]) -> str:
    """Return a hash over what is asked: the rows, the examples where there are some, the rules."""
    digest = hashlib.sha256()
    for name, task in sorted(loaded["tasks"].items()):
        rules = {key: value for key, value in task.dump_config().items() if key not in _PLACES}
        sources = [[name, rules], *task.eval_docs]
        if task.get_config("num_fewshot"):
            sources += task.fewshot_docs()
        for item in sources:
            digest.update(orjson.dumps(item, default=_kind, option=_PLAIN) + b"\n")
    return digest.hexdigest()[:16]


_PLAIN = orjson.OPT_NON_STR_KEYS | orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY


def _kind(value: Any) -> str:
    return type(value).__name__


def _version() -> str:
    from importlib.metadata import version

    return version("lm-eval")
