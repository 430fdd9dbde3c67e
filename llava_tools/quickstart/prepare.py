"""The first stage: pictures, rows, benchmark table, tokenizer, random weights and configs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from llava_tools.quickstart import digits, parts
from llava_tools.quickstart.configs import EXAMPLE, Scale, run_settings, write_configs
from llava_tools.quickstart.rows import (
    Row,
    blind_rows,
    caption_rows,
    choice_rows,
    text_rows,
    write_benchmark,
    write_rows,
)

EMPTY_PAGES = 32
TOKENIZER_ROWS = 3000  # of each kind: enough to see every word often


def prepare(work_dir: Path, scale: Scale, seed: int) -> None:
    """Write `data`, `parts` and `configs` below the work dir; the same seed gives the same files.

    The held-out pictures go to data/heldout and data/mmbench.tsv and nowhere else.
    """
    data = work_dir / "data"
    found = digits.load()
    train, held_out = digits.split(found.targets, scale.held_out, seed)
    pictures = digits.write_train(data, found, train, scale.copies, seed)
    shutil.copyfile(data / pictures[0].file, data / EXAMPLE)
    asked = digits.write_held_out(data, found, held_out)
    rng = np.random.default_rng([seed, 3])
    captions = caption_rows(pictures, rng)
    questions = [row for _ in range(scale.choices) for row in choice_rows(pictures, rng)]
    pages = digits.write_empty(data, EMPTY_PAGES, seed)
    rows = {
        "text_sft": text_rows(scale.text_rows, rng),
        "pretrain": captions,
        "finetune": captions + questions + blind_rows(pages, scale.blind_rows, rng),
    }
    for name, members in rows.items():
        write_rows(data / f"{name}.json", members)
    write_benchmark(data / "mmbench.tsv", data, asked, rng)
    sample = [row for members in rows.values() for row in members[:TOKENIZER_ROWS]]
    tokenizer = parts.train_tokenizer(texts(sample))
    parts.write_llm(work_dir / "parts" / "phi3", tokenizer, seed)
    parts.write_tower(work_dir / "parts" / "clip", seed)
    write_configs(work_dir / "configs", run_settings(work_dir.resolve(), scale, seed))


def texts(rows: list[Row]) -> Iterator[str]:
    """Yield what is said in the rows."""
    for row in rows:
        yield from (turn["value"] for turn in row["conversations"])
