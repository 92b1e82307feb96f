"""The loop over steps: when to report, evaluate, save, stop and go back.

A stop wish (a signal on any rank) is agreed by all ranks in the step; the state is saved,
committed, and only then does anybody leave. A step whose loss is not finite is left out; where that
does not help, or no gradient is finite any more, the training goes back to its last checkpoint and
on behind the data in between.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from pipeline.checkpoint.state import TrainState
from pipeline.checkpoint.writer import Writer
from pipeline.data.bad import Replaced, Tally
from pipeline.data.batches import MicroBatch
from pipeline.engine.guard import Course, Recovery, Trouble, given_up
from pipeline.engine.pace import Pace
from pipeline.engine.pulse import Beat, Pulse
from pipeline.engine.replicas import check_replicas, first_not_finite
from pipeline.engine.settings import GuardSpec
from pipeline.engine.signals import StopWish
from pipeline.engine.step import Stepper
from pipeline.engine.watchdog import Unwatched, Watch
from pipeline.parallel.strategy import Tensors
from pipeline.plan.plan import Plan, StepPlan
from pipeline.run import faults
from pipeline.run.beats import Section
from pipeline.spec import Failure


@dataclass(frozen=True)
class StepReport:
    """What is known of a finished step; `plan.step` counts from 0, `step` from 1.

    `bad_samples` counts those that all ranks replaced in the run so far, `bad_steps` the steps of
    the run that were left out; `left_out` says whether this one was.
    """

    step: int
    plan: StepPlan
    loss: float
    step_s: float
    data_wait_s: float
    bad_samples: int
    left_out: bool = False
    bad_steps: int = 0


@dataclass(frozen=True)
class Loop:
    """The parts that the loop drives and the intervals at which it does so.

    `batches` starts at a batch of the endless stream. `evaluate` is given the step, scores the
    averaged weights on all ranks and returns the metric by which the best checkpoint is chosen.
    `writer` is there on rank 0 only. `tally` counts bad samples; `name_bad` is given those that
    this rank meets for the first time. Without `recovery` there is no going back, without `pace`
    slow ranks are not named. `watch` is told of every section that begins.
    """

    plan: Plan
    stepper: Stepper
    batches: Callable[[int], Iterator[list[MicroBatch]]]
    data_wait_s: Callable[[], float]
    report: Callable[[StepReport], None]
    evaluate: Callable[[int], float]
    writer: Writer | None
    tally: Tally
    name_bad: Callable[[list[Replaced]], None]
    facts: dict[str, object]
    save_every: int
    evaluate_every: int
    guard: GuardSpec = GuardSpec()
    recovery: Recovery | None = None
    pace: Pace | None = None
    watch: Watch = Unwatched()


def train(loop: Loop, state: TrainState, wish: StopWish) -> tuple[TrainState, bool]:
    """Train from `state` to the end or until a stop is agreed.

    Returns the state that was last saved (tensors may share memory with the model) and whether
    the training is complete.

    Raises:
        Failure: more samples were bad than the budget allows, losses stayed infinite or NaN, or the
            replicas drifted apart; on all ranks at the same step.
        OSError: the last checkpoint could not be written.
    """
    course, first, total = Course.of(state), state, loop.plan.total_steps
    while isinstance(found := _go_on(loop, course, state, wish), Trouble):
        course, state = _go_back(loop, course, found, first)
    loop.watch.enter(Section.CHECKPOINT, found.step)
    if loop.writer is not None and not loop.writer.wait():
        raise OSError(f"the last checkpoint, at step {found.step}, could not be written")
    if loop.pace is not None:
        loop.pace.settle()
    loop.stepper.world.barrier()
    return found, found.step >= total


def restore(loop_stepper: Stepper, state: TrainState) -> None:
    """Put `state` into the model, the strategy and the average."""
    loop_stepper.strategy.restore(Tensors(state.weights, state.slots, state.scaler))
    loop_stepper.model.load_state_dict(state.buffers, strict=False)
    loop_stepper.ema.module.load_state_dict(state.ema)
    loop_stepper.overflows.in_a_row = 0


def capture(stepper: Stepper, course: Course) -> TrainState:
    """Collect the state of a training at `course` (a collective); tensors may share memory."""
    tensors = stepper.strategy.snapshot()
    everything = stepper.model.state_dict()
    buffers = {name: value for name, value in everything.items() if name not in tensors.weights}
    return TrainState(
        step=course.step,
        weights=tensors.weights,
        buffers=buffers,
        ema=dict(stepper.ema.module.state_dict()),
        slots=tensors.slots,
        scaler=tensors.scaler,
        best_metric=course.best[0],
        best_step=course.best[1],
        bad_steps=course.bad_steps,
        windows=course.windows,
        bad_samples=course.bad_samples,
    )


def _go_on(loop: Loop, course: Course, saved: TrainState, wish: StopWish) -> TrainState | Trouble:
    """Train until the end, a stop or trouble; return the state last saved, or the trouble."""
    pulse, total = Pulse(loop.stepper.world), loop.plan.total_steps
    save_due = False
    clock = time.perf_counter()
    steps = _watched(loop, course)
    for batches in steps if loop.pace is None else loop.pace.data(steps):
        beat = _step(loop, course, batches, pulse, wish)
        now = time.perf_counter()
        _tell(loop, course, beat, now - clock)
        clock = now
        if course.bad_in_a_row > loop.guard.max_bad_steps:
            first = course.step - course.bad_in_a_row + 1
            return Trouble(first, course.step, "the loss was not finite")
        overflows = loop.stepper.overflows
        if trouble := overflows.trouble(course.step):
            return trouble
        leaving = beat.stop or course.step == total
        if course.step % loop.evaluate_every == 0 or course.step == total:
            loop.watch.enter(Section.EVALUATE, course.step)
            faults.hit("evaluate", course.step, loop.stepper.world.rank)
            course.scored(loop.evaluate(course.step))
            clock = time.perf_counter()
        save_due = save_due or course.step % loop.save_every == 0
        in_doubt = course.bad_in_a_row or overflows.in_a_row  # there may be worse to come
        if leaving or (save_due and not in_doubt):
            save_due = False
            state = _save(loop, course)
            if isinstance(state, Trouble):
                return state
            saved = state
        if leaving:
            break
    return saved


def _watched(loop: Loop, course: Course) -> Iterator[list[MicroBatch]]:
    """Yield each step's micro-batches, and tell the watch when they are waited for and used."""
    rank, stage = loop.stepper.world.rank, -1
    steps = faults.each(loop.batches(_next_batch(loop, course)), "data", course.step + 1, rank)
    while True:
        loop.watch.enter(Section.DATA, course.step + 1)
        batches = next(steps, None)
        if batches is None:
            return
        deadline_of = None
        if loop.stepper.is_compiled and (now := loop.plan.at(course.step).stage) != stage:
            deadline_of, stage = Section.COMPILE, now  # its shapes may be new to the compiler
        loop.watch.enter(Section.STEP, course.step + 1, deadline_of)
        yield batches
        del batches  # or this step's memory would be in use while the next one is asked for


