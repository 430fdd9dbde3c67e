"""Start a training run: here, under torchrun, or as one of the processes of SLURM or MPI."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from llava_tools.config import Settings, load_settings
from llava_tools.errors import UserError, first_line
from llava_tools.train.work_dir import check_work_dir

log = logging.getLogger(__name__)

LAUNCHERS = ("none", "pytorch", "slurm", "mpi")
USER_ERROR_CODE = 2
SECONDS_TO_SAVE = 120
# What gloo and NCCL say when another process is dead, or does not answer (see `process_timeout`).
LOST_PEER = "Connection (closed|reset)|Read error|Broken pipe|[Tt]imed out|[Tt]imeout"
DEFAULT_PORT = "29500"
DEFAULT_DEEPSPEED = "deepspeed_zero2"  # several processes need an engine that knows of them


def launch(
    config: str,
    *,
    work_dir: str | None = None,
    deepspeed: str | None = None,
    launcher: str = "none",
    seed: int | None = None,
    resume: str | None = None,
    cfg_options: Sequence[str] = (),
) -> int:
    """Train a config; return the exit code of the run, or of the first process that failed.

    NPROC_PER_NODE, NNODES, NODE_RANK, ADDR and PORT in the environment start that many processes
    under torchrun. `resume` is None, a checkpoint, or "auto" for the last one of the work dir.

    Raises UserError, before any process starts, when the config or a file it names is wrong.
    """
    if launcher not in LAUNCHERS:
        raise UserError(f"Unknown launcher '{launcher}'.", f"Known: {', '.join(LAUNCHERS)}.")
    options = [*cfg_options, *([] if seed is None else [f"seed={seed}"])]
    settings = load_settings(config, options, check_files=True)
    if deepspeed:
        from llava_tools.train.zero_config import read_deepspeed_json

        read_deepspeed_json(deepspeed)
    folder = Path(work_dir or settings.work_dir or f"work_dirs/{Path(config).stem}")
    check_work_dir(folder)
    sizes = read_sizes(os.environ)
    if launcher == "none" and sizes["NPROC_PER_NODE"] * sizes["NNODES"] > 1:
        from llava_tools.train.resume import find_start

        find_start(folder, resume)  # tells what is wrong once, not once a process
        arguments = train_arguments(config, work_dir, deepspeed, seed, resume, cfg_options)
        return _torchrun(torchrun_arguments(os.environ), arguments)
    if launcher in STARTED_BY:
        os.environ.update(STARTED_BY[launcher](os.environ))
    with _errors_to_launcher():
        return _run_here(settings, folder, deepspeed, resume)


def _run_here(settings: Settings, folder: Path, deepspeed: str | None, resume: str | None) -> int:
    from llava_tools.train.run import run_training

    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and not deepspeed:
        log.info("Several processes: using --deepspeed %s", DEFAULT_DEEPSPEED)
        deepspeed = DEFAULT_DEEPSPEED
    return run_training(settings, folder, deepspeed=deepspeed, resume=resume)


def read_sizes(environ: Mapping[str, str]) -> dict[str, int]:
    """Return NPROC_PER_NODE, NNODES and NODE_RANK. Raises UserError for what is no number."""
    sizes = {}
    for name, default in (("NPROC_PER_NODE", 1), ("NNODES", 1), ("NODE_RANK", 0)):
        text = environ.get(name, str(default))
        if not text.isdigit() or (int(text) == 0 and default == 1):
            raise UserError(f"{name}={text} is not a number of processes.", f"Set {name}=8.")
        sizes[name] = int(text)
    return sizes


def torchrun_arguments(environ: Mapping[str, str]) -> list[str]:
    """Return torchrun's own arguments (the variables and defaults of XTuner)."""
    sizes = read_sizes(environ)
    if sizes["NNODES"] > 1 and "PORT" not in environ:
        raise UserError("NNODES is more than 1, but PORT is not set.", "Set ADDR and PORT alike.")
    port = environ.get("PORT") or str(random.randint(20000, 29999))
    return [
        f"--nnodes={sizes['NNODES']}",
        f"--node_rank={sizes['NODE_RANK']}",
        f"--nproc_per_node={sizes['NPROC_PER_NODE']}",
        f"--master_addr={environ.get('ADDR', '127.0.0.1')}",
        f"--master_port={port}",
    ]


