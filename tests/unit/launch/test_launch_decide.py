"""Every end of an attempt and what follows it."""

from dataclasses import replace

import pytest

from launch.decide import Action, decide, status_of, without_progress
from launch.ledger import Attempt
from launch.ranks import End
from pipeline.data.reader import BrokenSample
from pipeline.run.folder import Outcome, Status

WHOLE, DIED = End(0, "", died=False), End(1, "rank 1 exited with 1", died=True)
REFUSED = End(2, "", died=False)
LOST = End(233, "Task launch failed on node gpu2", died=True, lost=True)


def attempts(*ends: tuple[str, int, int | None]) -> list[Attempt]:
    """Make attempts of (status, first step, last step); None: cut off with its supervisor."""
    return [
        Attempt(i, "7", 0, "h", 0.0, first, None if last is None else 1.0, last, status)
        for i, (status, first, last) in enumerate(ends)
    ]


@pytest.mark.parametrize(
    ("outcome", "asked", "end", "status"),
    [
        (Status.DONE, False, WHOLE, "done"),
        (Status.DONE, True, WHOLE, "done"),
        (Status.DONE, False, DIED, "done"),
        (Status.MISUSE, False, DIED, "misuse"),
        (Status.MISUSE, True, DIED, "misuse"),
        (Status.SAVED, True, WHOLE, "saved"),
        (Status.SAVED, True, DIED, "saved"),
        (Status.SAVED, False, WHOLE, "saved"),
        (Status.SAVED, False, DIED, "crashed"),
        (Status.FAILED, False, DIED, "crashed"),
        (Status.FAILED, False, WHOLE, "crashed"),
        (Status.FAILED, True, DIED, "stopped"),
        (None, False, DIED, "crashed"),
        (None, False, WHOLE, "crashed"),
        (None, True, WHOLE, "stopped"),
        (None, True, DIED, "stopped"),
        (Status.DONE, False, LOST, "done"),
        (Status.SAVED, False, LOST, "lost"),
        (Status.FAILED, False, LOST, "lost"),
        (None, False, LOST, "lost"),
        (None, True, LOST, "stopped"),
        (None, False, REFUSED, "misuse"),
        (Status.FAILED, False, REFUSED, "misuse"),
        (Status.SAVED, True, REFUSED, "saved"),
        (None, False, End(2, "srun ended with 2", died=True), "crashed"),
    ],
)
def test_status_follows_from_outcome_wish_and_who_left_first(outcome, asked, end, status):
    found = None if outcome is None else Outcome(outcome, 5, "why")
    assert status_of(found, asked, end) == status


@pytest.mark.parametrize(
    ("status", "history", "action", "code"),
    [
        ("done", [("done", 0, 9)], Action.EXIT, 0),
        ("misuse", [("misuse", 0, 0)], Action.EXIT, 2),
        ("saved", [("saved", 0, 5)], Action.REQUEUE, 75),
        ("stopped", [("stopped", 0, 0)], Action.REQUEUE, 75),
        ("crashed", [("crashed", 0, 0)], Action.RESTART, 1),
        ("hung", [("hung", 0, 0)], Action.RESTART, 1),
        ("hung", [("crashed", 4, 4)] * 2 + [("hung", 4, 4)] * 2, Action.EXIT, 1),
        ("crashed", [("crashed", -1, -1)] * 3, Action.RESTART, 1),
        ("crashed", [("crashed", -1, -1)] * 4, Action.EXIT, 1),
        # A checkpoint in between makes the count start anew.
        ("crashed", [("crashed", 0, 0)] * 3 + [("crashed", 0, 4)], Action.RESTART, 1),
        ("crashed", [("crashed", 0, 4)] + [("crashed", 4, 4)] * 2, Action.RESTART, 1),
        ("crashed", [("crashed", 0, 4)] + [("crashed", 4, 4)] * 3, Action.EXIT, 1),
        # Preemptions are not the run's fault.
        ("crashed", [("saved", 4, 4)] * 3 + [("crashed", 4, 4)], Action.RESTART, 1),
        ("saved", [("crashed", 4, 4)] * 3 + [("saved", 4, 4)], Action.REQUEUE, 75),
        ("saved", [("saved", 4, 4)] * 11, Action.EXIT, 1),
        # Neither is a lost node; SLURM may take minutes to notice, and give it out again.
        ("lost", [("crashed", 4, 4)] * 3 + [("lost", 4, 4)], Action.REQUEUE, 75),
        ("lost", [("lost", -1, -1)] * 11, Action.EXIT, 1),
        ("saved", [("saved", 4 + i, 5 + i) for i in range(99)], Action.REQUEUE, 75),
    ],
)
def test_what_follows(status, history, action, code):
    verdict = decide(status, attempts(*history))
    assert (verdict.action, verdict.code) == (action, code)


