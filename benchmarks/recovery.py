"""How long a training stands still after a failure, on a throw-away SLURM cluster of two nodes.

    python -m benchmarks.recovery crash        # kill -9 of a rank, to the next optimizer step
    python -m benchmarks.recovery hang         # SIGSTOP of a rank: found, then the next step
    python -m benchmarks.recovery poison       # a step that always raises, to FAILED and free nodes

Each trial is a job of its own: the demo's network, two ranks on two nodes. Seconds from the
failure are told apart: noticed by the supervisor, ranks started by srun, their start (recipe and
lease, to the watchdog's first beat), torch's imports and the process group, the state (model and
checkpoint), warm-up and the first step.
Four minutes each with --trials 5 on an idle machine. Exit code 1 where a crash costs over 20 s, a
hang is found later than its deadline and 5 s or then costs over 20 s, or a job that cannot get on
is not FAILED after three restarts, holds a node for 30 s, or hides its cause below five lines.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from launch.ledger import Ledger
from pipeline.run.beats import read_beats
from pipeline.run.files import read_json
from pipeline.run.folder import RunFolder
from pipeline.run.hang import read_hang
from pipeline.tracking.events import Event, read_events
from tests.soak.cluster import ENDED, REPO, Cluster, cluster
from tests.soak.training import make_data

CRASH_S, FREE_S, LATE_S, DEADLINE_S = 20.0, 30.0, 5.0, 6.0
RESTARTS, FIRST_LINES = 3, 5
FAULT_STEP = 15
PATIENCE_S = 900.0
PARTS = ("noticed", "srun", "start", "torch", "state", "first step")
FAULTS: dict[str, dict[str, object]] = {
    "crash": {"kind": "kill", "rank": 1, "step": FAULT_STEP},
    "hang": {"kind": "stop", "rank": 1, "step": FAULT_STEP},
    "poison": {"kind": "raise", "step": 3, "once": False},
}
WATCH = (
    f"watch={{data_s: {DEADLINE_S}, step_s: {DEADLINE_S}, evaluate_s: 60, checkpoint_s: 60, "
    "beat_every_s: 0.5}"
)


@dataclass(frozen=True)
class Trial:
    """One job; its log lies beside its run."""

    bed: Cluster
    job: str
    folder: RunFolder

    @property
    def log(self) -> str:
        path = Path(f"{self.folder.path}.log")
        return path.read_text() if path.is_file() else ""

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for `condition`; ends the program where it does not come."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > deadline:
                sys.exit(f"job {self.job}: {what} did not come\n{self.log[-3000:]}")
            time.sleep(0.1)

    def fault_s(self) -> float | None:
        """Return when the fault struck, by the clock."""
        marks = sorted((self.folder.path / "faults").glob("*.json"))
        values = read_json(marks[0]) if marks else None
        return float(values["time_s"]) if isinstance(values, dict) else None

    def events(self, attempt: int) -> Iterator[Event]:
        """Give what rank 0 of `attempt` put into its spool."""
        current = -1
        for event in read_events(self.folder.spool):
            if event.kind == "attempt":
                current = int(event.values["attempt"])
            if current == attempt:
                yield event

    def first(self, attempt: int, kind: str) -> float | None:
        """Return when an event of this kind came first in `attempt`, by the clock."""
        return next((e.time_ms / 1000 for e in self.events(attempt) if e.kind == kind), None)


class Restart(NamedTuple):
    """Seconds of one restart: each of PARTS, and the whole from the failure (or its finding)."""

    parts: tuple[float, ...]
    whole_s: float
    found_s: float


def main() -> int:
    """Run the trials and print; returns 1 where a goal is missed."""
    options = _options()
    trial = {"crash": _restart, "hang": _restart, "poison": _poison}[options.what]
    with tempfile.TemporaryDirectory() as folder, cluster(2) as bed:
        base = Path(folder)
        data = Path(options.data) if options.data else make_data(base)
        print(f"{options.what}: load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores", flush=True)
        numbers = range(options.trials)
        good = [trial(_submit(bed, base, data, options.what, number)) for number in numbers]
    return int(_summary(options.what, good))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("what", choices=tuple(FAULTS))
    add("--data", help="shards of the digits (made anew where not given)")
    add("--trials", type=int, default=5)
    return parser.parse_args()


def _submit(bed: Cluster, base: Path, data: Path, what: str, number: int) -> Trial:
    folder = RunFolder(base / "runs" / f"{what}-{number}")
    folder.path.parent.mkdir(parents=True, exist_ok=True)
    words = ["train", "configs/demo.yaml", f"name={folder.path.name}", f"runs={base}/runs"]
    words += [f"data={data}", "tracking.enabled=false", "length={steps: 100000}", WATCH]
    words += ["lr.warmup_epochs=1", "checkpoint={every_steps: 10}", "evaluate={every_steps: 9999}"]
    quoted = " ".join(f"'{word}'" for word in words)
    job = bed.ask(
        *("sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", "--open-mode=append"),
        *("--signal=B:USR2@60", f"--job-name={folder.path.name}", f"--output={folder.path}.log"),
        f"--wrap=exec bash {REPO}/slurm/job.sh {quoted}",
        env={
            **bed.env,
            "SUPERVISOR_PYTHON": sys.executable,
            "OMP_NUM_THREADS": "1",
            "PIPELINE_FAULTS": json.dumps([FAULTS[what]]),
        },
    )
    return Trial(bed, job, folder)


def _restart(trial: Trial) -> Restart:
    """Wait for the step after the failure, and tell the time in between apart."""
    started: list[tuple[float, float]] = []

    def look() -> bool:
        beat = next((b for b in read_beats(trial.folder, 1) if b.rank == 0), None)
        if beat is not None and not started:
            started.append((_process_started_s(beat.pid), beat.since_s))
        return trial.first(1, "metrics") is not None

    trial.until(look, "the step after the failure")
    trial.bed.ask("scancel", trial.job)
    fault_s, hang = trial.fault_s(), read_hang(trial.folder, 0)
    assert fault_s is not None
    found_s = float(hang["found_s"]) if hang is not None else fault_s
    began = Ledger(trial.folder).attempts()[1].started_s
    stamps = [found_s, began, *started[0]]
    stamps += [trial.first(1, kind) or 0.0 for kind in ("attempt", "rewind", "metrics")]
    parts = tuple(later - before for before, later in zip(stamps, stamps[1:], strict=False))
    result = Restart(parts, stamps[-1] - found_s, found_s - fault_s)
    told = ", ".join(f"{name} {s:.1f}" for name, s in zip(PARTS, parts, strict=True))
    print(f"  found after {result.found_s:.1f} s, then {result.whole_s:.1f} s: {told}", flush=True)
    _until_free(trial)
    return result


class Stopped(NamedTuple):
    """How a job that cannot get on ended: seconds from its last attempt's end, and in words."""

    free_s: float
    restarts: int
    state: str
    cause_line: int


