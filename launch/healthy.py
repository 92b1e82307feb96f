"""Chooses the nodes of the next attempt: without those that struck twice, where enough are left."""

import os
from collections.abc import Collection
from dataclasses import dataclass, replace

from launch.cluster import NoAnswer, job_facts
from launch.exclusion import exclude, others_enough, with_excluded
from launch.limits import least_world
from launch.ranks import Launcher
from launch.stop import say
from launch.strikes import Strikes
from launch.work import Job, Work

QUICK_S = 5.0
"""A requeue must not wait longer for SLURM's answer about other nodes: the grace runs."""


@dataclass(frozen=True)
class Choice:
    """Where the next attempt runs; without a launcher the job needs other nodes."""

    launcher: Launcher | None
    work: Work
    why: str = ""


def choose(launcher: Launcher, work: Work, strikes: Strikes, job: Job) -> Choice:
    """Leave out the nodes that struck twice, or ask for others, or go on with what there is."""
    struck = strikes.among(launcher.nodes)
    if not struck:
        return Choice(launcher, work)
    why = "; ".join(f"{node} ended attempts twice ({cause})" for node, cause in struck.items())
    rest = len(launcher.nodes) - len(struck)
    world = work.fits(rest * launcher.ranks_per_node) if rest else 0
    if world and world >= least_world(os.environ) * work.world:
        try:
            choice = Choice(launcher.without(struck), replace(work, world=world))
        except NoAnswer as error:
            say(f"{why}, and is used again: {error}")
            return Choice(launcher, work)
        say(f"{why}: left out, {world} of {work.world} ranks go on")
        return choice
    if job.in_slurm and are_replaceable(job, struck):
        return Choice(None, work, f"{why}: other nodes are asked for")
    say(f"{why}: used again, as the partition has too few other nodes")
    return Choice(launcher, work)


def are_replaceable(job: Job, nodes: Collection[str]) -> bool:
    """Return whether the cluster has enough nodes beside these; not where it does not say."""
    try:
        return others_enough(job_facts(job.id), nodes, job.num_nodes)
    except NoAnswer as error:
        say(str(error))
        return False


def to_exclude(job: Job, strikes: Strikes) -> str:
    """Return the list of nodes that a job shall come back without, empty where it may have all.

    It is asked before the requeue, which ends this process within seconds.
    """
    nodes = strikes.left_out()
    if not nodes:
        return ""
    try:
        facts = job_facts(job.id, QUICK_S)
        enough = others_enough(facts, nodes, job.num_nodes, QUICK_S)
        return with_excluded(facts, nodes) if enough else ""
    except NoAnswer as error:
        say(f"{', '.join(nodes)} cannot be excluded: {error}")
        return ""


def leave_behind(job: Job, names: str) -> None:
    """Have a job that was requeued come back without the nodes of a list."""
    try:
        if names:
            exclude(job.id, names)
            say(f"job {job.id} comes back without {names}")
    except NoAnswer as error:
        say(f"{names} could not be excluded: {error}")
