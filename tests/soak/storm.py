"""The storm itself: faults at random times at a job that goes on, and what it cost."""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from launch.ledger import Ledger
from tests.soak.cluster import ENDED
from tests.soak.throws import HARMLESS, KINDS, NoTarget, Target, throw
from tests.soak.training import step_seconds

POLL_S = 0.3
AFTERMATH_S = 1800.0
"""A job that does not end so long after the last fault hangs."""


@dataclass(frozen=True)
class Throw:
    """A fault that comes `gap_s` after the one before."""

    gap_s: float
    kind: str


@dataclass
class Course:
    """How a storm went."""

    state: str = ""
    wall_s: float = 0.0
    thrown: Counter[str] = field(default_factory=Counter)
    held_back: int = 0
    requeues: int = 0
    attempts: Counter[str] = field(default_factory=Counter)
    odd: Counter[str] = field(default_factory=Counter)
    productive_s: float = 0.0

    @property
    def ettr(self) -> float:
        """Effective training time ratio: of the steps that counted, over all time."""
        return self.productive_s / self.wall_s


def endless(rng: random.Random, mtbf_s: float) -> Iterator[Throw]:
    """Give faults at random times, `mtbf_s` apart in the mean; all kinds come in turn, shuffled."""
    while True:
        kinds = [*KINDS, "kill"]
        rng.shuffle(kinds)
        for kind in kinds:
            yield Throw(rng.expovariate(1 / mtbf_s), kind)


@dataclass(frozen=True)
class Manners:
    """When a fault waits, though its time has come: those that leave the training alone never do.

    After `patience` faults without a new checkpoint the next one waits for one. With
    `apart_steps` each waits for a checkpoint so many steps past the newest at the fault before.
    """

    patience: int
    apart_steps: int = 0


def rage(
    target: Target,
    throws: Iterable[Throw],
    until_s: float,
    manners: Manners,
    say: Callable[[str], None],
) -> Course:
    """Throw faults for `until_s` seconds, wait for the job's end, and return how it went.

    Raises:
        TimeoutError: the job does not end.
    """
    course, plan = Course(), iter(throws)
    folder, began = target.training.folder(target.name), time.monotonic()
    coming = next(plan, None)
    due = began + (coming.gap_s if coming else 0.0)
    in_vain, seen, is_held = 0, folder.latest_step(), False
    wanted = manners.apart_steps or seen
    while (facts := target.facts())["JobState"] not in ENDED:
        now = time.monotonic()
        if now > began + until_s + AFTERMATH_S:
            raise TimeoutError(f"job {target.job} does not end: {facts}")
        if done := target.cluster.release(target.job, facts):
            course.odd[done] += 1
            say(done)
        for what in target.mend():
            say(what)
        if (latest := folder.latest_step()) > seen:
            in_vain, seen = 0, latest
        if coming and due <= now < began + until_s:
            must_wait = in_vain > manners.patience or latest < wanted
            if must_wait and coming.kind not in HARMLESS:
                course.held_back += not is_held
                is_held = True
            elif _throw(coming, target, course, say, latest):
                in_vain += coming.kind not in HARMLESS
                wanted = latest + manners.apart_steps
                is_held, coming = False, next(plan, None)
                due = time.monotonic() + (coming.gap_s if coming else 0.0)
        time.sleep(POLL_S)
    target.mend(everything=True)
    return _weigh(course, target, facts, time.monotonic() - began)


def _throw(
    coming: Throw, target: Target, course: Course, say: Callable[[str], None], step: int
) -> bool:
    try:
        what = throw(coming.kind, target)
    except NoTarget:
        return False
    course.thrown[coming.kind] += 1
    say(f"{what} (newest checkpoint: {max(step, 0)})")
    return True


def _weigh(course: Course, target: Target, facts: dict[str, str], wall_s: float) -> Course:
    folder = target.training.folder(target.name)
    for mark in (folder.path / "faults").glob("*.json"):
        course.thrown[mark.name.split("-")[1]] += 1
    course.state, course.wall_s = facts["JobState"], wall_s
    course.requeues = int(facts["Restarts"])
    attempts = Ledger(folder).attempts(target.job)
    course.attempts.update(attempt.status or "cut off" for attempt in attempts)
    course.productive_s = sum(step_seconds(folder).values()) if folder.spool.is_dir() else 0.0
    return course
