"""Run trainings on several ranks, many in one process that has imported everything: ranks fork.

`python -m tests.train.ranks jobs.json`; the tests judge by the files that the runs leave.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

SECONDS = 120  # a run that hangs is killed then
# What each rank would import by itself: of deepspeed's optimizers one that compiles with torch.
SHARED = (
    *("llava_tools.train.run", "matplotlib.pyplot", "peft"),
    "deepspeed.runtime.zero.muon.muon_optimizer",
)


@dataclass(frozen=True)
class Job:
    """A training run; `deepspeed` None is the plain engine, in one process.

    One that `fails` must do so on every rank, which writes `failed_N.txt` with its error.
    """

    config: str
    work: str
    ranks: int = 1
    deepspeed: str | None = None
    resume: str | None = None
    fails: bool = False


def run_jobs(folder: Path, jobs: list[Job]) -> None:
    """Run the jobs one after the other; the first that fails ends the test."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps([asdict(job) for job in jobs]))
    command = [sys.executable, "-m", "tests.train.ranks", str(folder / "jobs.json")]
    environ = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environ, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


def fork_ranks(job: Job) -> list[int]:
    """Return the exit codes of a job's ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(job.ranks):
        child = os.fork()
        if child == 0:
            os._exit(run_rank(job, rank, port))
        children.append(child)
    codes: dict[int, int] = {}
    until = time.monotonic() + SECONDS
    while len(codes) < len(children) and time.monotonic() < until:
        for child in set(children) - codes.keys():
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                codes[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    for child in set(children) - codes.keys():
        os.kill(child, 9)
        os.waitpid(child, 0)
    return [codes.get(child, -99) for child in children]


def run_rank(job: Job, rank: int, port: int) -> int:
    """Train as one rank of a job; return the exit code."""
    from llava_tools.config import load_settings
    from llava_tools.train.run import run_training

    if job.deepspeed:
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job.ranks, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in places.items()}
        os.environ["MASTER_ADDR"] = "127.0.0.1"
    try:
        return run_training(
            load_settings(job.config), Path(job.work), deepspeed=job.deepspeed, resume=job.resume
        )
    except BaseException as error:
        if job.fails:
            Path(job.work, f"failed_{rank}.txt").write_text(str(error))
        else:
            traceback.print_exc()
        return 1


def main(file: str) -> int:
    """Import what the runs need, then run each job of the file in forked ranks."""
    import torch

    from llava_tools.train.zero import import_deepspeed

    import_deepspeed()
    for module in SHARED:
        importlib.import_module(module)
    torch.set_num_threads(1)
    for values in json.loads(Path(file).read_text()):
        job, began = Job(**values), time.monotonic()
        codes = fork_ranks(job)
        sys.stdout.write(f"{job.work}: {codes}, {time.monotonic() - began:.1f} s\n")
        sys.stdout.flush()
        if codes != [int(job.fails)] * job.ranks:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
