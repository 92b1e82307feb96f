"""The loop over steps: when to report, evaluate, save and stop.

A stop wish (a signal on any rank) is agreed by all ranks at a step boundary; the state is saved,
committed, and only then does anybody leave.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipeline.checkpoint.state import TrainState
from pipeline.checkpoint.writer import Writer
from pipeline.data.bad import Replaced, Tally
from pipeline.data.batches import MicroBatch
from pipeline.engine.pulse import Beat, Pulse
from pipeline.engine.signals import StopWish
from pipeline.engine.step import Stepper
from pipeline.parallel.strategy import Tensors
from pipeline.plan.plan import Plan, StepPlan


@dataclass(frozen=True)
class StepReport:
    """What is known of a finished step; `plan.step` counts from 0, `step` from 1.

    `bad_samples` counts those that all ranks replaced since this attempt began.
    """

    step: int
    plan: StepPlan
    loss: float
    step_s: float
    data_wait_s: float
    bad_samples: int


@dataclass(frozen=True)
class Loop:
    """The parts that the loop drives and the intervals at which it does so.

    `evaluate` is given the step, scores the averaged weights on all ranks and returns the metric
    by which the best checkpoint is chosen. `writer` is there on rank 0 only. `tally` counts bad
    samples; `name_bad` is given those that this rank meets for the first time.
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


def train(loop: Loop, state: TrainState, wish: StopWish) -> tuple[TrainState, bool]:
    """Train from `state` to the end or until a stop is agreed.

    Returns the state that was last saved (tensors may share memory with the model) and whether
    the training is complete.

    Raises:
        Failure: more samples were bad than the budget allows; on all ranks at the same step.
        OSError: the last checkpoint could not be written.
    """
    pulse = Pulse(loop.stepper.world)
    total = loop.plan.total_steps
    best = (state.best_metric, state.best_step)
    step = state.step
    clock = time.perf_counter()
    timings: dict[int, tuple[float, float]] = {}
    for batches in loop.batches(step):
        share = loop.stepper.run(batches, loop.plan.at(step))
        step += 1
        now = time.perf_counter()
        timings[step] = (now - clock, loop.data_wait_s())
        clock = now
        beat = pulse.exchange(step, share, bool(wish.reason), _name_bad(loop, batches))
        _tell(loop, beat, timings)
        stopping = beat is not None and beat.stop and step < total
        if step % loop.evaluate_every == 0 or step == total:
            best = _better(best, loop.evaluate(step), step)
            clock = time.perf_counter()
        if step % loop.save_every == 0 or step == total or stopping:
            state = _save(loop, step, best)
        if stopping:
            break
    _tell(loop, pulse.flush(), timings)
    if loop.writer is not None and not loop.writer.wait():
        raise OSError(f"the last checkpoint, at step {step}, could not be written")
    loop.stepper.world.barrier()
    return state, state.step >= total


def restore(loop_stepper: Stepper, state: TrainState) -> None:
    """Put `state` into the model, the strategy and the average."""
    loop_stepper.strategy.restore(Tensors(state.weights, state.slots, state.scaler))
    loop_stepper.model.load_state_dict(state.buffers, strict=False)
    loop_stepper.ema.module.load_state_dict(state.ema)


def capture(stepper: Stepper, step: int, best: tuple[float | None, int | None]) -> TrainState:
    """Collect the state after `step` steps (a collective); tensors may share memory."""
    tensors = stepper.strategy.snapshot()
    everything = stepper.model.state_dict()
    buffers = {name: value for name, value in everything.items() if name not in tensors.weights}
    return TrainState(
        step=step,
        weights=tensors.weights,
        buffers=buffers,
        ema=dict(stepper.ema.module.state_dict()),
        slots=tensors.slots,
        scaler=tensors.scaler,
        best_metric=best[0],
        best_step=best[1],
    )


def _name_bad(loop: Loop, batches: list[MicroBatch]) -> int:
    """Name this step's replaced samples where they are new; return how many there were."""
    replaced = [item for batch in batches for item in batch.replaced]
    if fresh := loop.tally.note(replaced):
        loop.name_bad(fresh)
    return len(replaced)


def _tell(loop: Loop, beat: Beat | None, timings: dict[int, tuple[float, float]]) -> None:
    if beat is not None:
        step_s, wait_s = timings.pop(beat.step)
        plan = loop.plan.at(beat.step - 1)
        loop.tally.add(beat.bad_samples)
        loop.report(StepReport(beat.step, plan, beat.loss, step_s, wait_s, loop.tally.bad))
        loop.tally.check()


def _better(
    best: tuple[float | None, int | None], metric: float, step: int
) -> tuple[float | None, int | None]:
    return (metric, step) if best[0] is None or metric > best[0] else best


def _save(loop: Loop, step: int, best: tuple[float | None, int | None]) -> TrainState:
    state = capture(loop.stepper, step, best)
    if loop.writer is not None:
        loop.writer.save(state, dict(loop.facts))
    return state
