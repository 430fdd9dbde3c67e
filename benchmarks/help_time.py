"""How long `llava-tools --help` takes, beside an empty Python: `python benchmarks/help_time.py`.

Fresh processes in turn, wall time, medians. Prints one JSON line; exits with 1 above the limit.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

LIMIT_S = 0.3
ROUNDS = 15
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "--help": [str(Path(sys.executable).parent / "llava-tools"), "--help"],
    "train --help": [str(Path(sys.executable).parent / "llava-tools"), "train", "--help"],
}


def main() -> int:
    """Measure and print; return the exit code."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - start)
    median = {name: round(statistics.median(values), 3) for name, values in times.items()}
    bare = median["python -c pass"]
    result = {
        "benchmark": "help_time",
        "rounds": ROUNDS,
        "median_s": median,
        "ratio_to_bare_python": {name: round(value / bare, 1) for name, value in median.items()},
        "limit_s": LIMIT_S,
    }
    print(json.dumps(result))
    return 0 if max(median.values()) <= LIMIT_S else 1


if __name__ == "__main__":
    sys.exit(main())
