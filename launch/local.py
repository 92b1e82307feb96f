"""Ranks as processes of this host: they start together and none outlives another.

Each rank leads a session of its own, so that a terminal's Ctrl-C reaches the supervisor alone and
a kill takes a rank's children along. A rank whose supervisor dies is killed by the kernel.
"""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Self

from launch.ranks import End, free_port, meeting_port, rank_environment
from pipeline.run.folder import DONE, MISUSE, SAVED

GRACE_CRASH_S = 5.0
"""After a crash the peers' collectives fail within a second and rank 0 still writes why. After a
refusal they may wait for a rank that never joins them, as srun's --kill-on-bad-exit has it too."""
GRACE_END_S = 60.0
"""After an orderly end of one rank the others may take so long (as `srun --wait=60`)."""

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class LocalStep:
    """The processes of one attempt."""

    def __init__(self, processes: list[subprocess.Popen[bytes]]) -> None:
        self._processes = processes
        self._first: tuple[int, int] | None = None
        self._deadline = float("inf")

    def poll(self) -> End | None:
        codes = [process.poll() for process in self._processes]
        for rank, code in enumerate(codes):
            if code is not None and self._is_worse(code):
                self._first = (rank, code)
                grace = GRACE_END_S if code in (DONE, SAVED) else GRACE_CRASH_S
                self._deadline = min(self._deadline, time.monotonic() + grace)
        if None in codes:
            if time.monotonic() > self._deadline:
                self.kill()
            return None
        assert self._first is not None
        rank, code = self._first
        died = code not in (DONE, MISUSE, SAVED)
        return End(code, f"rank {rank} {_how(code)}" if died else "", died, killed=code < 0)

    def forward(self) -> None:
        for process in self._processes:
            process.send_signal(signal.SIGUSR2)

    def kill(self) -> None:
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def _is_worse(self, code: int) -> bool:
        """The first crash is what happened; an orderly end before it explains nothing."""
        orderly = (DONE, SAVED)
        return self._first is None or (self._first[1] in orderly and code not in orderly)


class LocalLauncher:
    """Starts ranks on this host."""

    nodes: Sequence[str] = ()

    def __init__(self, ranks: int, job: str) -> None:
        self.capacity = self.ranks_per_node = ranks
        self._job = job

    def without(self, nodes: Collection[str]) -> Self:
        return self

    def start(self, command: Sequence[str], world: int, attempt: int) -> LocalStep:
        port = free_port(meeting_port(self._job, 0, attempt))
        threads = max(1, (os.cpu_count() or 1) // world)
        env = rank_environment("127.0.0.1", port, attempt, threads)
        parent = os.getpid()
        processes: list[subprocess.Popen[bytes]] = []
        for rank in range(world):
            place = {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
            processes.append(
                subprocess.Popen(
                    command,
                    env={**env, **place},
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                    preexec_fn=lambda: _die_with(parent),
                )
            )
        return LocalStep(processes)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when `parent` ends (it may have ended already)."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _how(code: int) -> str:
    return f"exited with {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
