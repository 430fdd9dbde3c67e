"""All columns of the LLaVA-Phi-3-mini table from one command: whatever lies under one folder.

llava-tools eval suite llava-table MODEL --data-root DIR --work-dir OUT
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from llava_tools.errors import UserError, did_you_mean
from llava_tools.eval.report import Report
from llava_tools.eval.shares import check_parent, place_here
from llava_tools.whole_files import write_json

log = logging.getLogger(__name__)

RESULTS = "results.json"
# Evaluates one benchmark: (benchmark, data, work dir, protocol, image folder, answers).
Evaluate = Callable[[str, Path, Path, str, Path | None, Path | None], Report]


@dataclass(frozen=True)
class Source:
    """A file under the root, and where the pictures and answers are that it lacks."""

    file: str
    images: str = ""
    answers: str = ""


@dataclass(frozen=True)
class Column:
    """A column of the table: a benchmark, whose protocol, which numbers of which split."""

    heading: str
    benchmark: str
    sources: tuple[Source, ...]
    protocol: str
    metrics: tuple[str, ...] = ("accuracy",)
    split: str = ""
    most: float = 1.0  # what is 100 % on the radar


def _tsv(*names: str) -> tuple[Source, ...]:
    return tuple(Source(f"{name}.tsv") for name in names)


# The paths of JSON files are those of LLaVA's evaluation guide.
LLAVA_TABLE = (
    Column("MMBench Test (EN)", "mmbench", _tsv("MMBench_TEST_EN"), "vlmevalkit", ("circular",)),
    Column("MMBench Test (CN)", "mmbench", _tsv("MMBench_TEST_CN"), "vlmevalkit", ("circular",)),
    Column("MMBench Dev (EN)", "mmbench", _tsv("MMBench_DEV_EN"), "vlmevalkit", ("circular",)),
    Column("MMBench Dev (CN)", "mmbench", _tsv("MMBench_DEV_CN"), "vlmevalkit", ("circular",)),
    Column("CCBench Dev", "ccbench", _tsv("CCBench"), "vlmevalkit", ("circular",)),
    Column("MMMU Val", "mmmu", _tsv("MMMU_DEV_VAL"), "lmms-eval", split="validation"),
    Column("SEED-IMG", "seed", (
        *_tsv("SEEDBench_IMG"),
        Source("seed_bench/SEED-Bench.json", "seed_bench/SEED-Bench-image"),
    ), "lmms-eval"),
    Column("AI2D Test", "ai2d", _tsv("AI2D_TEST"), "lmms-eval"),
    Column("ScienceQA Test", "scienceqa", (
        *_tsv("ScienceQA_TEST"),
        Source("scienceqa/llava_test_CQM-A.json", "scienceqa/images/test"),
    ), "lmms-eval", split="image"),
    Column("HallusionBench aAcc", "hallusion", (
        *_tsv("HallusionBench"),
        Source("hallusion_bench/HallusionBench.json", "hallusion_bench"),
    ), "vlmevalkit", ("aAcc",)),
    Column("POPE", "pope", (
        *_tsv("POPE"), Source("pope/llava_pope_test.jsonl", "pope/val2014", "pope/coco"),
    ), "llava", ("pope",)),
    Column("GQA", "gqa", (
        *_tsv("GQA_TestDev_Balanced"),
        Source("gqa/llava_gqa_testdev_balanced.jsonl", "gqa/data/images",
               "gqa/data/questions1.2/testdev_balanced_questions.json"),
    ), "llava"),
    Column("TextVQA", "textvqa", (
        Source("textvqa/llava_textvqa_val_v051_ocr.jsonl", "textvqa/train_images",
               "textvqa/TextVQA_0.5.1_val.json"),
        *_tsv("TextVQA_VAL"),
    ), "llava"),
    Column("MME", "mme", (
        *_tsv("MME"),
        Source("MME/llava_mme.jsonl", "MME/MME_Benchmark_release_version",
               "MME/MME_Benchmark_release_version"),
    ), "llava", ("perception", "cognition"), most=2800.0),
    Column("MMStar", "mmstar", _tsv("MMStar"), "vlmevalkit"),
    Column("RefCOCO", "refcoco", (Source("refcoco", "coco"), *_tsv("RefCOCO")),
           "xtuner", ("average",)),
)  # fmt: skip
SUITES: Mapping[str, Sequence[Column]] = {"llava-table": LLAVA_TABLE}


@dataclass(frozen=True)
class Found:
    """A column with the files that were found for it."""

    column: Column
    data: Path
    images: Path | None
    answers: Path | None


def get_suite(name: str) -> Sequence[Column]:
    """Return the columns of a suite. Raises UserError with the nearest name otherwise."""
    if name not in SUITES:
        raise UserError(f"Unknown suite '{name}'.", did_you_mean(name, SUITES))
    return SUITES[name]


def find(columns: Sequence[Column], root: str | Path) -> list[Found]:
    """Return the columns whose data lie under `root`; a TSV may lie in any folder below.

    Raises UserError when there is none at all.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"There is no folder '{root}'.", "Name the one of the benchmarks.")
    tables = {path.name: path for path in sorted(root.rglob("*.tsv"), reverse=True)}
    found = [one for column in columns if (one := _find(column, root, tables))]
    if not found:
        names = ", ".join(column.sources[0].file for column in columns)
        raise UserError(f"'{root}' holds no benchmark file.", f"Looked for {names}.")
    return found


