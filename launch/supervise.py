"""Keeps one job going: the roll call, then attempts until it is done, wrong or handed back.

    python -m launch supervise train CONFIG [key=value ...]            inside a SLURM job
    python -m launch local --ranks 2 train CONFIG [key=value ...]      processes of this host

Two ways to start ranks (launch.steps, launch.local) behind one contract (launch.ranks).
"""

import os
import socket
import sys
import time
from collections.abc import Sequence

from launch.attempts import Job, Work, give_up_allocation, run_attempts, run_single
from launch.local import LocalLauncher
from launch.ranks import Launcher, idle_note, largest_world, rank_command, rank_python
from launch.rollcall import LostRanks, call, problems, summary
from launch.steps import SrunLauncher, allocation_from
from launch.stop import say, stop_requests
from launch.target import Training, check_job, training
from pipeline.spec import Misuse


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
            try:
                _roll_call(launcher, target)
            except LostRanks as error:
                return give_up_allocation(target.folder, job, str(error))
        needs = target.micro_batches, target.recipe.model.bn_group
        if note := idle_note(launcher.capacity, *needs):
            say(note)
        world = largest_world(launcher.capacity, *needs)
        return run_attempts(launcher, Work(command, world, target.folder), job, stop)


def _launcher(local_ranks: int | None) -> tuple[Launcher, Job]:
    if local_ranks is not None:
        name = f"{socket.gethostname()}-{os.getpid()}-{time.time():.0f}"
        return LocalLauncher(local_ranks, name), Job(name, 0, in_slurm=False)
    allocation = allocation_from(os.environ)
    launcher = SrunLauncher(allocation, os.environ)
    return launcher, Job(allocation.job, allocation.restart, in_slurm=True)


def _roll_call(launcher: SrunLauncher, target: Training) -> None:
    """Let every rank answer, print the plan, and refuse what cannot work.

    Raises:
        Misuse: the data set is missing, or a rank does not see it, or cannot write or connect.
        Failure: the URL of the shards does not answer.
    """
    folder = target.folder.path
    python = rank_python(sys.executable, os.environ)
    srun = launcher.srun(launcher.capacity)
    answers = call(srun, python, launcher.address, target.shards, folder)
    say(f"{summary(answers, launcher.capacity)}; run folder {folder}")
    print(target.plan_text(), flush=True)
    target.check_data()
    if wrong := problems(answers, launcher.capacity):
        raise Misuse("roll call:\n  " + "\n  ".join(wrong))
