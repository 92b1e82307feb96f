"""Trainings interrupted at random points: do they end with the bits of a training in peace?

    .venv/bin/python -m tests.soak.points --settings ddp-2 zero1-4 --rounds 4     (`make points`)

For each setting one training in peace, then `rounds` of them as jobs of a SLURM testbed, each
interrupted five times in five ways. Exit code 0: same final states and samples at every point; 1:
not so; 2: wrong use.
"""

import argparse
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.ledger import Ledger
from pipeline.data.sources import open_manifest
from pipeline.jobs.prepare import num_train
from pipeline.plan.plan import Plan
from pipeline.recipe import load_recipe
from pipeline.run.clock import duration
from tests.soak.cluster import REPO, Cluster, NoCluster, cluster
from tests.soak.compare import differences
from tests.soak.draw import SETTINGS, Point, draw
from tests.soak.interrupt import cost, interrupt
from tests.soak.soak import say
from tests.soak.tally import Place, Result, cost_lines, excess, restart_line, summary
from tests.soak.throws import Target
from tests.soak.training import CONFIG, NODES, Training, make_data, quiet_twin

STEPS, SAVE_EVERY, STAGES = 240, 20, 4
"""Ten epochs of the digits, so that a point hardly ever lies between two of them."""
LONGEST_S = 900.0
QUIET = "tracking.enabled=false"


@dataclass(frozen=True)
class Proof:
    """One setting's trainings: where they lie, what they are compared with, the dice."""

    name: str
    training: Training
    cache: Path
    rng: random.Random
    rounds: int

    def run(self, bed: Cluster) -> tuple[list[Result], list[str]]:
        """Train in peace, then interrupted; returns each point's result and what went wrong."""
        shutil.rmtree(self.training.base, ignore_errors=True)
        say(f"{self.name}: the quiet run")
        twin, plan = quiet_twin(self.training, self.cache), plan_of(self.training)
        drawn = draw(
            self.rng, self.rounds, plan.total_steps, lambda step: plan.stage_at(step).number
        )
        results, problems = [], []
        for number, points in enumerate(drawn, start=1):
            began = time.monotonic()
            found, wrong = self._one(bed, f"training-{number}", points, twin, plan)
            took, made = duration(time.monotonic() - began), self._attempts(f"training-{number}")
            say(f"{self.name}: training {number} of {self.rounds} took {took}, attempts: {made}")
            for line in [*(result.line() for result in found), *wrong]:
                print(f"points: {line}", flush=True)
            results += found
            problems += [f"{self.name}, training {number}: {text}" for text in wrong]
        print(f"points: {summary(self.name, results, STAGES)}", flush=True)
        return results, problems + excess(results, self.training.save_every)

    def _attempts(self, name: str) -> str:
        """Return how the attempts at a training ended."""
        attempts = Ledger(self.training.folder(name)).attempts()
        ends = Counter(attempt.status or "cut off" for attempt in attempts)
        return ", ".join(f"{count} {status}" for status, count in sorted(ends.items()))

    def _one(
        self, bed: Cluster, name: str, points: Sequence[Point], twin: Training, plan: Plan
    ) -> tuple[list[Result], list[str]]:
        training = self.training
        target = Target(bed, training, name, training.submit(bed, name, QUIET), self.rng)
        try:
            state, hits, legs = interrupt(target, points, LONGEST_S, say)
        except TimeoutError as error:
            bed.ask("scancel", target.job)
            wrong = [f"{error}; see {training.base}/{name}.log"]
            return [Result(self.name, point, None, None, False) for point in points], wrong
        wrong = [] if state == "COMPLETED" else [f"{state}; see {training.base}/{name}.log"]
        ids = twin.ids("quiet"), training.ids(name)
        wrong += differences(twin.folder("quiet"), training.folder(name), training.last, ids)
        costs = {hit.point: cost(hit, legs) for hit in hits}
        results = []
        for point in points:
            known = costs.get(point)
            place = place_at(plan, known.step) if known else None
            results.append(Result(self.name, point, known, place, not wrong))
        return results, wrong


def plan_of(training: Training) -> Plan:
    """Return the plan of a training's steps."""
    recipe = load_recipe(REPO / CONFIG, [f"data={training.data}", *training.settings])
    return recipe.plan(num_train(recipe, open_manifest(recipe.data.path, recipe.data.shards)))


def place_at(plan: Plan, step: int) -> Place:
    """Return where a training is when `step` steps are done."""
    epoch, sample = divmod(step * plan.global_batch, plan.num_samples)
    return Place(plan.stage_at(step).number + 1, epoch + 1, sample, plan.num_samples)


def main(arguments: list[str]) -> int:
    """Run the settings that were asked for and print what came of every point."""
    options = _options(arguments)
    out: Path = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    print(f"points: seed {options.seed}", flush=True)
    data, results, problems = make_data(out), {}, []
    try:
        with cluster(NODES) as bed:
            for name in options.settings:
                setting, base = SETTINGS[name], out / f"points-{options.seed}" / name
                training = Training(
                    base, data, STEPS, SAVE_EVERY, ranks=setting.ranks, strategy=setting.strategy
                )
                rng = random.Random(f"{options.seed}/{name}")
                proof = Proof(name, training, out / "quiet", rng, options.rounds)
                results[name], wrong = proof.run(bed)
                problems += wrong
    except NoCluster as error:
        print(f"points: {error}", file=sys.stderr)
        return 2
    return _verdict(results, problems)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tests.soak.points",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = ", ".join(SETTINGS)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), help=f"some of {known}")
    parser.add_argument("--rounds", type=int, default=4, help="trainings for each, of five points")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--out", type=Path, default=REPO / "runs" / "soak")
    options = parser.parse_args(arguments)
    options.settings = list(dict.fromkeys(" ".join(options.settings).split()))
    if unknown := [name for name in options.settings if name not in SETTINGS]:
        parser.error(f"--settings {' '.join(unknown)}: choose from {known}")
    if not options.settings:
        parser.error(f"--settings: name at least one of {known}")
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: give 1 or more; 4 make 20 points a setting")
    return options


def _verdict(results: dict[str, list[Result]], problems: list[str]) -> int:
    everything = [result for found in results.values() for result in found]
    lines = [summary(name, found, STAGES) for name, found in results.items()]
    problems = problems + [result.line() for result in everything if result.cost is None]
    lines += [*cost_lines(everything, SAVE_EVERY), restart_line(everything), *problems]
    passed = not problems and all(result.is_good for result in everything)
    lines.append("passed: same bits and samples at every point" if passed else "FAILED")
    for line in lines:
        print(f"points: {line}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
