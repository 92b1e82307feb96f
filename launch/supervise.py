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

from launch.attempts import (
    RETRY_S,
    TRIES,
    disk_refuses,
    give_up_allocation,
    hand_back,
    run_attempts,
    run_single,
)
from launch.cluster import NoAnswer
from launch.limits import check_limits
from launch.local import LocalLauncher
from launch.ranks import Launcher, rank_command
from launch.rollcall import Absent, LostRanks
from launch.start import check_start
from launch.steps import SrunLauncher, allocation_from
from launch.stop import StopRequest, say, stop_requests
from launch.strikes import Strikes
from launch.target import Training, check_job, training
from launch.work import Job, Work
from pipeline.spec import Misuse


def supervise(arguments: Sequence[str], local_ranks: int | None = None) -> int:
    """Run `train CONFIG ...` or another pipeline job to its end; returns the exit code.

    Raises:
        Misuse: the command, config or a limit is wrong, data are missing, or this is no SLURM job.
        NoAnswer, Absent: SLURM does not answer, or srun cannot start ranks.
        Failure: the URL of the shards does not answer.
    """
    check_job(arguments)
    check_limits(os.environ)
    target = training(arguments) if arguments[0] == "train" else None
    command = rank_command(arguments, sys.executable, os.environ)
    with stop_requests() as stop:
        launcher, job = _launcher(local_ranks)
        if target is None:
            return run_single(launcher, command, job, stop)
        if isinstance(launcher, SrunLauncher):
            try:
                code = _begin(launcher, target, job, stop)
            except OSError as error:
                return disk_refuses(target.folder, error, job, stop)
            if code is not None:
                return code
        if note := target.idle_note(launcher.capacity):
            say(note)
        world = target.largest_world(launcher.capacity)
        work = Work(command, world, target.folder, target.largest_world)
        return run_attempts(launcher, work, job, stop)


def _launcher(local_ranks: int | None) -> tuple[Launcher, Job]:
    """Return the launcher of this host or of this SLURM job.

    Raises:
        NoAnswer: SLURM is silent, several times in a row.
    """
    if local_ranks is not None:
        name = f"{socket.gethostname()}-{os.getpid()}-{time.time():.0f}"
        return LocalLauncher(local_ranks, name), Job(name, 0, in_slurm=False)
    allocation = allocation_from(os.environ)
    job = Job(allocation.job, allocation.restart, in_slurm=True, num_nodes=allocation.num_nodes)
    error = ""
    for tries in range(TRIES):  # jobs start as soon as a controller is back, busy as it is
        try:
            time.sleep(RETRY_S if tries else 0)
            return SrunLauncher(allocation, os.environ), job
        except NoAnswer as reason:
            error = str(reason)
    raise NoAnswer(f"{error}; submit the same command again once `scontrol ping` answers")


def _begin(launcher: SrunLauncher, target: Training, job: Job, stop: StopRequest) -> int | None:
    """Hold the checks at the start; returns an exit code where the job does not go on.

    Raises:
        Misuse, Absent, NoAnswer: as `supervise`.
        OSError: the run's folder cannot be written.
    """
    called = _called(launcher, target)
    try:
        check_start(called, target)
    except (Absent, Misuse, NoAnswer) as error:
        if stop.name:  # what ended the job's ranks ended the roll call's too
            return hand_back(job)
        if isinstance(error, LostRanks):
            return give_up_allocation(target.folder, job, str(error), called)
        raise
    return None


def _called(launcher: SrunLauncher, target: Training) -> SrunLauncher:
    """Return a launcher without the nodes that struck twice; with all where no other is there."""
    struck = Strikes(target.folder).among(launcher.nodes)
    if not 0 < len(struck) < len(launcher.nodes):
        return launcher
    try:
        return launcher.without(struck)
    except NoAnswer as error:
        say(f"{', '.join(struck)} struck twice and must answer all the same: {error}")
        return launcher