def _next_batch(loop: Loop, course: Course) -> int:
    """Return the batch of the endless stream that comes next."""
    recovery = loop.recovery
    return course.step if recovery is None else recovery.data.batch_of(course.step)


def _step(
    loop: Loop, course: Course, batches: list[MicroBatch], pulse: Pulse, wish: StopWish
) -> Beat:
    """Train one step and note it in `course`; all ranks get the same facts of it."""
    plan, step = loop.plan.at(course.step), course.step + 1
    bad_samples = _name_bad(loop, batches)
    faults.hit("step", step, loop.stepper.world.rank)

    def agree(share: torch.Tensor) -> Callable[[], bool]:
        if loop.pace is not None:
            loop.pace.forwarded()
        pulse.send(step, share, bool(wish.reason), bad_samples)
        return lambda: not pulse.read().is_bad

    share = loop.stepper.run(batches, plan, agree)
    beat = pulse.read()
    if loop.pace is not None:
        loop.pace.stepped(step, plan.stage)
    course.step = step
    if beat.is_bad:
        course.bad_steps = (*course.bad_steps, step)
        _name_bad_loss(loop, step, share)
    return beat


def _go_back(
    loop: Loop, course: Course, trouble: Trouble, first: TrainState
) -> tuple[Course, TrainState]:
    """Restore the last checkpoint (or `first`, where this attempt began) and leave data out.

    Raises:
        Failure: that was done too often, or cannot be done.
    """
    recovery = loop.recovery
    if recovery is None or len(course.windows) >= loop.guard.max_rollbacks:
        allowed = None if recovery is None else loop.guard.max_rollbacks
        raise Failure(given_up(trouble, course, allowed))
    loop.watch.enter(Section.CHECKPOINT, course.step)
    if loop.writer is not None:
        loop.writer.wait()
    state = recovery.newest() or first
    restore(loop.stepper, state)
    loop.stepper.world.barrier()  # none is at an earlier step while another is still here
    loop.tally.back_to(state.step, state.bad_samples)
    window = recovery.data.leave_out(state.step, course.step)
    recovery.tell(trouble, window)
    return replace(Course.of(state), windows=recovery.data.windows), state


def _name_bad(loop: Loop, batches: list[MicroBatch]) -> int:
    """Name this step's replaced samples where they are new; return how many there were."""
    replaced = [item for batch in batches for item in batch.replaced]
    if fresh := loop.tally.note(replaced):
        loop.name_bad(fresh)
    return len(replaced)


def _name_bad_loss(loop: Loop, step: int, share: torch.Tensor) -> None:
    """Say on the rank itself that its loss was bad; the step failed, so it may take its time."""
    if not torch.isfinite(share):
        rank = loop.stepper.world.rank
        print(f"rank {rank}: the loss of step {step} is {share.item()}: left out", flush=True)


def _tell(loop: Loop, course: Course, beat: Beat, step_s: float) -> None:
    plan, wait_s, tally = loop.plan.at(beat.step - 1), loop.data_wait_s(), loop.tally
    tally.add(beat.bad_samples)
    course.bad_samples = tally.bad
    left_out, count = beat.is_bad, len(course.bad_steps)
    loop.report(StepReport(beat.step, plan, beat.loss, step_s, wait_s, tally.bad, left_out, count))
    tally.check()


def _save(loop: Loop, course: Course) -> TrainState | Trouble:
    """Save the state, unless its own numbers are infinite or NaN.

    Raises:
        Failure: the ranks hold different numbers.
    """
    world = loop.stepper.world
    loop.watch.enter(Section.CHECKPOINT, course.step)
    faults.hit("checkpoint", course.step, world.rank)
    state = capture(loop.stepper, course)
    if loop.guard.compare_ranks:
        check_replicas(state, world)
    if sick := first_not_finite(state, world):
        return Trouble(course.step, course.step, f"'{sick}' is not finite, though the loss was")
    if loop.writer is not None:
        loop.writer.save(state, dict(loop.facts))
    return state
