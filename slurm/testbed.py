"""A throw-away, real SLURM cluster on one host: slurmctld, several slurmd and pretended GPUs.

    slurm/testbed up --nodes 2 --gpus 8 && eval "$(slurm/testbed env)" && sinfo
    slurm/testbed down

It lives in a folder of its own (`--dir`), with its own slurm.conf, ports, cluster name and, where
no munged answers, its own munged; it reads no other slurm.conf and several stand side by side.
CPUs, memory and GPUs are pretended, so that jobs as large as the real ones are scheduled.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from testbed_files import Bed, Problem, create, load, write_conf
from testbed_processes import (
    clean_environment,
    is_alive,
    leftovers,
    munge_answers,
    spawn,
    start_munged,
    stop,
    which,
)

PROGRAMS = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "srun": "slurm-client",
    "sbatch": "slurm-client",
    "scontrol": "slurm-client",
    "munged": "munge",
    "munge": "munge",
}
"""Programs that are needed and the Debian packages that hold them."""


CANCEL_S = 8.0
"""KillWait is 5 s in a testbed; jobs that outlast it are killed by their process ids."""


def main(arguments: list[str]) -> int:
    """Run one subcommand; 0 done, 1 failed or not up, 2 wrong use."""
    args = _parser().parse_args(arguments)
    folder = Path(args.dir).expanduser().absolute()
    try:
        if args.command == "up":
            return up(folder, args.nodes, args.gpus, args.cpus, args.wait)
        return {"down": down, "status": status, "env": environment}[args.command](folder)
    except Problem as problem:
        print(f"testbed: {problem}", file=sys.stderr)
        return 2


def up(folder: Path, nodes: int, gpus: int, cpus: int, wait_s: float) -> int:
    """Start the cluster, or find that it runs; return when every node is idle (bounded)."""
    _check_host(nodes, gpus, cpus)
    bed = load(folder)
    if bed is not None and _is_whole(bed):
        if (bed.nodes, bed.gpus, bed.cpus) != (nodes, gpus, cpus):
            raise Problem(
                f"{folder} is up with --nodes {bed.nodes} --gpus {bed.gpus} --cpus {bed.cpus}; "
                f"run `slurm/testbed down` first, or choose another --dir"
            )
    else:
        if bed is not None:
            down(folder)
        bed = create(folder, nodes, gpus, cpus)
        _start(bed)
    return _wait_until_idle(bed, wait_s)


def down(folder: Path) -> int:
    """Stop what `up` started, the steps and tasks of its jobs, and remove the folder."""
    bed = load(folder)
    if bed is None:
        print(f"testbed: nothing is up in {folder}")
        return 0
    _cancel_jobs(bed)
    for kind in ("slurmctld", "slurmd"):  # first who would restart jobs, then who runs them
        stop([process for name, process in bed.started.items() if name.startswith(kind)])
    stop(leftovers(bed), patience_s=1.0)  # slurmstepd does not listen to TERM
    stop([process for name, process in bed.started.items() if name == "munged"])
    shutil.rmtree(folder)
    print(f"testbed: {bed.name} in {folder} is down")
    return 0


def status(folder: Path) -> int:
    """Say what runs: 0 when the controller and all nodes answer, else 1."""
    bed = load(folder)
    if bed is None:
        print(f"testbed: nothing is up in {folder}")
        return 1
    dead = [name for name, process in bed.started.items() if not is_alive(*process)]
    states = {} if dead else _node_states(bed)
    print(f"testbed: {bed.name} in {folder}: {bed.nodes} nodes with {bed.gpus} GPUs each")
    for name, process in bed.started.items():
        print(f"  {name:12} process {process[0]} {'is gone' if name in dead else 'runs'}")
    for name, state in states.items():
        print(f"  {name:12} {state}")
    return 0 if _num_usable(states) == bed.nodes else 1


def environment(folder: Path) -> int:
    """Print the lines a shell evaluates to talk to this cluster."""
    bed = load(folder)
    if bed is None:
        raise Problem(f"nothing is up in {folder}; run `slurm/testbed up` first")
    print(f"export SLURM_CONF='{bed.conf}'")
    return 0


def _is_whole(bed: Bed) -> bool:
    """Return whether controller and nodes were all started and still run."""
    alive = [is_alive(*process) for process in bed.started.values()]
    return len(alive) > bed.nodes and all(alive)


def _parser() -> argparse.ArgumentParser:
    base = os.environ.get("TMPDIR") or str(Path.home() / ".cache")
    parser = argparse.ArgumentParser(
        prog="slurm/testbed", description="A throw-away, real SLURM cluster on this host."
    )
    parser.add_argument("command", choices=("up", "down", "status", "env"))
    parser.add_argument(
        "--dir", default=f"{base}/slurm-testbed", help="its folder (default %(default)s)"
    )
    parser.add_argument("--nodes", type=int, default=2, help="slurmd to start (default 2)")
    parser.add_argument("--gpus", type=int, default=8, help="pretended GPUs a node (default 8)")
    parser.add_argument("--cpus", type=int, default=128, help="pretended CPUs a node")
    parser.add_argument("--wait", type=float, default=60.0, help="seconds to wait for idle nodes")
    return parser


def _check_host(nodes: int, gpus: int, cpus: int) -> None:
    if not (1 <= nodes <= 64 and 0 <= gpus <= 16 and 1 <= cpus <= 1024):
        raise Problem(
            f"--nodes {nodes} --gpus {gpus} --cpus {cpus}: allowed are 1-64 nodes, 0-16 GPUs and "
            "1-1024 CPUs a node"
        )
    if os.geteuid() != 0:
        raise Problem("slurmd must run as root; call it as root or with sudo")
    missing = [program for program in PROGRAMS if which(program) is None]
    if missing:
        packages = " ".join(sorted({PROGRAMS[program] for program in missing}))
        raise Problem(f"{', '.join(missing)} not found; on Debian: apt-get install {packages}")


def _start(bed: Bed) -> None:
    if not munge_answers(""):
        start_munged(bed)
    write_conf(bed)
    spawn(bed, "slurmctld", ["slurmctld", "-D", "-f", str(bed.conf)])
    for index in range(bed.nodes):
        name = bed.node(index)
        spawn(bed, f"slurmd-{name}", ["slurmd", "-D", "-f", str(bed.conf), "-N", name])


def _wait_until_idle(bed: Bed, wait_s: float) -> int:
    deadline = time.monotonic() + wait_s
    while True:
        states = _node_states(bed)
        if _num_usable(states) == bed.nodes:
            print(f"testbed: {bed.name} is up: {bed.nodes} nodes with {bed.gpus} GPUs each")
            print(f'  eval "$(slurm/testbed env --dir {bed.folder})"')
            return 0
        dead = [name for name, process in bed.started.items() if not is_alive(*process)]
        if dead or time.monotonic() > deadline:
            why = f"{', '.join(dead)} ended" if dead else f"after {wait_s:.0f} s: {states}"
            print(f"testbed: not up: {why}; see {bed.folder}/*.log", file=sys.stderr)
            for name in dead:
                print((bed.path / f"{name}.out").read_text()[-2000:], file=sys.stderr)
            return 1
        time.sleep(0.25)


def _num_usable(states: dict[str, str]) -> int:
    return sum(state in ("idle", "mixed", "allocated") for state in states.values())


def _node_states(bed: Bed) -> dict[str, str]:
    lines = _ask(bed, "sinfo", "--noheader", "--Node", "--format=%N %T", "--partition=low")
    return {name: state for name, _, state in (line.partition(" ") for line in lines)}


def _cancel_jobs(bed: Bed) -> None:
    """End jobs while the daemons can still tell their sruns; bounded, as these may hang."""
    if not _is_whole(bed):
        return
    jobs = _ask(bed, "squeue", "--noheader", "--format=%A")
    deadline = time.monotonic() + CANCEL_S
    if jobs:
        _ask(bed, "scancel", *jobs)
    while jobs and time.monotonic() < deadline:
        time.sleep(0.2)
        jobs = _ask(bed, "squeue", "--noheader", "--format=%A")


def _ask(bed: Bed, *command: str) -> list[str]:
    """Return the lines that a SLURM command prints; none where it fails or hangs."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=10, env=clean_environment(bed)
        )
    except subprocess.TimeoutExpired:
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
