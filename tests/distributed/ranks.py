"""The ranks of one process group on this host, and the starters that they are forked from."""

import os
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.distributed.starter import Rank, Starter

MOST = 4
TIMEOUT_S = 240


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Ranks:
    """The processes of one attempt."""

    processes: list[Rank]
    log: Path

    def wait(self, timeout_s: float = TIMEOUT_S) -> list[int]:
        """Wait for all; a hang fails the test with the log."""
        deadline = time.monotonic() + timeout_s
        try:
            return [
                process.wait(max(0.1, deadline - time.monotonic())) for process in self.processes
            ]
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"ranks hang:\n{self.text()[-4000:]}")

    def finish(self, timeout_s: float = TIMEOUT_S) -> None:
        """Wait for all; anything but success fails the test with the log."""
        assert self.wait(timeout_s) == [0] * len(self.processes), self.text()[-6000:]

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()

    def text(self) -> str:
        return self.log.read_text(errors="replace")


@dataclass
class Starters:
    """As many starters as a group has ranks at most."""

    each: list[Starter] = field(default_factory=lambda: [Starter() for _ in range(MOST)])
    groups: int = 0

    def start(
        self,
        words: list[str],
        world: int,
        log: Path,
        own: Callable[[int], dict[str, str]] = lambda rank: {},
    ) -> Ranks:
        """Start `python -m WORDS` as so many ranks, which write to one log.

        `own` returns what a rank has in its environment beside what all have.
        """
        port = str(free_port())
        env = {key: v for key, v in os.environ.items() if not key.startswith("SLURM_")}
        env |= {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env |= {"OMP_NUM_THREADS": "1"}
        self.groups += 1
        processes = []
        for rank in range(world):
            # Forks of one starter hash strings alike. Ranks and attempts must do without that.
            starter = self.each[(rank + self.groups) % MOST]
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(starter.start(words, {**env, **place, **own(rank)}, log))
        return Ranks(processes, log)

    def close(self) -> None:
        for starter in self.each:
            starter.close()
