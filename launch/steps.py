"""Ranks as the tasks of a SLURM job step: one srun, one task for each rank.

`--kill-on-bad-exit=1` frees the allocation when one rank dies; without it the survivors hold it
for as long as they wait. srun's own exit code says little (75, 137 and 143 were seen for the same
event), so its error lines are kept for the summary and everything else is decided from files.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from launch.cluster import (
    EXITED,
    NoAnswer,
    ask,
    host_names,
    left_orderly,
    node_address,
    running_steps,
    tells_of_lost_node,
)
from launch.ranks import End, free_port, meeting_port, rank_environment
from pipeline.run.folder import MISUSE
from pipeline.spec import Misuse

CLEAR_S = 60.0
"""A killed step is gone after KillWait (30 s by default) at the latest; then it is an error."""

GRACE_CRASH_S = 10.0
"""What outlives a rank that died (a stopped peer, a sender whose server is away) has so long;
srun itself gives it KillWait, 30 s by default, in which no step is made."""

KILL_S = 5.0
"""A word to SLURM may take so long where a job's last seconds run."""

_SAYS = "srun: error: "
_TASK = re.compile(r": tasks? [\d,-]+: (.*)")


@dataclass(frozen=True)
class Allocation:
    """What sbatch gave this job, as its environment says."""

    job: str
    restart: int
    node_list: str
    num_nodes: int
    tasks_per_node: int
    cpus_per_task: int

    @property
    def num_tasks(self) -> int:
        return self.num_nodes * self.tasks_per_node


def allocation_from(env: Mapping[str, str]) -> Allocation:
    """Read the allocation; one task a node where the job did not ask for more.

    Raises:
        Misuse: this is no SLURM job.
    """
    if "SLURM_JOB_ID" not in env:
        raise Misuse(
            "environment: SLURM_JOB_ID is not set, so this is no SLURM job; use sbatch, or "
            "`python -m launch local --ranks N train CONFIG`"
        )
    return Allocation(
        job=env["SLURM_JOB_ID"],
        restart=int(env.get("SLURM_RESTART_COUNT", "0")),
        node_list=env["SLURM_JOB_NODELIST"],
        num_nodes=int(env["SLURM_JOB_NUM_NODES"]),
        tasks_per_node=int(env.get("SLURM_NTASKS_PER_NODE", "1").partition("(")[0]),
        cpus_per_task=int(env.get("SLURM_CPUS_PER_TASK", "1")),
    )


class SrunStep:
    """One srun and its tasks."""

    def __init__(self, process: subprocess.Popen[bytes], job: str) -> None:
        self._process = process
        self._job = job
        self._errors: list[str] = []
        self._given_up = False
        self._kill_due_s: float | None = None
        self._relay = threading.Thread(target=self._pass_on, name="srun-stderr", daemon=True)
        self._relay.start()

    def poll(self) -> End | None:
        code = self._process.poll()
        if code is None:
            self._end_survivors()
            return None
        self._relay.join(timeout=5.0)
        if code and not self._given_up:
            try:
                clear_steps(self._job)
            except NoAnswer as error:  # the next srun waits for its places itself
                print(f"supervise: {error}", flush=True)
        lines = "; ".join(self._errors[:3])
        note = f"srun ended with {code}" + (f": {lines}" if lines else "")
        first = first_departure(self._errors)
        died = bool(first) and not left_orderly(first)
        if first == f"{EXITED} {MISUSE}":  # srun itself tells of those that it killed then
            code = MISUSE
        killed = died and not first.startswith(EXITED)
        lost = tells_of_lost_node(note)
        return End(code, note if code else "", died, killed, lost)

    def forward(self) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGUSR2)  # srun hands it to all tasks

    def kill(self) -> None:
        """End the ranks without waiting for them: no step follows, and a requeue ends what hangs.

        A process that waits for dead storage outlives any signal, and the job's time with it.
        """
        self._given_up = True
        _kill_steps(self._job)
        self._process.kill()

    def _end_survivors(self) -> None:
        """Kill what is left some time after a rank died."""
        first = first_departure(self._errors)
        if not first or left_orderly(first):
            return
        if self._kill_due_s is None:
            self._kill_due_s = time.monotonic() + GRACE_CRASH_S
        elif time.monotonic() > self._kill_due_s:
            self._kill_due_s = float("inf")
            _kill_steps(self._job)

    def _pass_on(self) -> None:
        """Copy srun's stderr to ours and remember what srun itself says."""
        assert self._process.stderr is not None
        rest = b""
        while chunk := os.read(self._process.stderr.fileno(), 65536):
            with suppress(OSError):  # a log that is full must not block the ranks behind the pipe
                sys.stderr.buffer.write(chunk)
                sys.stderr.flush()
            *lines, rest = (rest + chunk).split(b"\n")
            texts = (line.decode(errors="replace") for line in lines)
            self._errors += [text.removeprefix(_SAYS) for text in texts if text.startswith(_SAYS)]


