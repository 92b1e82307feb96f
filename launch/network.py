"""Runs the all-reduce between the nodes of a job (launch/allreduce.py), in a bounded time."""

import json
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress

from launch.allreduce import MARK
from launch.cluster import NoAnswer
from launch.limits import limit_s
from launch.ranks import meeting_port, rank_environment
from launch.steps import SrunLauncher, clear_steps

SHORTEST_S = 10.0
"""Torch alone takes some seconds to load; with less time there is nothing to be measured."""
SLOW_MB_S = 100.0
"""Less is a network for administration, or a wrong interface: a step would wait for gradients."""
REMEDY = "see NETWORK_INTERFACE in slurm/site.env (`ip -brief address` on a node lists them)"


def network(
    launcher: SrunLauncher,
    python: Sequence[str],
    env: Mapping[str, str],
    interface: str,
    left_s: float,
) -> tuple[str, str]:
    """Return (what was measured, what is doubtful); both empty on one node or where not wanted.

    `interface` is the one over which the nodes reach the first one. Takes NETWORK_TEST_S of the
    environment at most (0 leaves the test out), and no more than `left_s`.
    """
    wanted_s = limit_s("NETWORK_TEST_S", env)
    if len(launcher.nodes) < 2 or wanted_s <= 0:
        return "", ""
    if left_s < min(wanted_s, SHORTEST_S):
        return "", "network  not measured: the other checks took the time (START_CHECKS_S)"
    said, error = _run(launcher, python, min(wanted_s, left_s))
    named = env.get("NETWORK_INTERFACE") or env.get("NCCL_SOCKET_IFNAME") or interface or "unknown"
    nodes = f"{len(launcher.nodes)} nodes over {named}"
    line = next((line.partition(MARK)[2] for line in said.splitlines() if MARK in line), "")
    if not line:
        return "", f"network  no all-reduce between {nodes}: {error}; {REMEDY}"
    found = json.loads(line)
    text = (
        f"network  {found['mb_s']:.0f} MB/s in an all-reduce of {found['num_bytes'] >> 20} MB "
        f"between {nodes} ({found['backend']})"
    )
    return (text, "") if found["mb_s"] >= SLOW_MB_S else ("", f"{text} is slow: {REMEDY}")


def _run(launcher: SrunLauncher, python: Sequence[str], most_s: float) -> tuple[str, str]:
    """Run one process on each node; returns (stdout, what went wrong)."""
    job, restart = launcher.allocation.job, launcher.allocation.restart
    port = meeting_port(f"network-{job}", restart, 0)
    process = subprocess.Popen(
        [*launcher.srun(len(launcher.nodes), each_node=1), *python, "-m", "launch.allreduce",
         f"{most_s:.0f}"],
        env=rank_environment(launcher.address, port, 0, 1),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        said, errors = process.communicate(timeout=most_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        with suppress(NoAnswer):
            clear_steps(job)
        process.kill()
        said, _ = process.communicate()
        return said, f"not done in {most_s:.0f} s"
    lines = [line for line in errors.strip().splitlines() if "srun: error" not in line]
    return said, (lines or errors.strip().splitlines() or ["it said nothing"])[-1]
