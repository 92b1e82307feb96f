"""How long `--help` of the three commands takes: the promise is under 0.5 s.

    python benchmarks/startup.py

Prints the median of five runs of each, by the clock and in processor time (which a busy machine
does not change); exit code 1 where a median by the clock is over the promise.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

PACKAGES = ("pipeline", "launch", "data_prep")
NUM_RUNS = 5
PROMISE_S = 0.5
ROOT = Path(__file__).resolve().parent.parent


def measure(package: str) -> tuple[float, float]:
    """Run `python -m PACKAGE --help` once; return seconds by the clock and of the processor."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", package, "--help"], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    clock_s = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"python -m {package} --help: exit code {process.returncode}")
    return clock_s, usage.ru_utime + usage.ru_stime


def main() -> int:
    """Measure, print a line for each command, and say whether the promise holds."""
    slow = 0
    for package in PACKAGES:
        measure(package)  # once unmeasured: files come into the page cache
        runs = [measure(package) for _ in range(NUM_RUNS)]
        clock_s, processor_s = (statistics.median(column) for column in zip(*runs, strict=True))
        slow += clock_s > PROMISE_S
        print(
            f"python -m {package:<9} --help: {clock_s:.2f} s by the clock, {processor_s:.2f} s of "
            f"the processor (medians of {NUM_RUNS}; promise {PROMISE_S} s)"
        )
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
