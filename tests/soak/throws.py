"""What a storm throws: each kind of fault is one function that says what it hit."""

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.mlflow_server import Server
from tests.soak.cluster import Cluster, Refused
from tests.soak.training import NODES, Training

NODE_AWAY_S = (20.0, 45.0)
"""SLURM takes a node for lost after 15 s in a testbed; a machine takes longer to start again."""
SERVER_AWAY_S = (3.0, 30.0)


class NoTarget(RuntimeError):
    """There is nothing to hit right now; the storm tries again."""


@dataclass
class Target:
    """What is thrown at, and what has to be mended when."""

    cluster: Cluster
    training: Training
    name: str
    job: str
    rng: random.Random
    server: Server | None = None
    mends: list[tuple[float, str, Callable[[], None]]] = field(default_factory=list)

    def facts(self) -> dict[str, str]:
        """Ask for the job's facts; a controller that is busy is asked again."""
        for _ in range(5):
            try:
                return self.cluster.facts(self.job)
            except Refused:
                time.sleep(1.0)
        return self.cluster.facts(self.job)

    def mend(self, everything: bool = False) -> list[str]:
        """Repair what is due; returns what was repaired."""
        now, left, done = time.monotonic(), [], []
        for due, what, repair in self.mends:
            if everything or now >= due:
                repair()
                done.append(what)
            else:
                left.append((due, what, repair))
        self.mends = left
        return done

    def later(self, away_s: tuple[float, float], what: str, repair: Callable[[], None]) -> float:
        """Have `repair` done after a random time; returns the seconds."""
        seconds = self.rng.uniform(*away_s)
        self.mends.append((time.monotonic() + seconds, what, repair))
        return seconds

    def rank_pid(self, rank: int) -> int:
        """Return the process of a rank.

        Raises:
            NoTarget: it does not run.
        """
        wanted = f"name={self.name}\0runs={self.training.base}/runs\0".encode()
        mark = f"\0SLURM_PROCID={rank}\0".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                command, env = (path / "cmdline").read_bytes(), (path / "environ").read_bytes()
            except OSError:
                continue
            is_rank = b"-m\0pipeline\0train\0" in command and b"recording_rank.py\0" in command
            if is_rank and b"python" in command.split(b"\0")[0] and wanted in command:
                found += [int(path.name)] if mark in env else []
        if not found:
            raise NoTarget(f"rank {rank} does not run")
        return min(found)


def _signal_rank(number: signal.Signals) -> Callable[[Target], str]:
    def throw(target: Target) -> str:
        rank = target.rng.randrange(target.training.ranks)
        os.kill(target.rank_pid(rank), number)
        return f"{number.name} to rank {rank}"

    return throw


def _usr2(target: Target) -> str:
    _running(target)
    target.cluster.ask("scancel", "--batch", "--signal=USR2", target.job)
    return "SIGUSR2 to the job"


def _requeue(target: Target) -> str:
    _running(target)
    target.cluster.ask("scontrol", "requeue", target.job)
    return "scontrol requeue"


def _preempt(target: Target) -> str:
    _running(target)
    urgent = target.cluster.ask(
        *("sbatch", "--parsable", "--partition=high", "--exclusive", f"--nodes={NODES}"),
        *("--output=/dev/null", "--time=2", "--wrap=sleep 2"),
    )
    return f"preempted by job {urgent}"


def _lose_node(target: Target) -> str:
    facts = _running(target)
    if target.cluster.down_nodes:
        raise NoTarget("a node is down already")
    node = target.rng.choice(target.cluster.nodes_of(facts))
    target.cluster.kill_node(node)
    back = target.later(NODE_AWAY_S, f"{node} is back", lambda: target.cluster.bring_back(node))
    return f"{node} dies, back in {back:.0f} s"


def _kill_server(target: Target) -> str:
    server = _server_up(target)
    server.kill()
    back = target.later(SERVER_AWAY_S, "MLflow is started again", server.go_on)
    return f"MLflow is killed, back in {back:.0f} s"


def _stop_server(target: Target) -> str:
    server = _server_up(target)
    server.stop()
    back = target.later(SERVER_AWAY_S, "MLflow goes on", server.go_on)
    return f"MLflow stands still for {back:.0f} s"


def _running(target: Target) -> dict[str, str]:
    facts = target.cluster.facts(target.job)
    if facts["JobState"] != "RUNNING":
        raise NoTarget(f"the job is {facts['JobState']}")
    return facts


def _server_up(target: Target) -> Server:
    if target.server is None or any("MLflow" in what for _, what, _ in target.mends):
        raise NoTarget("MLflow is away already")
    return target.server


KINDS: dict[str, Callable[[Target], str]] = {
    "kill": _signal_rank(signal.SIGKILL),
    "stop": _signal_rank(signal.SIGSTOP),
    "term": _signal_rank(signal.SIGTERM),
    "usr2": _usr2,
    "requeue": _requeue,
    "preempt": _preempt,
    "node": _lose_node,
    "mlflow kill": _kill_server,
    "mlflow stop": _stop_server,
}
HARMLESS = ("mlflow kill", "mlflow stop")
"""Kinds after which the training itself goes on."""


def throw(kind: str, target: Target) -> str:
    """Throw one fault; returns what was hit.

    Raises:
        NoTarget: there is nothing to hit right now.
    """
    try:
        return KINDS[kind](target)
    except (Refused, ProcessLookupError) as error:
        raise NoTarget(str(error)) from None


def written_faults(rng: random.Random, steps: int, size_bytes: int, count: int) -> list[dict]:
    """Return faults of the checkpoints' writer, by turns a full disk and a kill in mid-write."""
    return [
        {
            "kind": ("nospace", "cut")[number % 2],
            "step": rng.randrange(1, steps),
            "bytes": rng.randrange(size_bytes),
        }
        for number in range(count)
    ]
