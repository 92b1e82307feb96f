"""What this host is called, and what its kernel says of a process."""

import os
import socket
from pathlib import Path


def node_name() -> str:
    """Return this host's name as SLURM has it, which is the one to give to SLURM's commands."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def process_state(pid: int) -> str:
    """Return the kernel's letter for what a process does (R, S, D, T, Z ...), empty without it."""
    return _stat(pid)[0]


def start_time(pid: int) -> str:
    """Return the kernel's start time of a process, empty where it is gone or a zombie."""
    state, *fields = _stat(pid)
    return "" if state in ("", "Z", "X") else fields[18]


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third on: the second, a name, has any sign."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() or [""]
    except OSError:
        return [""]
