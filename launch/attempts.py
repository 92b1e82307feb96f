"""The loop of attempts: start the ranks, wait, decide from what they left, start them again.

Ranks leave an outcome file and checkpoints in the run's folder; with the ledger that is all a
decision needs (launch.decide). After a stop request no new step is started.
"""

import socket
import time
from collections.abc import Sequence

from launch.blame import Places, blamed
from launch.cluster import NoAnswer, requeue
from launch.decide import MAX_INTERRUPTIONS, Action, Verdict, decide, status_of
from launch.healthy import choose, leave_behind, to_exclude
from launch.ledger import Attempt, Ledger
from launch.ranks import End, Launcher
from launch.stop import StopRequest, say, watch
from launch.strikes import Strikes
from launch.work import Job, Work
from pipeline.run.folder import DONE, FAILED, MISUSE, SAVED, Outcome, RunFolder
from pipeline.run.hang import hang_text

TRIES, RETRY_S = 3, 5.0
"""A controller may be busy; the signal's lead of 180 s leaves room for a second word."""


def run_attempts(launcher: Launcher, work: Work, job: Job, stop: StopRequest) -> int:
    """Make attempts at a training until it ends, fails for good or must be queued again."""
    ledger, strikes = Ledger(work.folder), Strikes(work.folder)
    while not stop.name:
        try:
            place = choose(launcher, work, strikes, job)
            if place.launcher is None:
                return give_up_allocation(work.folder, job, place.why)
            status = _attempt(place.launcher, place.work, ledger, job, stop)
            attempts = ledger.attempts(job.id)
        except OSError as error:
            return disk_refuses(work.folder, error, job, stop)
        verdict = decide(status, attempts)
        _tell(verdict, attempts, strikes)
        if verdict.action is Action.EXIT:
            return verdict.code
        if verdict.action is Action.REQUEUE:
            break
    return hand_back(job, strikes)


def give_up_allocation(
    folder: RunFolder, job: Job, why: str, launcher: Launcher | None = None
) -> int:
    """Note that no attempt was possible, as nodes do not answer, and ask for other nodes.

    With the launcher of the nodes that were called, those that `why` names get a strike.
    """
    ledger, strikes = Ledger(folder), Strikes(folder)
    step = folder.latest_step()
    attempt = ledger.begin(job.id, job.restart, socket.gethostname(), step)
    ledger.end(attempt, "lost", step, why)
    if launcher is not None:
        _strike(strikes, launcher, attempt, "lost", why)
    attempts = ledger.attempts(job.id)
    verdict = decide("lost", attempts)
    _tell(verdict, attempts, strikes)
    return verdict.code if verdict.action is Action.EXIT else hand_back(job, strikes)


def run_single(launcher: Launcher, command: Sequence[str], job: Job, stop: StopRequest) -> int:
    """Run a job of one process that keeps no outcome file: its exit code tells.

    Where its node is lost it goes back into the queue, as often as a training without progress.
    """
    if stop.name:
        return hand_back(job)
    end = watch(launcher.start(command, 1, 0), stop)
    if end.code in (DONE, MISUSE):
        return end.code
    if end.code == SAVED or stop.name or (end.lost and job.restart < MAX_INTERRUPTIONS):
        return hand_back(job)
    say(f"FAILED: {end.note}")
    return FAILED


def _attempt(launcher: Launcher, work: Work, ledger: Ledger, job: Job, stop: StopRequest) -> str:
    """Make one attempt, write both its ends into the ledger and return its status."""
    folder = work.folder
    attempt = ledger.begin(job.id, job.restart, socket.gethostname(), folder.latest_step())
    ranks = "1 rank" if work.world == 1 else f"{work.world} ranks"
    say(f"attempt {attempt.number} starts with {ranks}")
    end = watch(launcher.start(work.command, work.world, attempt.number), stop)
    outcome = folder.read_outcome(attempt.number)
    hang = hang_text(folder, attempt.number)
    status = status_of(outcome, bool(stop.name), end, bool(hang))
    reason = _cause(folder, attempt, outcome, end, stop, hang)
    ledger.end(attempt, status, folder.latest_step(), reason)
    _strike(Strikes(folder), launcher, attempt, status, reason)
    return status


def _strike(
    strikes: Strikes, launcher: Launcher, attempt: Attempt, status: str, reason: str
) -> None:
    """Note which nodes ended an attempt, if any did."""
    places = Places(launcher.nodes, launcher.ranks_per_node)
    if nodes := blamed(status, reason, places):
        strikes.note(nodes, attempt.number, f"{status}: {reason}")


def _cause(
    folder: RunFolder,
    attempt: Attempt,
    outcome: Outcome | None,
    end: End,
    stop: StopRequest,
    hang: str,
) -> str:
    """Put together why an attempt ended: the failing rank's own words before all others'.

    After a hang the ranks end each other, so the watchdog's words say it all.
    """
    if outcome is not None and outcome.exit_code == DONE:
        return ""
    if hang:
        return "; ".join(filter(None, [stop.name, hang]))
    said = outcome.reason if outcome is not None else ""
    note = end.note if outcome is None or outcome.exit_code == FAILED or end.died else ""
    words = [note, said] if end.killed else [said, note]
    told = folder.read_rank_error(attempt.number)
    causes = [stop.name, told, *(text for text in words if text not in told)]
    return "; ".join(filter(None, dict.fromkeys(causes)))


def _tell(verdict: Verdict, attempts: Sequence[Attempt], strikes: Strikes) -> None:
    """Print what happened; after the last attempt, the cause first and then the history."""
    last = attempts[-1]
    if verdict.action is not Action.EXIT:
        say(f"{last.describe()}; {verdict.why}")
        return
    word = {DONE: "DONE", MISUSE: "REFUSED"}.get(verdict.code, "FAILED")
    say(f"{word}: {verdict.why}" if verdict.code else word)
    if last.reason:
        say(f"cause: {last.reason}")
    if nodes := strikes.left_out():
        say(f"left out after two strikes (attempts/nodes.json): {', '.join(nodes)}")
    for attempt in attempts:
        say(f"  {attempt.describe()}")


def disk_refuses(folder: RunFolder, error: OSError, job: Job, stop: StopRequest) -> int:
    """Tell of files that could not be written; a job that has to stop comes back all the same."""
    what = f"{error.filename or folder.path}: {error.strerror or error}; make room or give rights"
    say(f"{'not recorded' if stop.name else 'FAILED'}: {what} there")
    return hand_back(job) if stop.name else FAILED


def hand_back(job: Job, strikes: Strikes | None = None) -> int:
    """Give the job back to the queue; without SLURM the caller runs the command again."""
    if not job.in_slurm:
        say("stopped; run the same command again to continue")
        return SAVED
    error = ""
    left_out = to_exclude(job, strikes) if strikes is not None else ""
    for tries in range(TRIES):
        try:
            time.sleep(RETRY_S if tries else 0)
            requeue(job.id, say)
            leave_behind(job, left_out)
            return SAVED
        except NoAnswer as reason:
            error = str(reason)
    say(f"the job could not be requeued: {error}; submit the same command again to continue")
    return SAVED
