"""What a run was made with: code commit, library versions, machine; as flat text."""

import os
import platform
import socket
import subprocess
from importlib import metadata
from pathlib import Path

import pipeline

LIBRARIES = (
    "torch", "torchvision", "deepspeed", "mlflow", "webdataset", "safetensors", "numpy", "pillow"
)  # fmt: skip


def describe() -> dict[str, str]:
    """Return what decides results: code commit and library versions, the same on every machine."""
    return {**commit(Path(pipeline.__file__).resolve().parent.parent), **versions()}


def commit(folder: Path) -> dict[str, str]:
    """Return `commit` (hash, 'unknown' outside of git) and `uncommitted` (true, false)."""
    head = _git(folder, "rev-parse", "HEAD")
    if head is None:
        return {"commit": "unknown"}
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": head, "uncommitted": "true" if changed else "false"}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that decide results."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str]:
    """Return the host and, inside a SLURM job, its id, nodes and number of tasks."""
    slurm = {
        "slurm_job": os.environ.get("SLURM_JOB_ID", ""),
        "slurm_nodes": os.environ.get("SLURM_JOB_NODELIST", ""),
        "slurm_tasks": os.environ.get("SLURM_NTASKS", ""),
    }
    facts = {"host": socket.gethostname(), "num_cpus": str(os.cpu_count()), **slurm}
    return {name: text for name, text in facts.items() if text}


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=20, env=environment, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