def test_giving_up_says_how_often_and_where():
    verdict = decide("crashed", attempts(*[("crashed", 120, 120)] * 4))
    assert verdict.why == "3 restarts without a new checkpoint after step 120"


def test_an_attempt_that_was_cut_off_counts_by_what_the_next_one_found():
    lost = attempts(("", 4, None), ("", 4, None), ("crashed", 4, 4))
    assert without_progress(lost) == (1, 1)
    moved = attempts(("", 4, None), ("", 4, None), ("crashed", 7, 7))
    assert without_progress(moved) == (1, 0), "the second came from step 4 to 7"


def broken(row: int, step: int, ends: str = "rank 1 exited with 1") -> Attempt:
    """Make an attempt at step `step` that a strict bad sample ended, as the ledger tells it."""
    said = f"s.tar: sample 's{row}' (row {row}): crc32c is 1, the index says 2; run `verify`"
    reason = f"node2: {BrokenSample.__name__}: {said}; {ends}"
    return replace(attempts(("crashed", step, step))[0], reason=reason)


def test_the_same_broken_sample_is_read_twice_and_no_more():
    assert decide("crashed", [broken(7, 4)]).action is Action.RESTART
    again = [broken(7, 4, "RuntimeError: connection closed by peer"), broken(7, 4)]
    verdict = decide("crashed", again)
    assert (verdict.action, verdict.code) == (Action.EXIT, 1)
    assert verdict.why.startswith("twice after step 4 the same sample could not be used: ")
    assert "s.tar: sample 's7' (row 7): crc32c is 1, the index says 2" in verdict.why
    assert "rank" not in verdict.why and "`verify`" not in verdict.why


@pytest.mark.parametrize(
    "history",
    [
        [broken(7, 4), broken(8, 4)],
        [broken(7, 4), broken(7, 5)],
        [broken(7, 4), *attempts(("crashed", 4, 4))],
        [replace(broken(7, 4), status="stopped"), broken(7, 4)],
    ],
    ids=["another sample", "a later step", "another cause", "stopped from outside"],
)
def test_other_ends_are_restarted_as_ever(history):
    assert decide("crashed", history).action is Action.RESTART


def test_a_requeue_in_between_does_not_mend_a_sample():
    lost = attempts(("lost", 4, 4))
    assert decide("crashed", [broken(7, 4), *lost, broken(7, 4)]).action is Action.EXIT
    assert decide("lost", [broken(7, 4), broken(7, 4), *lost]).action is Action.REQUEUE


@pytest.mark.parametrize(
    ("outcome", "asked", "end", "status"),
    [
        (None, False, DIED, "hung"),
        (Status.FAILED, False, LOST, "hung"),
        (Status.SAVED, False, DIED, "hung"),
        (None, True, DIED, "stopped"),
        (Status.DONE, False, DIED, "done"),
        (Status.MISUSE, False, DIED, "misuse"),
    ],
)
def test_what_the_watchdog_found_is_told_apart_from_a_crash(outcome, asked, end, status):
    found = None if outcome is None else Outcome(outcome, 5, "why")
    assert status_of(found, asked, end, hung=True) == status
