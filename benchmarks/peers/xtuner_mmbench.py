"""`xtuner mmbench` on a table, in XTuner's environment: its seconds and its answers.

    XTUNER_ENV/bin/python benchmarks/peers/xtuner_mmbench.py JOB.json RESULT.json

XTuner's own main runs; the clock starts where it reads the table, with its model loaded, and stops
at its end. Control characters, which a model with random weights says, are taken out of what it
writes: its sheet refuses them.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
import xtuner
import xtuner.tools.mmbench as mmbench
from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE


class Clock(mmbench.MMBenchDataset):
    """The table; reading it starts the clock."""

    began = 0.0

    def __init__(self, path):
        Clock.began = time.perf_counter()
        super().__init__(path)


def run(job):
    """Run XTuner on the job; return seconds and answers by index."""
    torch.set_num_threads(job["threads"])
    mmbench.MMBenchDataset = Clock
    answers, collect = {}, mmbench.collect_results

    def noted(results, size):
        answers.update({int(row["index"]): row["prediction"] for row in results})
        for row in results:
            row["prediction"] = ILLEGAL_CHARACTERS_RE.sub("", row["prediction"])
        return collect(results, size)

    mmbench.collect_results = noted
    with tempfile.TemporaryDirectory() as folder:
        model = job["model"]
        sys.argv = ["mmbench.py", model, "--llava", model, "--data-path", job["data"]]
        sys.argv += ["--work-dir", folder, "--prompt-template", job["template"]]
        sys.argv += ["--torch-dtype", "fp32", "--max-new-tokens", str(job["new_tokens"])]
        mmbench.main()
        seconds = time.perf_counter() - Clock.began
    versions = {module.__name__: module.__version__ for module in (torch, transformers, xtuner)}
    return {"seconds": seconds, "answers": answers, "versions": versions}


if __name__ == "__main__":
    given, wanted = map(Path, sys.argv[1:])  # XTuner reads its own arguments from sys.argv
    wanted.write_text(json.dumps(run(json.loads(given.read_text()))))
