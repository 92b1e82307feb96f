"""What follows when an attempt has ended: decided from files, never from srun's exit code.

    outcome file   asked to stop   what follows
    done           any             0
    misuse         any             2, also where one rank refused and the others left anything else
    saved          any             back into the queue (75 without SLURM)
    failed, none   yes             back into the queue: the grace period is short
    failed, none   no, also hung   the step is started again inside the allocation
    failed         no, same bad    1, a further restart would read this sample again
                   sample twice
    saved          no, a rank died the same: the others only saved as srun ended them
    failed, none   no, node lost   back into the queue: SLURM finds nodes that answer

Both ways to go on are bounded by progress: a new committed checkpoint makes the count start anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from launch.ledger import CRASHES, Attempt
from launch.ranks import End
from pipeline.data.reader import BrokenSample
from pipeline.run.folder import DONE, FAILED, MISUSE, SAVED, Outcome, Status

MAX_RESTARTS = 3
MAX_INTERRUPTIONS = 10
"""Preemptions in a row without a new checkpoint: more than chance on a busy cluster."""


class Action(StrEnum):
    """What the supervisor does next."""

    EXIT = "exit"
    RESTART = "restart"
    REQUEUE = "requeue"


@dataclass(frozen=True)
class Verdict:
    """The action, the exit code that goes with it, and why."""

    action: Action
    code: int
    why: str


def status_of(outcome: Outcome | None, asked_to_stop: bool, end: End, hung: bool = False) -> str:
    """Return the word that the ledger keeps for how an attempt ended.

    A rank that died first makes it a crash: others may then save, but only on srun's TERM. So it
    is with a hang, which ends by ranks that leave.
    """
    ended = outcome.status if outcome is not None else Status.FAILED
    if ended is Status.FAILED and end.code == MISUSE and not end.died:
        return Status.MISUSE.value  # one rank refused, and the others only lost it
    if ended in (Status.DONE, Status.MISUSE):
        return ended.value
    if asked_to_stop:
        return "saved" if ended is Status.SAVED else "stopped"
    if hung:
        return "hung"
    if end.lost:
        return "lost"
    return "saved" if ended is Status.SAVED and not end.died else "crashed"


def decide(status: str, attempts: Sequence[Attempt]) -> Verdict:
    """Return what follows an attempt that ended with `status` (the last of `attempts`)."""
    if status == "done":
        return Verdict(Action.EXIT, DONE, "done")
    if status == "misuse":
        return Verdict(Action.EXIT, MISUSE, "refused; the same command would be refused again")
    crashes, interruptions = without_progress(attempts)
    step = max(attempts[-1].last_step or 0, 0)
    if status in CRASHES:
        if sample := _broken_again(attempts):
            why = f"twice after step {step} the same sample could not be used: {sample}"
            return Verdict(Action.EXIT, FAILED, why)
        if crashes >= MAX_RESTARTS:
            why = f"{crashes} restarts without a new checkpoint after step {step}"
            return Verdict(Action.EXIT, FAILED, why)
        return Verdict(Action.RESTART, FAILED, f"restart {crashes + 1} of {MAX_RESTARTS}")
    if interruptions >= MAX_INTERRUPTIONS:
        why = f"interrupted {interruptions} times without a new checkpoint after step {step}"
        return Verdict(Action.EXIT, FAILED, why)
    return Verdict(Action.REQUEUE, SAVED, f"{status} at step {step}, to be continued")


def _broken_again(attempts: Sequence[Attempt]) -> str:
    """Return shard and sample that ended the last attempt and an earlier one at the same step."""
    last = attempts[-1]
    sample = _broken_sample(last)
    ended = [
        attempt
        for attempt in attempts
        if (attempt.status, attempt.last_step) == ("crashed", last.last_step)
        and _broken_sample(attempt) == sample
    ]
    return sample if len(ended) >= 2 else ""


def _broken_sample(attempt: Attempt) -> str:
    """Return what an attempt's reason says of a broken sample, without what other ranks add."""
    return attempt.reason.partition(f"{BrokenSample.__name__}: ")[2].partition(";")[0]


def without_progress(attempts: Sequence[Attempt]) -> tuple[int, int]:
    """Count (crashes, interruptions) of attempts that were restarts and brought nothing new.

    The first attempt of a job is no restart, and one that committed a checkpoint ends the count.
    """
    crashes = interruptions = 0
    steps = [attempt.first_step for attempt in attempts[1:]] + [None]
    for index in range(len(attempts) - 1, 0, -1):
        attempt, next_first = attempts[index], steps[index]
        if _last_step(attempt, next_first) > attempt.first_step:
            break
        crashes += attempt.status in CRASHES
        interruptions += attempt.status not in CRASHES
    return crashes, interruptions


def _last_step(attempt: Attempt, next_first: int | None) -> int:
    """Return where an attempt came; for one cut off, where the next one found the run."""
    if attempt.last_step is not None:
        return attempt.last_step
    return attempt.first_step if next_first is None else next_first
