"""Evaluate a language model with lm-eval: `llava-tools eval lm MODEL --tasks arc_challenge`.

The model is loaded by us, in any format; prompts, scoring and metrics are lm-eval's.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson

import llava_tools
from llava_tools.errors import UserError
from llava_tools.eval.lm_tasks import (
    Column,
    check_names,
    choose,
    data_digest,
    data_under,
    load,
    set_shots,
    task_manager,
)
from llava_tools.model.adapted import is_adapter
from llava_tools.model.generate import GenerationSettings, stop_rules
from llava_tools.model.identity import dtype_name, versions, weights_digest
from llava_tools.model.load import Assistant, build_assistant
from llava_tools.model.source import open_adapted
from llava_tools.whole_files import write_json

log = logging.getLogger(__name__)

SEEDS = {"random": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}  # lm-eval's defaults


@dataclass(frozen=True)
class Options:
    """How a model is loaded and asked."""

    adapter: str | None = None
    bits: int | None = None
    quant_type: str = "nf4"
    double_quant: bool = True
    limit: int | None = None
    batch_size: int = 8
    chat_template: bool = False
    dtype: str = "auto"
    device: str = "auto"
    config: str | None = None


def evaluate(
    model: str | Path,
    tasks: str | None = None,
    work_dir: str | Path | None = None,
    *,
    preset: str | None = None,
    num_fewshot: int | None = None,
    include_path: Path | None = None,
    data_root: Path | None = None,
    options: Options | None = None,
) -> dict[str, Any]:
    """Run tasks one after the other, each written when it is done, and return the results.

    The same call goes on after a kill with the tasks that are missing. The default work dir is
    `work_dirs/<model>/lm`. Data sets that lie under `data_root` by their names on the hub, such as
    `data_root/allenai/ai2_arc`, are read there.

    Raises UserError for a model, a task, data or an adapter that do not work, and when `work_dir`
    holds the results of another model, other data or other settings.
    """
    options = options or Options()
    columns = choose(tasks, preset, num_fewshot)
    manager = task_manager(include_path, [column.task for column in columns])
    check_names(columns, manager)
    with data_under(data_root):  # before minutes are spent on loading the model
        tasks_of = {column.task: load(column, manager) for column in columns}
    for column in columns:
        set_shots(column, tasks_of[column.task], SEEDS["fewshot"])
    data = {name: data_digest(loaded) for name, loaded in tasks_of.items()}
    folder = Path(work_dir or Path("work_dirs") / Path(model).resolve().name / "lm")
    assistant, template = _open(model, options)
    run = _fingerprint(model, assistant, template, options)
    runs = {name: {**run, "data": digest} for name, digest in data.items()}
    done = {column.task: _saved(folder, column, runs[column.task]) for column in columns}
    judge = _judge(assistant, options.batch_size)
    for column in columns:
        found = done[column.task]
        if found is None:
            log.info(
                "%s: %s shots", column.task, "its own" if column.shots is None else column.shots
            )
            found = _run_task(judge, tasks_of.pop(column.task), options)
            held = {"run": runs[column.task], "shots": column.shots, **found}
            write_json(_task_file(folder, column), held)
        done[column.task] = found
    report = _report(columns, {k: v for k, v in done.items() if v}, run, model, preset)
    report["data"] = data
    write_json(folder / "results.json", report)
    return report


def _open(model: str | Path, options: Options) -> tuple[Assistant, str | None]:
    """Load the model; a base model without a recorded prompt format is welcome."""
    packed = None
    if options.bits is not None:
        packed = {
            "bits": options.bits,
            "quant_type": options.quant_type,
            "double_quant": options.double_quant,
        }
    source, apart = open_adapted(model, options.config, options.adapter, apart=packed is not None)
    assistant = build_assistant(
        source,
        template=source.prompt_template or "plain",
        dtype=options.dtype,
        device=options.device,
        quantization=packed,
        adapter=apart,
    )
    if options.chat_template and not getattr(assistant.tokenizer, "chat_template", None):
        raise UserError(
            f"The tokenizer of '{model}' has no chat template.",
            "Leave --apply-chat-template out, or convert the model --to hf with its template.",
        )
    return assistant, source.prompt_template


def _fingerprint(
    model: str | Path, assistant: Assistant, template: str | None, options: Options
) -> dict[str, Any]:
    """Return everything that the numbers depend on."""
    return {
        "weights": weights_digest(assistant.model),
        "adapter": options.adapter or (str(model) if is_adapter(Path(model)) else None),
        "bits": options.bits,
        "quant_type": options.quant_type if options.bits == 4 else None,
        "double_quant": options.double_quant if options.bits == 4 else None,
        "compute_dtype": dtype_name(assistant.model),
        "prompt_template": template,
        "apply_chat_template": options.chat_template,
        "limit": options.limit,
        "seeds": SEEDS,
        "lm_eval": version("lm-eval"),
    }


def _judge(assistant: Assistant, batch_size: int) -> Any:
    """Hand the model to lm-eval, without its advice on models that it did not load itself.

    What ends an answer is told to `generate`: lm-eval itself ends a batch when all its rows have
    ended, and keeps what a row said behind its end.
    """
    from lm_eval.models.huggingface import HFLM

    ends = {assistant.tokenizer.eos_token_id} - {None}
    if ends or assistant.template.stop_words:
        ends |= set(stop_rules(assistant, GenerationSettings())[0])
    assistant.model.llm.generation_config.eos_token_id = sorted(ends) or None
    told = logging.getLogger("lm_eval.models.huggingface")
    before = told.level
    told.setLevel(logging.ERROR)
    try:
        return HFLM(
            pretrained=assistant.model.llm,
            tokenizer=assistant.tokenizer,
            backend="causal",
            batch_size=batch_size,
        )
    finally:
        told.setLevel(before)


def _run_task(judge: Any, loaded: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """Ask and score one task.

    By `evaluate` and not `simple_evaluate`, which loads the task anew and collects a report on
    the machine after each one.
    """
    from lm_eval import evaluate as ask

    _seed()
    found: Any = ask(
        lm=judge,
        task_dict=loaded,
        limit=options.limit,
        log_samples=False,
        apply_chat_template=options.chat_template,
        fewshot_as_multiturn=True,
        bootstrap_iters=1000,
    )
    kept = {
        "results": found["results"],
        "versions": found["versions"],
        "n-shot": found["n-shot"],
        "higher_is_better": found.get("higher_is_better", {}),
        "n-samples": found.get("n-samples", {}),
    }
    # As it will be read back: some tasks' metrics are numbers of numpy.
    plain: dict[str, Any] = orjson.loads(orjson.dumps(kept, option=orjson.OPT_SERIALIZE_NUMPY))
    return plain


def _seed() -> None:
    """Set the seeds anew for each task, so that its numbers depend on no other."""
    import random

    import numpy as np
    import torch

    random.seed(SEEDS["random"])
    np.random.seed(SEEDS["numpy"])
    torch.manual_seed(SEEDS["torch"])


def _task_file(folder: Path, column: Column) -> Path:
    return folder / "tasks" / f"{column.task.replace(os.sep, '_')}.json"


def _saved(folder: Path, column: Column, run: dict[str, Any]) -> dict[str, Any] | None:
    """Return a task's results of an earlier call. Raises UserError if they are of another run."""
    path = _task_file(folder, column)
    if not path.is_file():
        return None
    try:
        saved: dict[str, Any] = orjson.loads(path.read_bytes())
        before = {**saved["run"], "shots": saved["shots"]}
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"'{path}' is no result of ours.", "Give another --work-dir.") from error
    wanted = {**run, "shots": column.shots}
    other = [name for name in wanted if before.get(name) != wanted[name]]
    if other:
        raise UserError(
            f"'{path}' is of another run: {other[0]} was {before.get(other[0])}, "
            f"now {wanted[other[0]]}.",
            "Give another --work-dir, or remove that file.",
        )
    return {key: value for key, value in saved.items() if key not in ("run", "shots")}


def _report(
    columns: Sequence[Column],
    done: dict[str, dict[str, Any]],
    run: dict[str, Any],
    model: str | Path,
    preset: str | None,
) -> dict[str, Any]:
    scores = {c.title: done[c.task]["results"][c.task].get(c.metric) for c in columns if c.metric}
    merged = {
        key: {name: value for task in done.values() for name, value in task[key].items()}
        for key in ("results", "versions", "n-shot", "higher_is_better", "n-samples")
    }
    subjects = [
        row["acc,none"]
        for name, row in done.get("mmlu", {}).get("results", {}).items()
        if name in done["mmlu"]["n-samples"]
    ]
    return {
        "model": str(model),
        "preset": preset,
        "scores": scores,
        "mmlu_unweighted": sum(subjects) / len(subjects) if subjects else None,
        "run": run,
        **merged,
        "software": {**versions(), "llava_tools": llava_tools.__version__},
    }
