"""What a run is doing, judged from what its folder and SLURM say.

newest attempt      what else is seen                       state
none, or before     the lease lives                         running, without a supervisor
not ended           SLURM will start the job again          waiting in the queue
                    lease or beats live                     running; hung where ranks are silent
                    the supervisor alone lives              running at first, then restarting
                    nobody does                             cut off
done                                                        done
saved, stopped ...  SLURM will start the job again          waiting in the queue, else saved
crashed, hung       the ledger allows another try           restarting, else failed
"""

from enum import StrEnum
from typing import NamedTuple

from launch.ledger import CRASHES, Attempt
from launch.run_facts import Facts
from pipeline.run.beats import Section
from pipeline.run.clock import duration
from pipeline.run.folder import Status
from pipeline.run.lease import STALE_S

SETUP_S = 120.0
"""A supervisor whose ranks show nothing for so long has none; large worlds take a minute."""


class State(StrEnum):
    """What a run is doing."""

    NEW = "not started"
    RUNNING = "running"
    HUNG = "hung"
    WAITING = "waiting in the queue"
    RESTARTING = "restarting"
    SAVED = "saved"
    DONE = "done"
    FAILED = "failed"
    CUT_OFF = "cut off"


class Judged(NamedTuple):
    """A state and what it was judged by, in a few words."""

    state: State
    why: str = ""


GO_ON = "the same command goes on from the last checkpoint"


def judge(facts: Facts) -> Judged:
    """Return what the run is doing."""
    last = facts.last
    if last is None or facts.alone:
        return _alone(facts)
    if waiting := _waiting(facts):
        return Judged(State.WAITING, waiting)
    return _open(facts, last) if last.ended_s is None else _ended(facts, last)


def _alone(facts: Facts) -> Judged:
    """Judge a run whose newest process has no supervisor."""
    if facts.lease is not None and facts.lease.lives:
        return _going(facts, f"process {facts.lease.pid} on {facts.lease.host}, unsupervised")
    if facts.outcome is not None:
        return _left(facts.outcome.status, facts.outcome.reason)
    if facts.lease is not None:
        return Judged(State.CUT_OFF, f"its process is gone; {GO_ON}")
    return Judged(State.NEW, "no attempt was made")


def _waiting(facts: Facts) -> str:
    """Return why SLURM holds the job, empty where it does not."""
    job = facts.job or {}
    if job.get("JobState") not in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "CONFIGURING"):
        return ""
    begin = job.get("StartTime", "Unknown")
    start = f", start expected at {begin.replace('T', ' ')}" if begin[:1].isdigit() else ""
    return f"{job['JobState']} ({job.get('Reason', '')}){start}"


def _open(facts: Facts, last: Attempt) -> Judged:
    """Judge an attempt whose end is not in the ledger."""
    age_s = facts.now_s - last.started_s
    heard = len(facts.beats) > len(facts.silent)
    lives = facts.lease is not None and facts.lease.lives
    if facts.supervisor_lives is False and not lives:
        if facts.outcome is not None:
            return _left(facts.outcome.status, facts.outcome.reason)
        return Judged(State.CUT_OFF, f"its supervisor is gone; {GO_ON}")
    if facts.outcome is not None and not lives:
        state = State.RESTARTING if facts.outcome.status is Status.FAILED else State.RUNNING
        return Judged(state, f"its ranks end: {facts.outcome.status.value}")
    if lives or heard:
        return _going(facts)
    if facts.supervisor_lives or age_s < STALE_S:
        if age_s < SETUP_S:
            return Judged(State.RUNNING, f"its ranks start, since {duration(age_s)}")
        return Judged(State.RESTARTING, "its ranks are gone, its supervisor is there")
    return Judged(State.CUT_OFF, f"no sign of life; {GO_ON}")


def _going(facts: Facts, why: str = "") -> Judged:
    """Judge a run whose rank 0 lives: running, unless ranks are silent."""
    if facts.hang:
        return Judged(State.HUNG, facts.hang)
    if facts.silent:
        blamed = facts.silent[0]
        age = duration(facts.now_s - blamed.beat_s)
        return Judged(
            State.HUNG,
            f"rank {blamed.rank} on {blamed.host} gave no sign of life for {age}, "
            f"in section {blamed.section} at step {blamed.step}",
        )
    if facts.late is not None and facts.late.section != Section.STEP:
        why = why or f"in section {facts.late.section}"
    return Judged(State.RUNNING, why)


def _ended(facts: Facts, last: Attempt) -> Judged:
    """Judge by the end that the supervisor noted."""
    if last.status in ("done", "misuse"):
        return _left(Status(last.status), last.reason)
    if last.status in CRASHES:
        from launch.decide import Action, decide  # needs numpy, which takes a while to load

        same_job = [attempt for attempt in facts.attempts if attempt.job == last.job]
        verdict = decide("crashed", same_job)
        if verdict.action is Action.EXIT:
            return Judged(State.FAILED, verdict.why)
        if _goes_on(facts, last):
            return Judged(State.RESTARTING, verdict.why)
        return Judged(State.CUT_OFF, f"its supervisor is gone; {GO_ON}")
    if facts.supervisor_lives:
        return Judged(State.RESTARTING, f"{last.status}; the job goes back into the queue")
    if last.status == "saved":
        return _left(Status.SAVED, last.reason)
    return Judged(State.CUT_OFF, f"{last.status}: {last.reason}; {GO_ON}")


def _goes_on(facts: Facts, last: Attempt) -> bool:
    """Return whether another attempt will follow, as far as can be seen."""
    if facts.supervisor_lives is not None:
        return facts.supervisor_lives
    return facts.now_s - (last.ended_s or 0.0) < STALE_S


def _left(status: Status, reason: str) -> Judged:
    state = {
        Status.DONE: State.DONE,
        Status.SAVED: State.SAVED,
        Status.FAILED: State.FAILED,
        Status.MISUSE: State.FAILED,
    }[status]
    if state is State.SAVED:
        return Judged(state, f"{reason}; {GO_ON}" if reason else GO_ON)
    return Judged(state, reason)
