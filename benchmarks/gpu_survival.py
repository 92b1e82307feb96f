"""Whether a GPU is free again after its process was killed or hangs, with NCCL's group alive.

    python benchmarks/gpu_survival.py                    # two minutes, on a machine with a GPU

One process joins a group of its own (NCCL, world size 1), takes --gb of the device's memory and
computes and reduces under the project's watchdog (deadline 5 s). Then one of four things happens:
    killed    SIGKILL in the middle of its steps
    asleep    its main thread stops between two steps
    on device its main thread waits for a kernel that does not end
    stopped   SIGSTOP; nobody but another rank can end it, so it is killed after 3 s, as srun does
Printed: who ended the process, how soon, and when the memory was back, which a fresh process then
confirms. Exit code 1 where the watchdog comes late (deadline and 5 s) or memory stays away.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

from pipeline.engine.settings import WatchSpec
from pipeline.engine.watchdog import Watchdog
from pipeline.parallel.world import World, open_world
from pipeline.run.beats import Section
from pipeline.run.folder import FAILED, RunFolder
from pipeline.run.hang import hang_text

DEADLINE_S, LATE_S, FREE_S, STOPPED_S = 5.0, 5.0, 15.0, 3.0
SLACK_BYTES = 64 * 2**20
"""Other programs and the driver's own needs move by so much."""
HANGS_AT = 50
FRESH = "import torch; print(*torch.cuda.mem_get_info())"
WAYS = ("killed", "asleep", "on device", "stopped")
READY = "computing"


class Found(NamedTuple):
    """Seconds from the fault to the process's end, and from there to free memory (-1: never)."""

    ended_s: float
    free_s: float
    code: int
    said: str


def main() -> int:
    """Try every way; returns 1 where a process or its memory stays."""
    options = _options()
    if options.child:
        _compute(RunFolder(options.child), options.way, options.gb)
        return 0
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing to measure", file=sys.stderr)
        return 2
    nccl = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[attr-defined]
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, NCCL {nccl}", flush=True)
    bad = [way for way in options.ways if not _is_good(way, _try(way, options.gb))]
    return int(bool(bad))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--ways", nargs="*", choices=WAYS, default=WAYS)
    add("--gb", type=float, default=4.0, help="of device memory to hold (4)")
    add("--child", type=Path, help=argparse.SUPPRESS)
    add("--way", help=argparse.SUPPRESS)
    return parser.parse_args()


def _compute(folder: RunFolder, way: str, gb: float) -> None:
    """Join the group, hold memory, compute and reduce for ever; hang where `way` says so."""
    spec = WatchSpec(step_s=DEADLINE_S, beat_every_s=0.5)
    with Watchdog(folder, 0, 0, 1, spec) as watch:
        world = open_world(600)
        watch.count = world.num_collectives
        held = torch.ones(int(gb * 1e9 / 4), device=world.device)
        for step in range(1, 1_000_000_000):
            watch.enter(Section.STEP, step)
            _reduce(world, held[: 2**20])
            if step == HANGS_AT:
                print(READY, flush=True)
            if step > HANGS_AT:
                _hang(way)


def _reduce(world: World, values: torch.Tensor) -> None:
    """Sum over the group, also where it has one rank: `World.sum` would leave that out."""
    factor = torch.randn(1024, 1024, device=world.device)
    dist.all_reduce(values)
    (factor @ factor).sum().item()


def _hang(way: str) -> None:
    if way == "asleep":
        time.sleep(10_000)
    if way == "on device":
        torch.cuda._sleep(10_000_000_000_000)  # cycles: more than an hour
        torch.cuda.synchronize()


def _try(way: str, gb: float) -> Found:
    """Start a process, let it meet its fault, and watch it and the device's memory."""
    fresh, before = _fresh_free(), torch.cuda.mem_get_info()[0]
    with tempfile.TemporaryDirectory() as base:
        folder = RunFolder(Path(base) / "run")
        process = start(folder, way, gb)
        taken = before - torch.cuda.mem_get_info()[0]
        assert taken > gb * 1e9, f"{way}: the process took {taken} bytes of the device"
        ended_s = end(process, way)
        free_s = _until_free_s(before)
        if free_s >= 0 and _fresh_free() < fresh - SLACK_BYTES:
            free_s = -1.0
        return Found(ended_s, free_s, process.returncode, hang_text(folder, 0))


def start(folder: RunFolder, way: str, gb: float) -> subprocess.Popen[str]:
    """Start the computing process; returns when it has made its first steps.

    Raises:
        RuntimeError: it ended before.
    """
    folder.path.mkdir(parents=True)
    words = ["--child", str(folder.path), "--way", way, "--gb", str(gb)]
    process = subprocess.Popen(
        [sys.executable, __file__, *words],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    if process.stdout.readline().strip() != READY:
        process.kill()
        raise RuntimeError(f"{way}: the process ended with {process.wait()} before its steps")
    return process


def end(process: subprocess.Popen[str], way: str) -> float:
    """Let the fault strike; returns the seconds until the process was gone."""
    started_s = time.monotonic()
    if way == "killed":
        process.kill()
    elif way == "stopped":
        process.send_signal(signal.SIGSTOP)
        time.sleep(STOPPED_S)
        assert process.poll() is None, "a stopped process ended by itself"
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(DEADLINE_S + 4 * LATE_S)
    except subprocess.TimeoutExpired:
        print(f"{way}: still there after {time.monotonic() - started_s:.0f} s: killed", flush=True)
        process.kill()
        process.wait(60)
    return time.monotonic() - started_s


def _until_free_s(before: int) -> float:
    """Return after how many seconds the memory was back, -1 where it stays away."""
    started_s = time.monotonic()
    while torch.cuda.mem_get_info()[0] < before - SLACK_BYTES:
        if time.monotonic() - started_s > FREE_S:
            return -1.0
        time.sleep(0.02)
    return time.monotonic() - started_s


def _fresh_free() -> int:
    """Return the free bytes that a fresh process sees, after what it takes itself."""
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0])


def _is_good(way: str, found: Found) -> bool:
    """Print what was found; False where a goal is missed."""
    by_watchdog = found.code == FAILED and found.said.startswith("hang:")
    ended = "the watchdog" if by_watchdog else f"signal {-found.code}"
    free = f"{found.free_s:.2f} s later" if found.free_s >= 0 else f"NOT within {FREE_S:.0f} s"
    print(
        f"{way:<10} ended by {ended} after {found.ended_s:5.2f} s, memory free {free}", flush=True
    )
    if way in ("asleep", "on device"):
        in_time = found.ended_s <= DEADLINE_S + LATE_S
        return by_watchdog and in_time and found.free_s >= 0
    return found.free_s >= 0


if __name__ == "__main__":
    sys.exit(main())
