"""`xtuner mmbench` on a table, in XTuner's environment: its seconds and its answers.

    XTUNER_ENV/bin/python benchmarks/peers/xtuner_mmbench.py JOB.json RESULT.json

XTuner's own main runs; the clock starts where it reads the table, with its model loaded, and stops
at its end. transformers 4.48 reads a rope's base from `rope_theta` alone, which is put beside.
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
    with tempfile.TemporaryDirectory() as folder:
        model = job["model"]
        sys.argv = ["mmbench.py", model, "--llava", model, "--data-path", job["data"]]
        sys.argv += ["--work-dir", folder, "--prompt-template", job["template"]]
        sys.argv += ["--torch-dtype", "fp32", "--max-new-tokens", str(job["new_tokens"])]
        mmbench.main()
        seconds = time.perf_counter() - Clock.began
        (sheet,) = Path(folder).glob("*/mmbench_result.xlsx")
        table = mmbench.pd.read_excel(sheet, keep_default_na=False)
    answers = {int(i): str(p) for i, p in zip(table["index"], table["prediction"], strict=True)}
    versions = {module.__name__: module.__version__ for module in (torch, transformers, xtuner)}
    return {"seconds": seconds, "answers": answers, "versions": versions}


if __name__ == "__main__":
    found = run(json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(found))