def _poison(trial: Trial) -> Stopped:
    """Wait for the end of a job that cannot get on."""
    trial.until(lambda: trial.bed.facts(trial.job)["JobState"] in ENDED, "the job's end")
    free_s = _until_free(trial)
    attempts = Ledger(trial.folder).attempts()
    ended_s = _died_s(trial.folder, attempts[-1].number)
    summary = trial.log.partition("supervise: FAILED")[2].splitlines()
    lines = [number for number, line in enumerate(summary, 1) if "fault on purpose" in line]
    state = trial.bed.facts(trial.job)["JobState"]
    found = Stopped(free_s - ended_s, len(attempts) - 1, state, lines[0] if lines else 0)
    print(
        f"  {state} after {found.restarts} restarts without progress, all nodes idle "
        f"{found.free_s:.1f} s after the last attempt failed, cause in line {found.cause_line}",
        flush=True,
    )
    return found


def _died_s(folder: RunFolder, attempt: int) -> float:
    """Return when rank 0 of `attempt` noted that it failed."""
    values = read_json(folder.outcome_file(attempt))
    assert isinstance(values, dict), f"{folder.path}: attempt {attempt} left no outcome"
    return float(values["time_s"])


def _until_free(trial: Trial) -> float:
    """Wait until SLURM calls all nodes idle; return when that was, by the clock."""
    trial.until(
        lambda: set(trial.bed.ask("sinfo", "--noheader", "--format=%T").split()) == {"idle"},
        "idle nodes",
    )
    return time.time()


def _process_started_s(pid: int) -> float:
    """Return when a process of this host started, by the clock."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - age_s


def _summary(what: str, found: list[Restart] | list[Stopped]) -> bool:
    """Print medians and worst; True where a goal is missed."""
    stopped = [one for one in found if isinstance(one, Stopped)]
    if stopped:
        _line("nodes idle", [one.free_s for one in stopped], FREE_S)
        return any(
            one.free_s > FREE_S
            or (one.state, one.restarts) != ("FAILED", RESTARTS)
            or not 1 <= one.cause_line <= FIRST_LINES
            for one in stopped
        )
    restarts = [one for one in found if isinstance(one, Restart)]
    if what == "hang":
        _line("found after", [one.found_s for one in restarts], DEADLINE_S + LATE_S)
    _line("next step", [one.whole_s for one in restarts], CRASH_S)
    for index, name in enumerate(PARTS):
        _line(f"  {name}", [one.parts[index] for one in restarts], None)
    late = any(one.found_s > DEADLINE_S + LATE_S for one in restarts)
    return late or any(one.whole_s > CRASH_S for one in restarts)


def _line(name: str, seconds: list[float], goal_s: float | None) -> None:
    goal = f"   goal {goal_s:.0f} s" if goal_s is not None else ""
    middle, worst = statistics.median(seconds), max(seconds)
    print(f"{name:<14} median {middle:5.1f} s, worst {worst:5.1f} s{goal}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
