"""The storm's own SLURM cluster: asked by bounded commands, its nodes killed and brought back."""

import contextlib
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
RELEASE_S = 2.0
"""slurmd takes a start within the second of a requeue for the one that was just revoked."""
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")


class Refused(RuntimeError):
    """A SLURM command failed; the storm goes on without it."""


class NoCluster(RuntimeError):
    """The testbed cannot be brought up here."""


@dataclass
class Cluster:
    """A testbed in `folder`; `down_nodes` are those that were killed and are not back yet."""

    folder: Path
    down_nodes: set[str] = field(default_factory=set)
    _pending_since: dict[str, float] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        """The caller's environment, pointing to this cluster alone."""
        prefixes = ("SLURM", "SBATCH", "SALLOC", "SRUN")
        rest = {key: value for key, value in os.environ.items() if not key.startswith(prefixes)}
        return {**rest, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def ask(self, *command: str | Path, env: dict[str, str] | None = None) -> str:
        """Run a SLURM command; returns what it prints.

        Raises:
            Refused: with what it said.
        """
        try:
            done = subprocess.run(
                list(map(str, command)),
                capture_output=True,
                text=True,
                timeout=60,
                env=env or self.env,
            )
        except subprocess.TimeoutExpired:
            raise Refused(f"{command[0]}: no answer in 60 s") from None
        if done.returncode:
            raise Refused(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
        return done.stdout.strip()

    def facts(self, job: str) -> dict[str, str]:
        """Return what scontrol knows of a job."""
        words = self.ask("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def release(self, job: str, facts: dict[str, str]) -> str:
        """Start a job that waits after a requeue soon; returns what was done, if anything."""
        if facts["JobState"] != "PENDING":
            self._pending_since.pop(job, None)
            return ""
        since = self._pending_since.setdefault(job, time.monotonic())
        if time.monotonic() - since < RELEASE_S:
            return ""
        with contextlib.suppress(Refused):
            if "held" in facts.get("Reason", "").lower():
                self.ask("scontrol", "release", job)
                return "released a job that SLURM held"
            if facts.get("Reason") == "BeginTime":
                self.ask("scontrol", "update", f"JobId={job}", "StartTime=now")
        return ""

    def nodes_of(self, facts: dict[str, str]) -> list[str]:
        """Return the names of the nodes that a running job has."""
        return self.ask("scontrol", "show", "hostnames", facts["NodeList"]).split()

    def kill_node(self, node: str) -> None:
        """Kill a node's slurmd and all that it started, as a power cut does."""
        files, _ = _testbed_modules()
        bed = files.load(self.folder)
        self.down_nodes.add(node)
        marks = (f"SLURM_CONF={bed.conf}".encode(), f"SLURMD_NODENAME={node}".encode())
        victims = [pid for pid, env in environments() if all(mark in env for mark in marks)]
        # Nobody may live to tell the controller how the others died: a power cut takes all at once.
        stepds = {parent for pid in victims if _is_stepd(parent := _parent(pid))}
        for pid in (bed.started[f"slurmd-{node}"][0], *stepds, *victims):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def bring_back(self, node: str) -> None:
        """Start a killed node's slurmd again."""
        files, processes = _testbed_modules()
        bed = files.load(self.folder)
        command = ["slurmd", "-D", "-f", str(bed.conf), "-N", node]
        processes.spawn(bed, f"slurmd-{node}", command)
        self.down_nodes.discard(node)


@contextlib.contextmanager
def cluster(num_nodes: int) -> Iterator[Cluster]:
    """A testbed of `num_nodes` nodes; it ends with all its jobs.

    Raises:
        NoCluster: it does not come up; it has said why.
    """
    base = Path(tempfile.mkdtemp(prefix="soak-"))
    script, found = REPO / "slurm" / "testbed", Cluster(base / "bed")
    try:
        options = ("--nodes", str(num_nodes), "--gpus", "0", "--cpus", "4")
        up = [script, "up", "--dir", found.folder, *options]
        if code := subprocess.run(up, timeout=120, env=found.env).returncode:
            raise NoCluster(f"slurm/testbed up ended with {code}; what it says above is to be done")
        yield found
    finally:
        subprocess.run([script, "down", "--dir", found.folder], timeout=120, env=found.env)
        shutil.rmtree(base, ignore_errors=True)


def environments() -> Iterator[tuple[int, list[bytes]]]:
    """Give the id of each process with the lines of its environment."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield int(path.name), (path / "environ").read_bytes().split(b"\0")


def _is_stepd(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() == "slurmstepd"
    except OSError:
        return False


def _parent(pid: int) -> int:
    """Return the parent's id; a slurmstepd does not have its node's name, its tasks do."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _testbed_modules() -> tuple[Any, Any]:
    """The testbed is a script with its modules beside it, not a package."""
    if str(REPO / "slurm") not in sys.path:
        sys.path.insert(0, str(REPO / "slurm"))
    return importlib.import_module("testbed_files"), importlib.import_module("testbed_processes")
