"""What attempts are made at, and for whom: the job that is counted, the work that is started."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.run.folder import RunFolder


@dataclass(frozen=True)
class Job:
    """The SLURM job (or this process, without SLURM) that attempts are counted for."""

    id: str
    restart: int
    in_slurm: bool
    num_nodes: int = 1


@dataclass(frozen=True)
class Work:
    """What is started again and again: a command for `world` ranks, and the run it works on."""

    command: Sequence[str]
    world: int
    folder: RunFolder
    largest: Callable[[int], int] | None = None
    """The most ranks of a number of places that can share the work; None: all of them."""

    def fits(self, capacity: int) -> int:
        """Return how many of `capacity` places have work."""
        return min(self.world, self.largest(capacity) if self.largest else capacity)
