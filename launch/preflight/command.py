"""`python -m launch preflight CONFIG`: what would stop a job, found before it is queued.

Mistakes (config, data set, disk, a request that the cluster can never grant) end with exit code
2; what only makes a run less safe (cluster settings, MLflow not reachable) is a warning.
"""

import os
import socket
from collections.abc import Sequence
from pathlib import Path

from launch.answer import existing, look_at_node
from launch.preflight.data import check_data, check_samples
from launch.preflight.disk import check_room, check_speed
from launch.preflight.findings import Findings
from launch.preflight.memory import check_memory
from launch.preflight.slurm import check_cluster
from launch.preflight.tracking import check_mlflow
from launch.preflight.versions import check_versions
from launch.preflight.world import check_world
from launch.requests import ROOT, Request, request_of, script_for
from launch.target import training


def preflight(config: Path, overrides: Sequence[str], ranks: int | None) -> int:
    """Check a training and print its plan; returns 0, or 2 where something must be put right.

    Raises:
        Misuse: the config itself is wrong, so that nothing else can be checked.
    """
    config = config.absolute()
    os.chdir(ROOT)  # where the job runs: paths in configs and overrides count from here
    target = training(["train", str(config), *overrides])
    print(target.plan_text())
    found = Findings()
    script = script_for(config)
    request = request_of(script) if script else None
    host = socket.gethostname()
    node = look_at_node(existing(target.folder.path), "", "", ())
    found.good.append(f"config   {config}")
    check_data(target, found)
    check_samples(target, found)
    check_room(target, found)
    check_speed(target, node, host, found)
    check_versions(node.versions, host, found)
    check_memory(target, node, host, _ranks(request, ranks), found)
    check_world(target, request, ranks, found)
    check_cluster(script, [str(config), *overrides], found)
    check_mlflow(target, found)
    return found.show()


def _ranks(request: Request | None, ranks: int | None) -> tuple[int, int]:
    """Return how many ranks there will be: in all, and on a node."""
    total = ranks or (request.ranks if request else 1)
    return total, min(total, request.ntasks_per_node or 1) if request else total