class SrunLauncher:
    """Starts ranks in this job's allocation, on all its nodes or on those of `nodes`."""

    def __init__(
        self, allocation: Allocation, env: Mapping[str, str], nodes: Sequence[str] = ()
    ) -> None:
        self.allocation = allocation
        self.ranks_per_node = allocation.tasks_per_node
        self._all = host_names(allocation.node_list)
        self.nodes = nodes or self._all
        self.capacity = len(self.nodes) * self.ranks_per_node
        self.address = node_address(self.nodes[0])
        self._env = env
        self._site_args = env.get("SRUN_ARGS", "").split()

    def without(self, nodes: Collection[str]) -> Self:
        """Return a launcher for the nodes that are left.

        Raises:
            NoAnswer: SLURM does not answer.
        """
        rest = [node for node in self.nodes if node not in nodes]
        assert rest, f"no node is left without {nodes}"
        return type(self)(self.allocation, self._env, rest)

    def start(self, command: Sequence[str], world: int, attempt: int) -> SrunStep:
        job, restart = self.allocation.job, self.allocation.restart
        port = meeting_port(job, restart, attempt)
        if self.nodes[0] == self._all[0]:  # rank 0 runs on this host
            port = free_port(port)
        threads = _threads(self.allocation, os.cpu_count() or 1)
        process = subprocess.Popen(
            [*self.srun(world), *command],
            env=rank_environment(self.address, port, attempt, threads),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        return SrunStep(process, job)

    @property
    def _some(self) -> bool:
        return len(self.nodes) < len(self._all)

    def srun(self, world: int, each_node: int = 0) -> list[str]:
        """Return srun and its arguments for `world` ranks on as few nodes as hold them.

        `each_node`: so many tasks on each node instead of as many as the job has places for.
        """
        per_node = each_node or min(world, self.ranks_per_node)
        num_nodes = -(-world // per_node)
        return [
            "srun",
            "--kill-on-bad-exit=1",
            "--wait=60",
            f"--nodes={num_nodes}",
            f"--ntasks={world}",
            f"--ntasks-per-node={per_node}",
            f"--cpus-per-task={self.allocation.cpus_per_task}",
            "--distribution=block",
            *([f"--nodelist={','.join(self.nodes[:num_nodes])}"] if self._some else []),
            *(["--label"] if world > 1 else []),
            *self._site_args,
        ]


def first_departure(errors: Sequence[str]) -> str:
    """Return how the first task left, as srun says it (`Killed` of `node2: task 1: Killed`)."""
    return next((match[1] for line in errors if (match := _TASK.search(line))), "")


def clear_steps(job: str) -> None:
    """End what still runs of the job's steps, so that the next one finds its places empty.

    Raises:
        NoAnswer: SLURM does not answer, or a step does not end.
    """
    deadline = time.monotonic() + CLEAR_S
    steps = running_steps(job)
    for step in steps:
        ask(["scancel", step])
    while steps:
        if time.monotonic() > deadline:
            raise NoAnswer(f"step {', '.join(steps)} did not end in {CLEAR_S:.0f} s")
        time.sleep(0.5)
        steps = running_steps(job)


def _kill_steps(job: str) -> None:
    """Send KILL to all steps of a job but the batch script, as far as SLURM answers."""
    with suppress(NoAnswer):
        for step in running_steps(job, KILL_S):
            ask(["scancel", "--signal=KILL", step], KILL_S)


def _threads(allocation: Allocation, num_cpus: int) -> int:
    """Return compute threads for a rank: its CPUs, but no more than its share of real ones."""
    return max(1, min(allocation.cpus_per_task, num_cpus // allocation.tasks_per_node))
