"""What both ways to start ranks share: the contract, the world's size and the meeting point."""

import hashlib
import os
import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from pipeline.plan.scaling import makes_groups, worlds_sharing

FIRST_PORT, NUM_PORTS = 20000, 10000


@dataclass(frozen=True)
class End:
    """How a set of ranks ended.

    `code` is only good for commands that leave no outcome file. `died`: the first rank to leave
    crashed or was killed; what the others did then (srun ends them with TERM) is no wish to stop.
    `killed`: it had no time to say why, so `note` explains more than the others' last words.
    `lost`: a node does not answer, so starting again in this allocation would fail as well.
    """

    code: int
    note: str
    died: bool
    killed: bool = False
    lost: bool = False


class Step(Protocol):
    """Ranks that were started together."""

    def poll(self) -> End | None:
        """Return how they ended, None while any runs."""
        ...

    def forward(self) -> None:
        """Ask every rank to save and end (SIGUSR2)."""
        ...

    def kill(self) -> None:
        """End every rank now."""
        ...


class Launcher(Protocol):
    """A way to start ranks."""

    capacity: int
    """So many ranks have a place."""
    nodes: Sequence[str]
    """The nodes of these places, in the order of the ranks; none without SLURM."""
    ranks_per_node: int

    def without(self, nodes: Collection[str]) -> Self:
        """Return a launcher that starts no rank on these nodes."""
        ...

    def start(self, command: Sequence[str], world: int, attempt: int) -> Step:
        """Start `world` ranks of `command` with the environment that ranks expect."""
        ...


def largest_world(capacity: int, micro_batches: Sequence[int], bn_group: int = 1) -> int:
    """Return the most ranks, at most `capacity`, that share every stage's micro-batches.

    `bn_group` micro-batches have their batch norm in common; ranks must be able to make such
    groups too (`ModelSpec.together`).
    """
    return max(size for size in worlds_sharing(micro_batches, bn_group) if size <= capacity)


def idle_note(capacity: int, micro_batches: Sequence[int], bn_group: int = 1) -> str:
    """Say which places stay empty and what would fill them; empty where all work."""
    world = largest_world(capacity, micro_batches, bn_group)
    if world == capacity:
        return ""
    counts = ", ".join(map(str, dict.fromkeys(micro_batches)))
    groups, remedy = "", f"set stages.micro_batches to a multiple of {capacity}, or "
    if bn_group > 1:
        groups = f" in groups of {bn_group} (model.bn_group)"
    if not makes_groups(capacity, bn_group):
        remedy = ""  # no number of micro-batches would do
    return (
        f"{world} of {capacity} ranks work and {capacity - world} stay idle: the stages have "
        f"{counts} micro-batches{groups}; {remedy}ask for {world} ranks"
    )


def meeting_port(job: str, restart: int, attempt: int) -> int:
    """Return the port where the ranks of one attempt look first for each other.

    Another attempt gets another one, as the last one's sockets may linger, and so does another
    job on the same host.
    """
    digest = hashlib.sha256(f"{job}/{restart}/{attempt}".encode()).digest()
    return FIRST_PORT + int.from_bytes(digest[:4], "big") % NUM_PORTS


def free_port(first: int) -> int:
    """Return `first`, or the next port of the range that nobody on this host listens on."""
    for offset in range(NUM_PORTS):
        port = FIRST_PORT + (first - FIRST_PORT + offset) % NUM_PORTS
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no free port from {FIRST_PORT} to {FIRST_PORT + NUM_PORTS - 1}")


def rank_environment(address: str, port: int, attempt: int, threads: int) -> dict[str, str]:
    """Return the caller's environment plus what ranks read; settings that are there stay."""
    values = {
        **os.environ,
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "PIPELINE_ATTEMPT": str(attempt),
        "PYTHONUNBUFFERED": "1",
    }
    values.setdefault("OMP_NUM_THREADS", str(threads))
    interface = os.environ.get("NETWORK_INTERFACE", "")
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if interface else ():
        values.setdefault(name, interface)
    return values


def rank_python(python: str, env: Mapping[str, str]) -> list[str]:
    """Return `[container prefix] python` for ranks, as the site's settings have it."""
    return [*env.get("RANK_PREFIX", "").split(), env.get("RANK_PYTHON") or python]


def rank_command(arguments: Sequence[str], python: str, env: Mapping[str, str]) -> list[str]:
    """Return the command of every rank of a pipeline job."""
    return [*rank_python(python, env), "-m", "pipeline", *arguments]