def _find(column: Column, root: Path, tables: Mapping[str, Path]) -> Found | None:
    for source in column.sources:
        data = tables.get(source.file, root / source.file)
        places = [root / place if place else None for place in (source.images, source.answers)]
        if data.exists() and all(place is None or place.exists() for place in places):
            return Found(column, data, *places)
    return None


def run_suite(name: str, root: str | Path, work_dir: str | Path, evaluate: Evaluate) -> Report:
    """Evaluate all that is found, each in a folder of its own, and write the results.

    A benchmark that fails does not stop the others: `failed` says why. Raises UserError for an
    unknown suite and a root without data, and where torchrun was killed: nothing is written then.
    """
    columns, folder, here = get_suite(name), Path(work_dir), place_here()
    cells: dict[str, Any] = {}
    failed: dict[str, str] = {}
    found = find(columns, root)
    for number, one in enumerate(found, 1):
        column, place = one.column, folder / one.data.stem
        log.info("%s (%d of %d): %s", column.heading, number, len(found), one.data)
        try:
            report = evaluate(
                column.benchmark, one.data, place, column.protocol, one.images, one.answers
            )
        except UserError as error:
            check_parent(here)
            failed[column.heading] = error.message
            log.warning("%s failed: %s", column.heading, error.message)
            continue
        cells[column.heading] = _cell(column, report) | {"work_dir": str(place)}
    runs = [cell["run"] for cell in cells.values() if cell["run"]]
    model = runs[0]["model"] if runs else ""
    results = {"suite": name, "model": model, "cells": cells, "failed": failed}
    if here.rank == 0:
        write_json(folder / RESULTS, results)
    return results


def _cell(column: Column, report: Report) -> dict[str, Any]:
    """Return what the table says of one benchmark: numbers, and what they rest on."""
    part = report.get("splits", {}).get(column.split) or report
    values = [part.get(metric) for metric in column.metrics]
    return {
        "values": values if report["scored"] else None,
        "intervals": [part.get("intervals", {}).get(metric) for metric in column.metrics],
        "protocol": report["protocol"],
        "data": report["data"],
        "counts": report["counts"],
        "split": column.split if part is not report else "",
        "submission": report.get("submission"),
        "run": report["run"],
    }


def load_results(folder: str | Path) -> Report:
    """Return the results in a suite's work dir. Raises UserError when there are none."""
    path = Path(folder) / RESULTS
    try:
        results = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise UserError(f"'{path}' holds no results of a suite.", "Give its --work-dir.") from error
    whole = isinstance(results, dict) and {"model", "cells", "failed"} <= results.keys()
    if not whole or results.get("suite") not in SUITES:
        raise UserError(f"'{path}' holds no results of a suite.", "Give its --work-dir.")
    return dict(results)
