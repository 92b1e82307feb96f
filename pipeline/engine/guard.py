"""What is left out of a training whose losses are not finite: steps, and stretches of data.

One bad step is left out: nothing of it is applied on any rank. Too many of them in a row mean that
the weights themselves went wrong before, so the training goes back to its last checkpoint and on
behind all the data that it has seen since. Which batch a step uses follows from the step and from
these windows alone; they are part of every checkpoint.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.checkpoint.state import TrainState, Window
from pipeline.plan.plan import Plan, StepPlan

HOPELESS = 64
"""Overflows of the gradients in a row. A loss scale finds its place within some twenty; after so
many it is next to nothing, so the gradients themselves are infinite and every step is skipped."""


class Trouble(NamedTuple):
    """Why a training cannot go on from where it is: steps `first` to `last` (from 1), and what."""

    first: int
    last: int
    what: str


class DataPlan:
    """The plan as the loader counts: by batches of the endless stream.

    They are ahead of the steps by what was left out. The loader may hold on to this object: it
    asks anew whenever it is started.
    """

    def __init__(self, plan: Plan, windows: tuple[Window, ...] = ()) -> None:
        self.windows = windows
        self._plan = plan

    @property
    def global_batch(self) -> int:
        """Samples of a batch, over all ranks."""
        return self._plan.global_batch

    @property
    def total_steps(self) -> int:
        """The number of batches up to the end of the training, with those left out."""
        return self.batch_of(self._plan.total_steps)

    def at(self, batch: int) -> StepPlan:
        """Return the plan of the step that uses `batch`; inside a window, of the one behind it."""
        left_out = 0
        for window in self.windows:
            if batch < window.first:
                break
            left_out += min(batch, window.end) - window.first
        return self._plan.at(min(batch - left_out, self._plan.total_steps - 1))

    def batch_of(self, step: int) -> int:
        """Return the batch that step `step` (from 0) uses."""
        return step + sum(w.end - w.first for w in self.windows if w.step <= step)

    def leave_out(self, step: int, until: int) -> Window:
        """Leave out what the steps from `step` to before `until` have used; return the window.

        Windows of later steps are gone with the steps: their data lies within the new one.
        """
        end = self.batch_of(until)
        before = tuple(window for window in self.windows if window.step <= step)
        self.windows = before
        window = Window(step, self.batch_of(step), end)
        self.windows = (*before, window)
        return window


@dataclass(frozen=True)
class Recovery:
    """What it takes to go back.

    `newest` returns the state of the newest checkpoint, None before there is one (a collective).
    `tell` is given the trouble and the window that is left out for it.
    """

    data: DataPlan
    newest: Callable[[], TrainState | None]
    tell: Callable[[Trouble, Window], None]


@dataclass
class Overflows:
    """How many of the last steps in a row a strategy skipped, as their gradients overflowed."""

    in_a_row: int = 0

    def note(self, applied: bool) -> bool:
        """Count one step; returns `applied`, whether the strategy took it."""
        self.in_a_row = 0 if applied else self.in_a_row + 1
        return applied

    def trouble(self, step: int) -> Trouble | None:
        """Return what is wrong after `step`, where no step would ever be taken again."""
        if self.in_a_row < HOPELESS:
            return None
        first = step - self.in_a_row + 1
        return Trouble(first, step, "the gradients were not finite, though the loss was")


@dataclass
class Course:
    """Where a training stands, but for its tensors; `step` counts finished steps."""

    step: int
    best: tuple[float | None, int | None]
    bad_steps: tuple[int, ...]
    windows: tuple[Window, ...]
    bad_samples: int = 0

    @classmethod
    def of(cls, state: TrainState) -> "Course":
        """Return the course of a training that is at `state`."""
        best = (state.best_metric, state.best_step)
        return cls(state.step, best, state.bad_steps, state.windows, state.bad_samples)

    @property
    def bad_in_a_row(self) -> int:
        """How many steps up to the last one were bad without a good one between them."""
        row = 0
        while row < len(self.bad_steps) and self.bad_steps[-1 - row] == self.step - row:
            row += 1
        return row

    def scored(self, metric: float) -> None:
        """Take a score of the averaged weights after the last step."""
        if self.best[0] is None or metric > self.best[0]:
            self.best = (metric, self.step)


def given_up(trouble: Trouble, course: Course, allowed: int | None) -> str:
    """Say why the training ends, with the steps and what can be done.

    `allowed` is the number of rollbacks that the settings allow, None where none is possible.
    """
    tried = "; there is nothing to go back to here"
    if allowed is not None:
        gone = ", ".join(f"after step {w.step} ({w.end - w.first})" for w in course.windows)
        tried = f"; guard.max_rollbacks is {allowed}"
        tried += f", batches were left out {gone}" if gone else ""
    return (
        f"steps {trouble.first} to {trouble.last}: {trouble.what}{tried}. Lower lr.peak, give it a "
        "longer warm-up, set compute.clip_norm or compute.precision=fp32 and start the same run "
        "with --accept-changes, or raise guard.max_rollbacks"
    )
