"""Freed memory: kept for the next block instead of given back and cleared anew."""

from __future__ import annotations

import ctypes
import resource
import subprocess
import sys

import pytest

from llava_tools.model.allocator import keep_freed_blocks

MIB = 2**20


def faults_of_five_blocks(kept: bool) -> int:
    """Return the pages that a process is given for blocks of 64 MiB, one after the other."""
    if kept:
        keep_freed_blocks(256 * MIB, 1024 * MIB)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        bytearray(64 * MIB)[::4096] = bytes(64 * MIB // 4096)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc alone does it")
def test_a_block_takes_the_place_of_the_one_before() -> None:
    given = []
    for kept in (False, True):  # apart: the setting lasts as long as the process
        code = f"from {__name__} import faults_of_five_blocks as f; print(f({kept}))"
        words = [sys.executable, "-c", code]
        given.append(int(subprocess.run(words, capture_output=True, check=True).stdout))
    assert given[1] < given[0] / 2, given
