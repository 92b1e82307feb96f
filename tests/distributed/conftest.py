"""Real ranks: processes that join one process group and run `python -m pipeline` jobs."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.run.folder import RunFolder

TIMEOUT_S = 240
CONFIG = "configs/demo.yaml"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Ranks:
    """The processes of one attempt."""

    processes: list[subprocess.Popen[bytes]]
    log: Path

    def wait(self) -> list[int]:
        """Wait for all; a hang fails the test with the log."""
        deadline = time.monotonic() + TIMEOUT_S
        try:
            return [
                process.wait(max(0.1, deadline - time.monotonic())) for process in self.processes
            ]
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"ranks hang:\n{self.text()[-4000:]}")

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()

    def text(self) -> str:
        return self.log.read_text(errors="replace")


@dataclass
class Launcher:
    """Starts ranks of `python -m pipeline train` on this host."""

    repo: Path
    runs: Path
    data: Path
    started: list[Ranks] = field(default_factory=list)

    def folder(self, name: str) -> RunFolder:
        return RunFolder(self.runs / name)

    def start(self, name: str, world: int, *overrides: str) -> Ranks:
        port = free_port()
        command = [sys.executable, "-m", "pipeline", "train", CONFIG, f"name={name}"]
        command += [f"runs={self.runs}", f"data={self.data}", "tracking.enabled=false"]
        log = self.runs / f"{name}.log"
        self.runs.mkdir(exist_ok=True)
        processes = []
        for rank in range(world):
            env = {key: v for key, v in os.environ.items() if not key.startswith("SLURM_")}
            env |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
            with log.open("ab") as output:
                processes.append(
                    subprocess.Popen(
                        [*command, *overrides],
                        cwd=self.repo,
                        env=env,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                    )
                )
        ranks = Ranks(processes, log)
        self.started.append(ranks)
        return ranks

    def run(self, name: str, world: int, *overrides: str) -> RunFolder:
        """Run to the end; anything but success fails the test with the log."""
        ranks = self.start(name, world, *overrides)
        codes = ranks.wait()
        assert codes == [0] * world, ranks.text()[-6000:]
        return self.folder(name)


@pytest.fixture
def launcher(tmp_path: Path, repo: Path, digits: Path) -> Iterator[Launcher]:
    launcher = Launcher(repo, tmp_path / "runs", digits)
    yield launcher
    for ranks in launcher.started:
        ranks.kill()
