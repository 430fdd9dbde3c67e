"""Run one command of llava-tools in a process of its own, as a user would type it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from llava_tools.quickstart.lock import CommandLock

# Nothing here needs the network; and `-m` must not find another llava_tools in the current folder.
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
# So small matrices gain nothing from a second thread, and on a busy machine threads that wait for
# each other are ten times slower than one.
DEFAULTS = {"OMP_NUM_THREADS": "1"}
# What would make a command of one process a part of a larger run.
LAUNCHERS = ("NPROC_PER_NODE", "NNODES", "NODE_RANK", "RANK", "LOCAL_RANK", "WORLD_SIZE")
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_command(
    arguments: Sequence[str], lock: CommandLock, *, capture: bool = False
) -> tuple[int, str]:
    """Run `llava-tools ARGUMENTS`; return its exit code, and its stdout if `capture` is set.

    Its output goes where ours goes. A signal to stop is passed on, and raises KeyboardInterrupt
    when the command has ended.
    """
    lock.note("")
    process = subprocess.Popen(
        [sys.executable, "-m", "llava_tools", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if capture else None,
        env=environment(os.environ),
        text=True,
        pass_fds=(lock.file.fileno(),),
    )
    lock.note(str(process.pid))
    with passing_on_stops(process) as received:
        output, _ = process.communicate()
    if received:
        raise KeyboardInterrupt
    return process.returncode, output or ""


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a command."""
    kept = {name: value for name, value in given.items() if name not in LAUNCHERS}
    return {**DEFAULTS, **kept, **ENVIRONMENT}


@contextmanager
def passing_on_stops(process: subprocess.Popen[str]) -> Iterator[list[int]]:
    """Let the command end by itself on Ctrl-C and SIGTERM: it may have a checkpoint to save."""
    received: list[int] = []

    def remember(number: int, frame: Any) -> None:
        received.append(number)
        process.terminate()  # also on Ctrl-C: a second SIGINT would stop training without saving

    before = {number: signal.signal(number, remember) for number in STOPS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
