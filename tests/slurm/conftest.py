"""A testbed of four nodes for the whole session, and what a test asks of it."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


def run(command: Sequence[str | Path], env: dict[str, str], timeout_s: float = 60) -> str:
    """Run a command to its end and return what it prints; fail the test where it fails."""
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=timeout_s, env=env
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Testbed:
    """The cluster of this session."""

    __test__ = False
    folder: Path
    env: dict[str, str]

    def ask(self, *command: str | Path) -> str:
        return run(command, self.env)

    def submit(self, *command: str | Path) -> str:
        """Run sbatch with these arguments and return the job's id."""
        return self.ask("sbatch", "--parsable", *command).strip()

    def facts(self, job: str) -> dict[str, str]:
        words = self.ask("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, job: str, *states: str, timeout_s: float = 120) -> dict[str, str]:
        """Wait until the job is in one of the states and return its facts."""
        deadline = time.monotonic() + timeout_s
        while (facts := self.facts(job))["JobState"] not in states:
            assert time.monotonic() < deadline, f"job {job} is {facts['JobState']}, not {states}"
            time.sleep(0.2)
        return facts

    def until(self, condition: Callable[[], object], what: str, timeout_s: float = 90) -> None:
        """Wait until `condition` holds."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"{timeout_s} s passed without: {what}"
            time.sleep(0.1)

    def start_now(self, job: str) -> None:
        """Start a requeued job soon instead of when SLURM's own wait is over.

        Not within the same second: slurmd would take the new start for the one just revoked.
        """
        self.wait(job, "PENDING")
        time.sleep(2)
        command = ["scontrol", "update", f"JobId={job}", "StartTime=now"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=self.env)
        assert done.returncode == 0 or "no longer pending" in done.stderr, done.stderr


@pytest.fixture(scope="session")
def needs_slurm() -> None:
    """Skip where there is no SLURM; fail where it is required (REQUIRE_SLURM=1)."""
    missing = [name for name in ("slurmctld", "slurmd", "munged") if not _found(name)]
    missing += [] if os.geteuid() == 0 else ["root's rights"]
    if missing and os.environ.get("REQUIRE_SLURM") == "1":
        pytest.fail(f"REQUIRE_SLURM=1, but there is no {', '.join(missing)}")
    if missing:
        pytest.skip(f"no {', '.join(missing)}")


@pytest.fixture(scope="session")
def testbed(needs_slurm: None) -> Iterator[Testbed]:
    """Four nodes with 8 pretended GPUs each; what is left of jobs ends with the session."""
    base = Path(tempfile.mkdtemp(prefix="testbed-"))
    script = REPO / "slurm" / "testbed"
    plain = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    try:
        run([script, "up", "--dir", base / "bed", "--nodes", "4"], plain, 90)
        yield Testbed(base / "bed", {**plain, "SLURM_CONF": str(base / "bed" / "slurm.conf")})
    finally:
        run([script, "down", "--dir", base / "bed"], plain, 60)
        shutil.rmtree(base)


def _found(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
