"""What MLflow costs a training while it is there, gone (a closed port) or stopped (no answers).

    python -m benchmarks.outage                          # under four minutes
    python -m benchmarks.outage --rounds 40

Five trainings of the demo's network, one rank each, take turns of --block-s seconds; all others
stand still meanwhile (SIGSTOP), senders and server with them. Two run with tracking.enabled=false:
the second shows how far equal things differ. A turn's figures are seconds of the clock by step, and
of the training thread's processor time; each is divided by that of the quiet turn of its round.
In the end MLflow comes back, and the points in MLflow are compared with the runs' own record.
Exit code 1 where an outage makes steps more than 1 % longer beyond doubt (the whole 95 % interval
of the median is above that, and above what the equal ones differ by), or a point is lost or
doubled, or a training has not one run.
"""

import argparse
import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pipeline.run.folder import SAVED, RunFolder
from pipeline.tracking.client import connect
from pipeline.tracking.events import history, read_events
from tests.mlflow_server import Server
from tests.soak.cluster import REPO
from tests.soak.compare import different_series, send_the_rest
from tests.soak.training import BATCH, make_data

QUIET, AGAIN, ALIVE, GONE, STOPPED = "without", "without-again", "alive", "gone", "stopped"
OUTAGES = (GONE, STOPPED)
LIMIT = 1.01
WARM_STEPS = 20
SETTINGS = (
    *("length={steps: 1000000}", "lr.warmup_epochs=1"),
    "stages={kind: fixed, count: 1, px: 24, dropout: 0.1, micro_batches: 4}",
    *("evaluate={every_steps: 1000000}", "checkpoint={every_steps: 1000000}"),
    *("tracking.register_as=null", "tracking.system_every_s=0"),
    *("watch={data_s: 3000, step_s: 3000}", "compute.collective_timeout_s=6000"),
)


class Turn(NamedTuple):
    """Seconds a step by the clock, and of the training thread's processor time."""

    wall_s: float
    cpu_s: float


