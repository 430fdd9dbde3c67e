"""Damage genuine files in a hundred thousand ways: the readers must answer, or refuse in two lines.

    python benchmarks/fuzz_readers.py [--cases 100000] [--seed 0]

Mutations know the structure: bytes flipped anywhere, in the header or the pickle program alone
(the zip's checksums made right again), numbers set to extremes, pieces cut, doubled or swapped,
values of JSON replaced. All that a reader returns is read to its end. An address space of 6 GB
above the start and a timer of 10 s a case catch blow-ups and hangs. Printed as JSON: cases and
refusals per reader, and what was neither an answer nor a refusal.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from benchmarks.fuzz_material import material
from llava_tools.errors import UserError
from llava_tools.model.lazy import LazyTensor

EXTREMES = (0, 1, -1, 127, 255, 2**31 - 1, 2**32 - 1, 2**62, 2**63, -(2**63))
JUNK: tuple[Any, ...] = (None, True, -1, 0, 1e400, 2**70, "", "x", "../x", [], [[]], {}, {"a": 1})


def flipped(data: bytes, rng: random.Random) -> bytes:
    """Change some bytes, or the length."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if not out:
            break
        at, kind = rng.randrange(len(out)), rng.randrange(6)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.randrange(256)
        elif kind == 2:
            width = rng.choice((1, 2, 4, 8))
            number = rng.choice(EXTREMES) % 256**width
            out[at : at + width] = number.to_bytes(width, "little")
        elif kind == 3:
            del out[at : at + rng.choice((1, 2, 8, len(out)))]
        elif kind == 4:
            out[at:at] = out[at : at + rng.choice((1, 4, 32))]
        else:
            other = rng.randrange(len(out))
            out[at : at + 4], out[other : other + 4] = out[other : other + 4], out[at : at + 4]
    return bytes(out)


def in_zip(data: bytes, rng: random.Random) -> bytes:
    """Change the pickle program, or the list of records, of an archive that stays a sound one."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    if rng.random() < 0.2:
        at = rng.randrange(len(records))
        records[at] = (records[at][0], flipped(records[at][1], rng))
    else:
        records = [(n, flipped(d, rng) if n.endswith("data.pkl") else d) for n, d in records]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in records:
            archive.writestr(name, content)
    return buffer.getvalue()


def in_header(data: bytes, rng: random.Random) -> bytes:
    """Change the JSON header of a safetensors file; its length stays true."""
    size = int.from_bytes(data[:8], "little")
    header = in_json(data[8 : 8 + size], rng)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def in_json(data: bytes, rng: random.Random) -> bytes:
    """Replace a value somewhere in a JSON text, or damage the text."""
    if rng.random() < 0.3:
        return flipped(data, rng)
    content = json.loads(data)
    node, places = content, []
    while isinstance(node, (dict, list)) and node:
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        places.append((node, key))
        node = node[key]
    if places:
        holder, key = rng.choice(places)
        holder[key] = rng.choice((*JUNK, *EXTREMES))
    return json.dumps(content).encode()


def exhausted(value: Any, depth: int = 0) -> None:
    """Read every tensor in a value, in blocks as a conversion does."""
    if isinstance(value, LazyTensor):
        for _ in value.blocks():
            pass
    elif isinstance(value, (dict, list, tuple)) and depth < 6:
        items: Iterable[Any] = value.values() if isinstance(value, dict) else value
        for item in items:
            exhausted(item, depth + 1)


def damage(name: str, data: bytes, rng: random.Random) -> bytes:
    """Return a file with something wrong in it, mostly where its structure is."""
    if rng.random() < 0.25:
        return flipped(data, rng)
    if name.endswith(".json"):
        return in_json(data, rng)
    if name.endswith(".safetensors"):
        return in_header(data, rng)
    return in_zip(data, rng) if zipfile.is_zipfile(io.BytesIO(data)) else flipped(data, rng)


def _late(*_: Any) -> None:
    raise TimeoutError("no answer within 10 s")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch's, on the damaged numbers in old files
    signal.signal(signal.SIGALRM, _late)
    began, kinds = time.monotonic(), material()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 6 * 2**30,) * 2)
    counts: dict[str, dict[str, int]] = {}
    faults: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as tmp:
        for number, (name, (reader, files)) in enumerate(kinds.items()):
            folder = Path(tmp) / str(number)
            folder.mkdir()
            for file, data in files.items():
                (folder / file).parent.mkdir(exist_ok=True)
                (folder / file).write_bytes(data)
            exhausted(reader(folder))  # the genuine files are read
            counts[name] = {"cases": 0, "refused": 0}
            share = -(-arguments.cases // len(kinds))
            for case in range(share):
                rng = random.Random(f"{arguments.seed} {name} {case}")
                file = rng.choice(list(files))
                (folder / file).write_bytes(damage(file, files[file], rng))
                signal.setitimer(signal.ITIMER_REAL, 10)
                try:
                    exhausted(reader(folder))
                except UserError:
                    counts[name]["refused"] += 1
                except BaseException as error:
                    if isinstance(error, KeyboardInterrupt):
                        raise
                    fault = f"{name}: {type(error).__name__}: {str(error)[:100]}"
                    faults.setdefault(fault, {"count": 0, "first": case})["count"] += 1
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                counts[name]["cases"] += 1
                (folder / file).write_bytes(files[file])
    print(json.dumps({
        "benchmark": "fuzz_readers", "seed": arguments.seed,
        "cases": sum(one["cases"] for one in counts.values()), "readers": counts,
        "exceptions": faults, "seconds": round(time.monotonic() - began),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }))  # fmt: skip
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
