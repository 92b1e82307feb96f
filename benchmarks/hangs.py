"""How soon a stopped rank is found and whether the right one is named, at random moments.

    python benchmarks/hangs.py --data data/digits --trials 20        # about ten minutes

A training of configs/demo.yaml on two ranks of this host: again and again one of them gets SIGSTOP,
the watchdog must name rank, host, section and step, and the supervisor starts the step again.
Exit code 1 where one is named wrongly or found later than the deadline and 5 s.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline.run.beats import Beat, Section, read_beats
from pipeline.run.folder import RunFolder
from pipeline.run.hang import read_hang
from pipeline.run.place import right_now

DEADLINE_S, LATE_S, PATIENCE_S = 6.0, 5.0, 180.0
WATCH = {"data_s": DEADLINE_S, "step_s": DEADLINE_S, "evaluate_s": DEADLINE_S,
         "checkpoint_s": DEADLINE_S, "beat_every_s": 0.5}  # fmt: skip
LOOP = (Section.DATA, Section.STEP, Section.EVALUATE, Section.CHECKPOINT)


def main() -> int:
    """Stop ranks until all trials are made; returns 1 where one of them failed."""
    options = _options()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as base:
        training = _start(Path(base), options.data)
        try:
            folder = RunFolder(Path(base) / "hangs")
            good = sum(_trial(folder, attempt, draw) for attempt in range(options.trials))
        finally:
            training.send_signal(signal.SIGTERM)
            training.wait(60)
    print(f"{good} of {options.trials} found and named rightly")
    return int(good < options.trials)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", default="data/digits", help="shards of the demo (data/digits)")
    add("--trials", type=int, default=20)
    add("--seed", type=int, default=0)
    return parser.parse_args()


def _start(base: Path, data: str) -> subprocess.Popen[bytes]:
    """Start a training that outlasts the trials, and commits often, so that each restart counts."""
    watch = ", ".join(f"{name}: {value}" for name, value in WATCH.items())
    settings = (
        *("name=hangs", f"runs={base}", f"data={data}", "tracking.enabled=false"),
        *("length={steps: 100000}", "lr.warmup_epochs=1", f"watch={{{watch}}}"),
        *("checkpoint={every_steps: 2}", "evaluate={every_steps: 40}"),
    )
    command = [sys.executable, "-m", "launch", "local", "--ranks", "2", "train"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    return subprocess.Popen(
        [*command, "configs/demo.yaml", *settings],
        env={**environment, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )


def _trial(folder: RunFolder, attempt: int, draw: random.Random) -> bool:
    """Stop a rank of `attempt` and compare what is said of it with where it was."""
    victim = _training_rank(folder, attempt, draw.randrange(2))
    time.sleep(3 + 2 * draw.random())
    os.kill(victim.pid, signal.SIGSTOP)
    stopped_s, truth = time.time(), right_now(folder, victim)
    deadline = time.monotonic() + PATIENCE_S
    while (hang := read_hang(folder, attempt)) is None:
        if time.monotonic() > deadline:
            sys.exit(f"attempt {attempt}: nothing was found in {PATIENCE_S:.0f} s")
        time.sleep(0.05)
    took_s = hang["found_s"] - stopped_s
    expected = f"rank {truth.rank} on {truth.host} in section {truth.section} at step {truth.step}:"
    good = expected in hang["text"] and took_s < DEADLINE_S + LATE_S
    print(f"{'ok   ' if good else 'WRONG'} after {took_s:4.1f} s: {hang['text']}", flush=True)
    return good


def _training_rank(folder: RunFolder, attempt: int, rank: int) -> Beat:
    """Wait until `rank` of `attempt` makes steps and return its beat."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for beat in read_beats(folder, attempt):
            if beat.rank == rank and beat.section in LOOP and beat.step > 1:
                return beat
        time.sleep(0.1)
    sys.exit(f"attempt {attempt}: rank {rank} makes no steps within {PATIENCE_S:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