@dataclass
class Arm:
    """A training; `server` is what it sends to, if anything."""

    name: str
    folder: RunFolder
    process: subprocess.Popen[bytes]
    server: Server | None
    turns: list[Turn] = field(default_factory=list)

    def pause(self) -> None:
        """Have training, loader, sender and a server that is alive stand still."""
        self._signal(signal.SIGSTOP)
        if self.server is not None and self.name == ALIVE:
            self.server.stop()

    def go_on(self) -> None:
        """Have all that go on."""
        if self.server is not None and self.name == ALIVE:
            self.server.go_on()
        self._signal(signal.SIGCONT)

    def take_turn(self, seconds: float) -> None:
        """Train for so long, and note what a step took."""
        cpu_s, offset = _thread_cpu_s(self.process.pid), self._file.stat().st_size
        started_ms = time.time() * 1000
        self.go_on()
        time.sleep(seconds)
        self.pause()
        cpu_s = _thread_cpu_s(self.process.pid) - cpu_s
        steps = [
            BATCH / float(event.values["values"]["speed/images_per_s"])
            for event in read_events(self.folder.spool, offset)
            if event.kind == "metrics" and "train/loss" in event.values["values"]
        ]
        if len(steps) < 3 or self.process.poll() is not None:
            sys.exit(f"{self.name}: {len(steps)} steps in {seconds} s from {started_ms:.0f} ms on")
        whole = steps[1:]  # the first one stood still
        self.turns.append(Turn(statistics.fmean(whole), cpu_s / len(steps)))

    def wait_for(self, step: int, timeout_s: float = 300) -> None:
        """Wait until the training has made `step` steps."""
        deadline = time.monotonic() + timeout_s
        while not any(
            event.kind == "metrics" and event.values["step"] >= step
            for event in read_events(self.folder.spool)
        ):
            if time.monotonic() > deadline or self.process.poll() is not None:
                log = Path(f"{self.folder.path}.log").read_text()
                sys.exit(f"{self.name}: no step {step}: {log[-3000:]}")
            time.sleep(0.2)

    @property
    def _file(self) -> Path:
        return self.folder.spool / "events.jsonl"

    def _signal(self, number: int) -> None:
        for pid in (self.process.pid, *_children(self.process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def main() -> int:
    """Train, measure and compare; returns 1 where a goal is missed."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))
    with contextlib.ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        arms = list(_start(stack, base, Path(options.data) if options.data else make_data(base)))
        draw = random.Random(0)
        for _ in range(options.rounds):
            for arm in draw.sample(arms, len(arms)):
                arm.take_turn(options.block_s)
        late = _report(arms)
        wrong = _end(arms)
    print(
        "\n".join(wrong) or "points lost: 0, doubled: 0; MLflow runs of a training: 1", flush=True
    )
    return int(bool(late or wrong))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", help="shards of the digits (made anew where not given)")
    add("--rounds", type=int, default=12, help="turns of each training (12)")
    add("--block-s", type=float, default=2.5, help="seconds of a turn (2.5)")
    return parser.parse_args()


def _start(stack: contextlib.ExitStack, base: Path, data: Path) -> Iterator[Arm]:
    """Start server and trainings, one after the other; each stands still when it is warm.

    What is stopped has a run in MLflow already, what is gone never answered until the end.
    """
    server, gone = Server(base / "server"), Server(base / "gone")
    stack.callback(server.kill)
    stack.callback(gone.kill)
    server.start()
    server.wait(300)
    servers = {QUIET: None, ALIVE: server, STOPPED: server, GONE: gone, AGAIN: None}
    for name, its in servers.items():
        folder = RunFolder(base / "runs" / name)
        process = _training(folder, data, its)
        stack.callback(_kill, process)
        arm = Arm(name, folder, process, its)
        arm.wait_for(WARM_STEPS)
        if its is server:
            _await_run(arm)
        arm.pause()
        print(f"{name} is warm", file=sys.stderr, flush=True)
        yield arm
        if name == ALIVE:
            server.go_on()
    server.stop()


def _training(folder: RunFolder, data: Path, server: Server | None) -> subprocess.Popen[bytes]:
    tracking = f"tracking.uri={server.uri}" if server else "tracking.enabled=false"
    where = (f"name={folder.path.name}", f"runs={folder.path.parent}", f"data={data}")
    where += (f"tracking.experiment={folder.path.name}",)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    folder.path.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder.path}.log", "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline", "train", "configs/demo.yaml"]
            + [*where, *SETTINGS, tracking],
            cwd=REPO,
            env={**environment, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )


def _await_run(arm: Arm, timeout_s: float = 300) -> None:
    """Wait until MLflow has the training's run, as an outage in mid-training finds it."""
    deadline = time.monotonic() + timeout_s
    while not _runs(arm):
        if time.monotonic() > deadline:
            sys.exit(f"{arm.name}: no run after {timeout_s:.0f} s")
        time.sleep(0.5)


def _runs(arm: Arm) -> list[str]:
    assert arm.server is not None
    client = connect(arm.server.uri)
    experiment = client.get_experiment_by_name(arm.name)
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    return [run.info.run_id for run in runs]


def _report(arms: Sequence[Arm]) -> list[str]:
    """Print each arm's figures; return the outages that make steps longer beyond doubt."""
    by_name = {arm.name: arm for arm in arms}
    quiet, late = by_name[QUIET], []
    turns, load = len(quiet.turns), os.getloadavg()[0]
    print(f"{turns} turns each, load {load:.1f}; over 1: longer than without MLflow")
    print(f"{'MLflow':<13} {'ms a step':>9} {'ratio, clock':>22} {'ratio, processor':>25}")
    for arm in arms:
        line = f"{arm.name:<13} {1000 * statistics.median(turn.wall_s for turn in arm.turns):9.2f}"
        for what in (0, 1) if arm is not quiet else ():
            ratios = _ratios(arm, quiet, what)
            low, high = _interval(ratios)
            line += f"    {statistics.median(ratios):.4f} ({low:.3f} to {high:.3f})"
            doubt = max(LIMIT, _interval(_ratios(by_name[AGAIN], quiet, what))[1])
            if arm.name in OUTAGES and low > doubt:
                late.append(arm.name)
        print(line, flush=True)
    return late


def _ratios(arm: Arm, quiet: Arm, what: int) -> list[float]:
    """Return a figure of each turn, divided by the quiet arm's of the same round."""
    return [own[what] / its[what] for own, its in zip(arm.turns, quiet.turns, strict=True)]


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the median, by drawing again."""
    draw = random.Random(1)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(2000))
    return medians[50], medians[-51]


def _end(arms: Sequence[Arm]) -> list[str]:
    """Bring MLflow back, end the trainings, send the rest; return what is wrong in MLflow."""
    wrong = []
    for arm in arms:
        if arm.server is not None:
            arm.server.go_on()
        arm.go_on()
        arm.process.send_signal(signal.SIGUSR2)
    for arm in arms:
        if (code := arm.process.wait(300)) != SAVED:
            wrong.append(f"{arm.name}: the training ended with {code}, not {SAVED}")
        if arm.server is not None:
            arm.server.wait(300)
            wrong += [f"{arm.name}: {text}" for text in send_the_rest(arm.folder)]
            wrong += [f"{arm.name}: {text}" for text in _different(arm, arm.server)]
    return wrong


def _different(arm: Arm, server: Server) -> list[str]:
    """Compare the points in MLflow with the run's own record."""
    runs = _runs(arm)
    if len(runs) != 1:
        return [f"MLflow has {len(runs)} runs of one training"]
    client, found = connect(server.uri), []
    for key, points in history(arm.folder.spool).items():
        sent = sorted((p.step, p.value) for p in client.get_metric_history(runs[0], key))
        found += different_series(key, points, sent)
    return found


def _thread_cpu_s(pid: int) -> float:
    """Return the processor time of a process's main thread, exact to the nanosecond."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def _children(pid: int) -> list[int]:
    """Return a training's other processes: loader workers and the sender."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            own = [int(word) for word in path.read_text().split()]
            found += [*own, *(child for each in own for child in _children(each))]
    return found


def _kill(process: subprocess.Popen[bytes]) -> None:
    pids = [process.pid, *_children(process.pid)]
    for pid in pids if process.poll() is None else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    sys.exit(main())
