"""Losses that are not finite: the step is left out, then the data, then the training ends."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint.state import TrainState, Window, equal
from pipeline.checkpoint.store import read
from pipeline.engine.guard import Course, DataPlan
from pipeline.engine.loop import restore
from pipeline.engine.settings import GuardSpec
from pipeline.models.batchnorm import step_batch_norms
from pipeline.parallel.settings import ComputeSpec
from pipeline.parallel.world import World
from pipeline.spec import Failure
from tests.unit.engine.small_training import BATCH, STEPS, Training, make_plan_of, micro_batch

NAN, INF = math.nan, math.inf


@pytest.fixture
def training(world: World, tmp_path: Path) -> Callable[..., Training]:
    """Make an attempt; those with the same name share their checkpoints."""

    def make(name: str = "run", **settings: object) -> Training:
        return Training(world, tmp_path / name, **settings)  # type: ignore[arg-type]

    return make


def saved(training: Training, step: int) -> TrainState:
    return read(training.store.folder / f"step-{step:09d}")


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_bad_step_leaves_no_trace(training: Callable[..., Training], value: float) -> None:
    """Neither in what is saved, nor in what the next step starts from."""
    one, twin = training(), training("twin")
    plan = make_plan_of()
    for attempt, batches in ((one, (0, 1, 2)), (twin, (0, 2))):
        restore(attempt.stepper, attempt.first_state())
        for batch in batches:
            before = attempt.state()
            step = [micro_batch(batch, index, 16) for index in range(2)]
            attempt.spoiler.at, attempt.spoiler.value = list(step), {1: value}
            counts: list[bool] = []

            def agree(share: torch.Tensor, counts: list[bool] = counts) -> Callable[[], bool]:
                counts.append(bool(torch.isfinite(share)))
                return lambda: counts[0]

            share = attempt.stepper.run(step, plan.at(batch), agree)
            assert counts == [batch != 1] == [bool(torch.isfinite(share))]
            if batch == 1:
                assert equal(attempt.state(), before)
                grads = [weight.grad for weight in attempt.stepper.model.parameters()]
                assert not any(grad.any() for grad in grads if grad is not None)
                norms = step_batch_norms(attempt.stepper.model)
                assert not any(norm.mean_sum.any() or norm.var_sum.any() for norm in norms)
    assert equal(one.state(), twin.state())


def test_bad_steps_are_counted_reported_and_saved(
    training: Callable[..., Training], capsys: pytest.CaptureFixture[str]
) -> None:
    one = training()
    one.spoiler.value = {2: NAN, 9: INF}
    state = one.run()
    assert state.step == STEPS
    assert state.bad_steps == (3, 10) == saved(one, STEPS).bad_steps
    assert saved(one, 8).bad_steps == (3,)
    assert [r.step for r in one.reports if r.left_out] == [3, 10]
    assert [r.step for r in one.reports if not math.isfinite(r.loss)] == [3, 10]
    assert [r.bad_steps for r in one.reports] == [0] * 2 + [1] * 7 + [2] * 7
    assert "rank 0: the loss of step 3 is nan" in capsys.readouterr().out
    assert all(t.isfinite().all() for part in state.tensors().values() for t in part.values())


def test_a_resumed_run_goes_on_counting(training: Callable[..., Training]) -> None:
    one, again = training(), training()
    one.spoiler.value = again.spoiler.value = {2: NAN, 9: NAN}
    whole = one.run()
    resumed = again.run(saved(one, 8))
    assert again.reports[0].step == 9
    assert equal(whole, resumed)


def test_too_many_in_a_row_go_back_and_leave_the_data_out(
    training: Callable[..., Training],
) -> None:
    """Steps 8 to 10 (batches 7 to 9) are bad, 2 are allowed: back to 4, on with batch 10."""
    one = training(guard=GuardSpec(max_bad_steps=2))
    one.spoiler.value = dict.fromkeys((7, 8, 9, 11), NAN)
    state = one.run()
    window = Window(step=4, first=4, end=10)
    assert state.windows == (window,) == saved(one, STEPS).windows
    assert saved(one, 4).windows == ()
    assert [batch for batch, _ in one.seen] == [*range(10), *range(10, STEPS + 6)]
    assert one.told == [((8, 10, "the loss was not finite"), window)]
    assert [r.step for r in one.reports] == [*range(1, 11), *range(5, STEPS + 1)]
    assert state.bad_steps == (6,), "batch 11; those that were undone do not count"
    assert one.tally.used == STEPS * BATCH, "samples of undone steps do not count either"


def test_a_stage_begins_at_its_step_whatever_was_left_out(
    training: Callable[..., Training],
) -> None:
    one = training(guard=GuardSpec(max_bad_steps=0))
    one.spoiler.value = {5: NAN}
    one.run()
    assert one.seen == [(b, 16) for b in range(10)] + [(b, 24) for b in range(10, STEPS + 2)]


def test_what_follows_depends_on_the_checkpoint_and_the_windows_alone(
    training: Callable[..., Training],
) -> None:
    """Whoever starts at the checkpoint with the window, or behind it, or meets it anew."""
    guard = GuardSpec(max_bad_steps=1)
    one = training(guard=guard)
    one.spoiler.value = dict.fromkeys((5, 6, 12), NAN)
    whole = one.run()

    told = training("told")
    told.spoiler.value = {12: NAN}
    start = saved(one, 4)
    start.windows = whole.windows
    assert equal(told.run(start), whole)

    behind = training("behind")
    behind.spoiler.value = {12: NAN}
    assert equal(behind.run(saved(one, 8)), whole)
    assert behind.seen[0][0] == 8 + 3

    anew = training(guard=guard)
    anew.spoiler.value = dict.fromkeys((5, 6, 12), NAN)
    for folder in one.store.folder.glob("step-*"):
        if int(folder.name[5:]) > 4:  # as if it had been killed before the next checkpoint
            folder.rename(folder.with_name(f"old-{folder.name}"))
    assert equal(anew.run(saved(one, 4)), whole)
    assert anew.seen[2:4] == [(6, 16), (7, 16)]


def test_before_the_first_checkpoint_it_goes_back_to_where_it_began(
    training: Callable[..., Training],
) -> None:
    one, plain = training(guard=GuardSpec(max_bad_steps=0)), training("plain")
    one.spoiler.value = {1: NAN}
    assert one.run().windows == (Window(0, 0, 2),)
    start = plain.first_state()
    start.windows = (Window(0, 0, 2),)
    assert equal(plain.run(start), saved(one, STEPS))


@pytest.mark.parametrize("rollbacks", [0, 2])
def test_after_the_allowed_rollbacks_the_attempt_fails_and_says_what_to_do(
    training: Callable[..., Training], rollbacks: int
) -> None:
    one = training(guard=GuardSpec(max_bad_steps=1, max_rollbacks=rollbacks))
    one.spoiler.value = dict.fromkeys(range(6, 99), INF)
    with pytest.raises(Failure, match=r"steps \d+ to \d+: the loss was not finite") as error:
        one.run()
    text = str(error.value)
    assert f"guard.max_rollbacks is {rollbacks}" in text
    assert "lr.peak" in text and "--accept-changes" in text
    assert len(one.told) == rollbacks
    if rollbacks:
        assert "after step 4 (4), after step 4 (2)" in text
        assert "steps 5 to 6" in text
    newest = one.newest()
    assert newest is not None and newest.step == 4, "what was saved before stays"


def test_without_a_way_back_the_attempt_fails(training: Callable[..., Training]) -> None:
    one = training(guard=GuardSpec(max_bad_steps=0))
    one.can_go_back = False
    one.spoiler.value = {6: NAN}
    with pytest.raises(Failure, match="steps 7 to 7.*nothing to go back to"):
        one.run()


def test_no_checkpoint_is_taken_in_the_middle_of_bad_steps(
    training: Callable[..., Training],
) -> None:
    one = training()
    one.spoiler.value = dict.fromkeys((6, 7, 8), NAN)
    one.run()
    steps = sorted(int(path.name[5:]) for path in one.store.folder.glob("step-*"))
    assert steps == [4, 10, 12, 16], "8 is put off to the next good step"


def test_a_stop_in_the_middle_of_bad_steps_is_saved_all_the_same(
    training: Callable[..., Training],
) -> None:
    one, again, whole = training(), training(), training("whole")
    for attempt in (one, again, whole):
        attempt.spoiler.value = dict.fromkeys((5, 6), NAN)
    one.stop_at = 6
    assert one.run().step == 7
    assert equal(again.run(saved(one, 7)), whole.run())


def test_sick_weights_are_never_saved(training: Callable[..., Training]) -> None:
    """A gradient may be bad though the loss was good; the update shows in the next loss."""
    one = training(guard=GuardSpec(max_bad_steps=1))
    one.spoiler.gradient = {7}
    state = one.run()
    assert one.told[0][0][:2] == (8, 8)
    assert "is not finite, though the loss was" in one.told[0][0].what
    assert state.windows == (Window(4, 4, 8),)
    for path in one.store.folder.glob("step-*"):
        tensors = read(path).tensors()
        assert all(t.isfinite().all() for part in tensors.values() for t in part.values())

    late = training("late", guard=GuardSpec(max_bad_steps=1))
    late.spoiler.gradient = {4}
    assert late.run().windows == (Window(4, 4, 7),), "steps 6 and 7 were bad"


def test_an_overflow_of_fp16_is_not_a_bad_loss(training: Callable[..., Training]) -> None:
    one = training(compute=ComputeSpec(precision="fp16"))
    start = one.first_state()
    start.scaler = {"scale": 2.0**40, "growth": 0.0}
    state = one.run(start)
    assert state.scaler["scale"] < 2.0**40, "it did overflow"
    assert state.bad_steps == () and state.windows == ()
    assert all(math.isfinite(report.loss) and not report.left_out for report in one.reports)


def test_batches_run_ahead_of_steps_by_what_was_left_out() -> None:
    data = DataPlan(make_plan_of())
    assert [data.batch_of(step) for step in range(STEPS)] == list(range(STEPS))
    assert data.total_steps == STEPS
    assert data.leave_out(4, 7) == Window(4, 4, 7)
    assert data.leave_out(4, 6) == Window(4, 7, 9), "the same step again: the next data"
    assert data.leave_out(8, 10) == Window(8, 13, 15)
    batches = [data.batch_of(step) for step in range(STEPS)]
    assert batches == [*range(4), *range(9, 13), *range(15, 23)]
    assert [data.at(batch).step for batch in batches] == list(range(STEPS))
    assert data.at(5).step == data.at(8).step == 4
    assert data.total_steps == 23


def test_going_back_beyond_a_window_takes_it_in() -> None:
    data = DataPlan(make_plan_of(), (Window(4, 4, 7), Window(8, 11, 13)))
    assert data.leave_out(6, 9) == Window(6, 9, 14)
    assert data.windows == (Window(4, 4, 7), Window(6, 9, 14))
    assert data.batch_of(6) == 14


def test_a_row_of_bad_steps_ends_with_a_good_one() -> None:
    course = Course(7, (None, None), (2, 5, 6, 7), ())
    assert course.bad_in_a_row == 3
    course.step = 8
    assert course.bad_in_a_row == 0
    assert Course(2, (None, None), (1, 2), ()).bad_in_a_row == 2
