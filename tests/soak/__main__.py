"""A storm of faults at a training on a SLURM testbed: does it end with the same weights?

    .venv/bin/python -m tests.soak --minutes 60 --mtbf-s 60 --nodes 3        (`make soak`)

Exit code 0: same weights, data and points as in peace; 1: they differ; 2: wrong use.
"""

import argparse
import random
import sys
import time
from pathlib import Path

from pipeline.run.clock import duration
from tests.soak.cluster import REPO, NoCluster
from tests.soak.soak import Outcome, Soak
from tests.soak.storm import Manners, endless
from tests.soak.training import make_data, quiet_steps_per_s, sized

MANNERS = Manners(patience=2)
"""A third restart without a new checkpoint is taken for a bug of the training's own."""


def main(arguments: list[str]) -> int:
    """Run a storm and print what it did."""
    parser = argparse.ArgumentParser(prog="tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--mtbf-s", type=float, default=60, help="mean time between faults")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--rest-s", type=float, default=0.1, help="rest in each step of the job")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--out", type=Path, default=REPO / "runs" / "soak")
    options = parser.parse_args(arguments)
    if options.nodes < 3 or options.minutes <= 0 or options.mtbf_s <= 0:
        parser.error("--nodes must be 3 or more (one dies), --minutes and --mtbf-s above 0")
    if options.rest_s < 0:
        parser.error(f"--rest-s is {options.rest_s}; give 0 or more seconds")
    out: Path = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    data, seconds = make_data(out), options.minutes * 60
    rate = quiet_steps_per_s(out / "calibration", data, options.rest_s)
    training = sized(out / f"storm-{options.seed}", data, seconds, rate, options.rest_s)
    print(
        f"soak: seed {options.seed}; {rate:.1f} steps/s in peace, so {training.steps} steps with "
        f"a checkpoint every {training.save_every} last about {duration(seconds)}",
        flush=True,
    )
    rng = random.Random(options.seed)
    num_written = max(2, round(seconds / options.mtbf_s / 10) * 2)
    soak = Soak(training, out / "quiet", options.nodes, rng, num_written)
    try:
        outcome = soak.run(endless(rng, options.mtbf_s), seconds, MANNERS)
    except NoCluster as error:
        print(f"soak: {error}", file=sys.stderr)
        return 2
    _print(outcome)
    return 1 if outcome.problems else 0


def _print(outcome: Outcome) -> None:
    course = outcome.course
    print(f"soak: {sum(course.thrown.values())} faults in {duration(course.wall_s)}:")
    for kind, count in sorted(course.thrown.items()):
        print(f"  {kind:12} {count}")
    attempts = ", ".join(f"{count} {status}" for status, count in sorted(course.attempts.items()))
    print(
        f"soak: {sum(course.attempts.values())} attempts ({attempts}), {course.requeues} requeues"
    )
    print(f"soak: {course.held_back} faults waited for a checkpoint")
    for what, count in course.odd.items():
        print(f"soak: {what}: {count} times")
    print(f"soak: effective training time ratio {course.ettr:.3f}")
    for problem in outcome.problems:
        print(f"soak: {problem}")
    print("soak: FAILED" if outcome.problems else "soak: passed: same weights, data and points")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
