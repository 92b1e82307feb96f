"""Keeps one job going: checks, then attempts until it is done, wrong or handed back.

    python -m launch supervise train CONFIG [key=value ...]            inside a SLURM job
    python -m launch local --ranks 2 train CONFIG [key=value ...]      processes of this host

Two ways to start ranks (launch.steps, launch.local) behind one contract (launch.ranks).
"""

import os
import socket
import sys
import time
from collections.abc import Sequence

from launch.attempts import give_up_allocation, hand_back, run_attempts, run_single
from launch.cluster import NoAnswer
from launch.local import LocalLauncher
from launch.ranks import Launcher, rank_command
from launch.rollcall import Absent, LostRanks
from launch.start import check_start
from launch.steps import SrunLauncher, allocation_from
from launch.stop import say, stop_requests
from launch.strikes import Strikes
from launch.target import Training, check_job, training
from launch.work import Job, Work


def supervise(arguments: Sequence[str], local_ranks: int | None = None) -> int:
    """Run `train CONFIG ...` or another pipeline job to its end; returns the exit code.

    Raises:
        Misuse: the command or config is wrong, data are missing, or this is no SLURM job.
        NoAnswer, Absent: SLURM does not answer, or srun cannot start ranks.
        Failure: the URL of the shards does not answer.
    """
    check_job(arguments)
    target = training(arguments) if arguments[0] == "train" else None
    command = rank_command(arguments, sys.executable, os.environ)
    with stop_requests() as stop:
        launcher, job = _launcher(local_ranks)
        if target is None:
            return run_single(launcher, command, job, stop)
        if isinstance(launcher, SrunLauncher):
            called = _called(launcher, target)
            try:
                check_start(called, target)
            except LostRanks as error:
                return give_up_allocation(target.folder, job, str(error), called)
            except (Absent, NoAnswer):
                if stop.name:  # what ended the job's ranks ended the roll call's too
                    return hand_back(job)
                raise
        if note := target.idle_note(launcher.capacity):
            say(note)
        world = target.largest_world(launcher.capacity)
        work = Work(command, world, target.folder, target.largest_world)
        return run_attempts(launcher, work, job, stop)


def _launcher(local_ranks: int | None) -> tuple[Launcher, Job]:
    if local_ranks is not None:
        name = f"{socket.gethostname()}-{os.getpid()}-{time.time():.0f}"
        return LocalLauncher(local_ranks, name), Job(name, 0, in_slurm=False)
    allocation = allocation_from(os.environ)
    launcher = SrunLauncher(allocation, os.environ)
    return launcher, Job(allocation.job, allocation.restart, in_slurm=True)


def _called(launcher: SrunLauncher, target: Training) -> SrunLauncher:
    """Return a launcher without the nodes that struck twice; with all where no other is there."""
    struck = Strikes(target.folder).among(launcher.nodes)
    return launcher.without(struck) if 0 < len(struck) < len(launcher.nodes) else launcher