def train_arguments(
    config: str,
    work_dir: str | None,
    deepspeed: str | None,
    seed: int | None,
    resume: str | None,
    cfg_options: Sequence[str],
) -> list[str]:
    """Return the command line of one of torchrun's processes."""
    arguments = ["train", config, "--launcher", "pytorch"]
    for flag, value in (("--work-dir", work_dir), ("--deepspeed", deepspeed), ("--seed", seed)):
        arguments += [] if value is None else [flag, str(value)]
    if resume is not None:
        arguments += ["--resume"] if resume == "auto" else ["--resume", resume]
    return arguments + (["--cfg-options", *cfg_options] if cfg_options else [])


def _torchrun(own: list[str], arguments: list[str]) -> int:
    """Run torchrun in this process, so that a failure is an exit code and not a page of trace."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    os.environ.setdefault("OMP_NUM_THREADS", str(threads_per_process(os.environ)))
    # On Ctrl-C the processes save before they stop; torchrun would kill them after 30 s.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SECONDS_TO_SAVE))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        run(parse_args([*own, "-m", "llava_tools", *arguments]))
    except SignalException as error:
        return 128 + error.sigval
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code: int = failure.exitcode
        if code == USER_ERROR_CODE and os.path.isfile(failure.error_file):
            raise UserError(*failure.message.split("\n", 1)) from error
        if code < 0:
            log.error("Process %d was killed by signal %d (out of memory?).", rank, -code)
        return code if code >= 0 else 128 - code
    return 0


@contextmanager
def _errors_to_launcher() -> Iterator[None]:
    """Hand a UserError to torchrun in its own way: it is told once then, not by every rank."""
    try:
        yield
    except UserError as error:
        file = os.environ.get("TORCHELASTIC_ERROR_FILE")
        if not file:
            raise
        Path(file).write_text(json.dumps({"message": str(error), "timestamp": int(time.time())}))
        raise SystemExit(USER_ERROR_CODE) from error
    except RuntimeError as error:
        if not re.search(LOST_PEER, str(error)):
            raise
        log.error("Another process failed, or does not answer: %s", first_line(error))
        raise SystemExit(1) from error


def threads_per_process(environ: Mapping[str, str]) -> int:
    """Share the cores among the processes (torchrun's default is one thread each)."""
    return max(1, (os.cpu_count() or 1) // read_sizes(environ)["NPROC_PER_NODE"])


def slurm_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return torch's variables for a process that srun started.

    Without ADDR, the first host of SLURM_JOB_NODELIST is where the processes meet.
    """
    names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    values = _started(environ, "slurm", names, "Start with srun, one task a GPU.")
    host = environ.get("ADDR") or first_host(environ.get("SLURM_JOB_NODELIST", "127.0.0.1"))
    return values | {"MASTER_ADDR": host, "MASTER_PORT": environ.get("PORT", DEFAULT_PORT)}


def mpi_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return torch's variables for a process that Open MPI's mpirun started."""
    names = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")
    values = _started(environ, "mpi", names, "Start with mpirun of Open MPI.")
    local = environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", values["WORLD_SIZE"])
    if local != values["WORLD_SIZE"] and "ADDR" not in environ:
        raise UserError(
            "--launcher mpi on several machines, but ADDR is not set.",
            "Set ADDR to the first machine: mpirun -x ADDR=node01 -x PORT=29500 ...",
        )
    host = environ.get("ADDR", "127.0.0.1")
    return values | {"MASTER_ADDR": host, "MASTER_PORT": environ.get("PORT", DEFAULT_PORT)}


STARTED_BY = {"slurm": slurm_variables, "mpi": mpi_variables}


def _started(
    environ: Mapping[str, str], launcher: str, names: Sequence[str], hint: str
) -> dict[str, str]:
    missing = [name for name in names if name not in environ]
    if missing:
        raise UserError(f"--launcher {launcher}, but {missing[0]} is not set.", hint)
    rank, size, local = (environ[name] for name in names)
    return {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local}


def first_host(nodes: str) -> str:
    """Return the first host of SLURM's list: of `gpu[07-09,12],login` it is gpu07."""
    host, rest = "", nodes
    while bracket := re.match(r"([^,\[]*)\[(\w+)[^\]]*\]", rest):
        host, rest = host + bracket[1] + bracket[2], rest[bracket.end() :]
    return host + rest.split(",")[0]
