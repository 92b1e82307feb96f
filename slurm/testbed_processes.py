"""The processes of a testbed: started detached, found again by id and start time, ended.

An id alone may belong to somebody else by now; together with the kernel's start time it does not.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from testbed_files import Bed, Problem


def which(program: str) -> str | None:
    """Find a program, those for administrators included."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def munge_answers(socket_path: str) -> bool:
    """Return whether a munged answers on this socket (empty: on the system's own)."""
    command = ["munge", "-n", *([f"--socket={socket_path}"] if socket_path else [])]
    try:
        return subprocess.run(command, capture_output=True, timeout=5).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def start_munged(bed: Bed) -> None:
    """Start a munged with its own socket and key; returns when it answers."""
    key = bed.path / "munge.key"
    key.touch(mode=0o400)
    key.write_bytes(os.urandom(128))
    bed.socket = f"{bed.folder}/munge.socket"
    files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "seed-file": "seed"}
    options = [f"--{option}={bed.folder}/munge.{end}" for option, end in files.items()]
    # --force: the folder may lie below one that only its owner may enter.
    spawn(bed, "munged", ["munged", "--foreground", "--force", *options])
    deadline = time.monotonic() + 10
    while not munge_answers(bed.socket):
        if time.monotonic() > deadline:
            raise Problem(f"munged does not answer; see {bed.folder}/munged.out")
        time.sleep(0.1)


def spawn(bed: Bed, name: str, command: list[str]) -> None:
    """Start a daemon in the foreground of a session of its own and note its process."""
    program = which(command[0])
    assert program is not None
    with (bed.path / f"{name}.out").open("ab") as log:
        process = subprocess.Popen(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=clean_environment(bed),
            cwd=bed.folder,
            start_new_session=True,
        )
    bed.started[name] = [process.pid, _start_time(process.pid)]
    bed.save()


def clean_environment(bed: Bed) -> dict[str, str]:
    """The caller's environment without anything of another cluster, pointing to this one."""
    prefixes = ("SLURM", "SBATCH", "SALLOC", "SRUN")
    rest = {key: value for key, value in os.environ.items() if not key.startswith(prefixes)}
    return {**rest, "SLURM_CONF": str(bed.conf)}


def leftovers(bed: Bed) -> list[list[int]]:
    """Processes of this cluster's jobs: slurmstepd and tasks, told by what slurmd gave them."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            values = (path / "environ").read_bytes().split(b"\0")
            is_stepd = (path / "comm").read_text().strip() == "slurmstepd"
        except OSError:
            continue
        ours = f"SLURM_CONF={bed.conf}".encode() in values
        in_job = any(value.startswith(b"SLURMD_NODENAME=") for value in values)
        if ours and (in_job or is_stepd):
            found.append([int(path.name), _start_time(int(path.name))])
    return found


def stop(processes: list[list[int]], patience_s: float = 5.0) -> None:
    """End the processes: TERM, and KILL for those still there after `patience_s`."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid, start in processes:
            if is_alive(pid, start):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        deadline = time.monotonic() + patience_s
        while any(is_alive(*process) for process in processes) and time.monotonic() < deadline:
            time.sleep(0.05)


def is_alive(pid: int, start: int) -> bool:
    """Return whether the process that started then still runs."""
    return start > 0 and _start_time(pid) == start


def _start_time(pid: int) -> int:
    """Return the kernel's start time of a process; 0 where it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])
