"""Clusters and near-duplicates of as many rows as Alpaca has, embeddings as wide as a real model's.

    python benchmarks/curation.py [--rows 52000] [--width 2048] [--n-init 10] [--skip select]

Rows and embeddings are made up: 300 kinds of prompts in 64 directions, with noise; a tenth of the
rows is another one with a word changed. Each command runs in a process of its own, on as many
threads as OMP_NUM_THREADS says. Printed as one line of JSON: CPU seconds and peak memory of each.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from llava_tools.curate.rows import row_key
from llava_tools.curate.score_log import ScoreLog

MEASURED = Path(__file__).parent / "measured.py"


def make_rows(count: int) -> list[dict[str, str]]:
    """Return rows of about 70 words of a vocabulary like a language's: few are common."""
    rng = random.Random(0)
    words = [f"w{i}" for i in range(20_000)]
    weights = [1 / (i + 10) for i in range(20_000)]
    rows: list[dict[str, str]] = []
    for _ in range(count):
        if rows and rng.random() < 0.1:
            row = rng.choice(rows)
            *answer, _ = row["output"].split()
            rows.append(row | {"output": " ".join([*answer, rng.choice(words)])})
            continue
        question, answer = (rng.choices(words, weights, k=k) for k in (12, rng.randrange(20, 100)))
        rows.append({"instruction": " ".join(question), "input": "", "output": " ".join(answer)})
    return rows


def make_scores(folder: Path, rows: list[dict[str, str]], width: int) -> None:
    """Write both kinds of scores, as `curate ifd` does."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(300, 64)).astype("f4")
    directions = rng.normal(size=(64, width)).astype("f4") / 8
    with ScoreLog(folder / "s.jsonl", {"mode": "cherry"}, {"ifd": "loss"}) as log:
        values = rng.uniform(0.3, 1.1, len(rows))
        log.append(
            [
                {"row": i, "id": row_key(row), "tokens": 60, "loss": v, "ifd_loss": v}
                for i, (row, v) in enumerate(zip(rows, values.tolist(), strict=True))
            ]
        )
    with ScoreLog(folder / "pre.jsonl", {"mode": "pre"}, {}, width) as log:
        for start in range(0, len(rows), 1000):
            part = rows[start : start + 1000]
            latent = centres[rng.integers(300, size=len(part))]
            latent = latent + 0.4 * rng.normal(size=latent.shape).astype("f4")
            vectors = latent @ directions + 0.2 * rng.normal(size=(len(part), width)).astype("f4")
            ppl = rng.uniform(5, 90, len(part)).tolist()
            records = [
                {"row": start + i, "id": row_key(row), "ppl": p}
                for i, (row, p) in enumerate(zip(part, ppl, strict=True))
            ]
            log.append(records, list(vectors))


def measure(folder: Path, command: list[str]) -> dict[str, Any]:
    """Run a command of ours; return its seconds and gigabytes, and what it says."""
    program = [sys.executable, "-m", "llava_tools", "curate", *command, "--json"]
    run = [sys.executable, str(MEASURED), "taken.json", *program]
    done = subprocess.run(run, cwd=folder, check=True, stdout=subprocess.PIPE)
    taken = json.loads((folder / "taken.json").read_text())
    told = json.loads(done.stdout)
    return {
        "cpu s": round(taken["cpu"], 1),
        "peak GB": round(taken["peak GB"], 2),
        "chosen": told["chosen"],
        "reasons": told["reasons"],
    }


def main() -> None:
    """Make the files, run the commands, print what they took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=52_000)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--n-init", type=int, default=10)
    parser.add_argument("--skip", action="append", default=[])
    options = parser.parse_args()
    cluster = ["cluster", "pre.jsonl", "rows.json", "first.json", "--n-init", str(options.n_init)]
    commands = {
        "select": ["select", "s.jsonl", "rows.json", "best.json", "--top", "0.1"],
        "near": ["select", "s.jsonl", "rows.json", "near.json", "--top", "0.1", "--dedupe", "near"],
        "minibatch": [*cluster[:3], "few.json", "--method", "minibatch"],
        "kmeans": cluster,
    }
    found: dict[str, Any] = {"benchmark": "curation", "rows": options.rows, "width": options.width}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = make_rows(options.rows)
        (folder / "rows.json").write_text(json.dumps(rows))
        make_scores(folder, rows, options.width)
        for label, command in commands.items():
            if label not in options.skip:
                found[label] = measure(folder, command)
    print(json.dumps(found | {"n_init": options.n_init}))


if __name__ == "__main__":
    main()
