"""SLURM's answers that the launcher needs, each asked by one bounded command.

States come from scontrol and squeue: they are there without an accounting database.
"""

import re
import subprocess
from collections.abc import Callable, Sequence

from pipeline.run.folder import DONE, MISUSE, SAVED

ANSWER_S = 30.0
"""A controller that is busy or restarting may be slow; longer than this it counts as silent."""


_LOST = re.compile(
    r"Task launch .*failed|Communication connection failure|Node failure|Zero Bytes were transm"
    r"|Unable to contact|Socket timed out|[Nn]ode.* (?:is )?(?:down|not responding)"
    r"|already completing or completed"  # SLURM takes the allocation away, as it lost a node of it
)


EXITED = "Exited with exit code"
_ORDERLY = tuple(f"{EXITED} {code}" for code in (DONE, MISUSE, SAVED))


class NoAnswer(RuntimeError):
    """A SLURM command failed, is not installed, or did not answer in time."""


def ask(command: Sequence[str], timeout_s: float = ANSWER_S) -> str:
    """Run a SLURM command and return what it prints.

    Raises:
        NoAnswer: with the command and what it said.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise NoAnswer(f"{command[0]}: not found; is this a SLURM machine?") from None
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"{' '.join(command)}: no answer in {timeout_s:.0f} s") from None
    if done.returncode:
        raise NoAnswer(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def tells_of_lost_node(text: str) -> bool:
    """Return whether srun's words mean that a node of the allocation does not answer."""
    return _LOST.search(text) is not None


def left_orderly(words: str) -> bool:
    """Return whether srun says of a task that it ended as ranks mean to: done, refused, saved."""
    return words.strip() in _ORDERLY


def job_facts(job_id: str, timeout_s: float = ANSWER_S) -> dict[str, str]:
    """Return scontrol's `Key=value` facts of a job (values without spaces)."""
    return job_records(job_id, timeout_s)[-1]


def job_records(job_id: str, timeout_s: float = ANSWER_S) -> list[dict[str, str]]:
    """Return the facts of a job, or of each element of an array; those that wait may share one.

    Raises:
        NoAnswer: there is no such job (any more), or SLURM does not answer.
    """
    lines = ask(["scontrol", "--oneliner", "show", "job", job_id], timeout_s).splitlines()
    records = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in lines]
    if not any("JobState" in record for record in records):
        raise NoAnswer(f"scontrol show job {job_id}: no job in its answer {lines}")
    return [record for record in records if "JobState" in record]


def requeue(job_id: str, tell: Callable[[str], None]) -> None:
    """Put a running batch job back into the queue, and tell it before it is done.

    SLURM may end this process before scontrol returns: a word said afterwards can be lost. A job
    that SLURM already ends is left to SLURM: one that was cancelled must not come back, and one
    that is preempted or was requeued by somebody comes back by itself.

    Raises:
        NoAnswer: SLURM refused, for instance as the job was submitted with --no-requeue.
    """
    state = job_facts(job_id).get("JobState", "")
    if state != "RUNNING":
        tell(f"job {job_id} is {state}: whether it comes back is SLURM's decision")
        return
    tell(f"job {job_id} goes back into the queue")
    ask(["scontrol", "requeue", job_id])


def host_names(nodes: str) -> list[str]:
    """Return the nodes of a list like `gpu[1-4]`, one by one."""
    return ask(["scontrol", "show", "hostnames", nodes]).split()


def node_address(node: str) -> str:
    """Return the address of a node, as SLURM itself reaches it.

    The name need not be one that resolves; NodeAddr is.
    """
    match = re.search(r"\bNodeAddr=(\S+)", ask(["scontrol", "--oneliner", "show", "node", node]))
    return match[1] if match else node


def running_steps(job_id: str, timeout_s: float = ANSWER_S) -> list[str]:
    """Return the ids of the job's steps that run, without batch and extern."""
    command = ["squeue", "--steps", "--noheader", "--format=%i", f"--jobs={job_id}"]
    steps = ask(command, timeout_s).split()
    return [step for step in steps if step.rpartition(".")[2].isdigit()]


def partition_facts(name: str) -> dict[str, str]:
    """Return scontrol's facts of a partition, of the default one where `name` is empty.

    Raises:
        NoAnswer: there is no such partition, or SLURM does not answer.
    """
    command = ["scontrol", "--oneliner", "show", "partition", *([name] if name else [])]
    records = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in ask(command).splitlines()]
    chosen = [facts for facts in records if name or facts.get("Default") == "YES"]
    return chosen[0] if chosen else {}


def configuration(timeout_s: float = ANSWER_S) -> dict[str, str]:
    """Return the cluster's settings, as `scontrol show config` lists them."""
    lines = ask(["scontrol", "show", "config"], timeout_s).splitlines()
    pairs = (line.partition("=") for line in lines if "=" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}
