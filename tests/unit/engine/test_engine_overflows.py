"""Gradients that overflow at every loss scale end in a way back, not in a training of no steps."""

from pathlib import Path

import pytest

from pipeline.checkpoint.state import Window
from pipeline.engine import guard
from pipeline.engine.guard import HOPELESS, Overflows
from pipeline.engine.settings import GuardSpec
from pipeline.parallel.settings import ComputeSpec, DdpSpec, DeepspeedSpec, StrategySpec
from pipeline.parallel.world import World
from pipeline.spec import Failure
from tests.unit.engine.small_training import Training

FP16 = ComputeSpec(precision="fp16", loss_scale=64)
"""Small enough that no step overflows by itself."""


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up after three steps in a row: the training has sixteen."""
    monkeypatch.setattr(guard, "HOPELESS", 3)


@pytest.mark.parametrize(
    ("strategy", "compute"),
    [(DdpSpec(), FP16), (DeepspeedSpec(zero_stage=1), FP16), (DeepspeedSpec(), ComputeSpec())],
)
def test_endless_overflows_go_back_and_leave_the_data_out(
    world: World, tmp_path: Path, strategy: StrategySpec, compute: ComputeSpec
) -> None:
    """The losses stay finite and nothing is ever applied; DeepSpeed skips so in fp32, too."""
    one = Training(world, tmp_path, strategy, compute=compute)
    one.spoiler.gradient = {6, 7, 8}
    state = one.run()
    assert one.told == [((7, 9, "the gradients were not finite, though the loss was"),
                         Window(4, 4, 9))]  # fmt: skip
    assert state.windows == (Window(4, 4, 9),)
    assert not one.stepper.overflows.in_a_row
    steps = sorted(int(path.name[5:]) for path in one.store.folder.glob("step-*"))
    assert steps == [4, 8, 12, 16], "and none in the middle of them"


def test_where_it_does_not_help_the_attempt_fails(world: World, tmp_path: Path) -> None:
    one = Training(world, tmp_path, guard=GuardSpec(max_rollbacks=1), compute=FP16)
    one.spoiler.gradient = set(range(6, 99))
    with pytest.raises(Failure, match="the gradients were not finite.*compute.precision=fp32"):
        one.run()
    assert one.store.newest(print) == tmp_path / "step-000000004"


def test_a_few_overflows_put_a_checkpoint_off_to_the_next_good_step(
    world: World, tmp_path: Path
) -> None:
    one = Training(world, tmp_path, compute=FP16)
    one.spoiler.gradient = {7}
    assert one.run().windows == ()
    steps = sorted(int(path.name[5:]) for path in one.store.folder.glob("step-*"))
    assert steps == [4, 9, 12, 16]


def test_a_loss_scale_finds_its_place_before_it_is_hopeless() -> None:
    assert 2.0**HOPELESS > 2.0**32, "the largest loss_scale that the settings allow, down to one"
    counts = Overflows()
    assert [counts.note(applied) for applied in (False, False, True, False)] == [0, 0, 1, 0]
    assert counts.in_a_row == 1


def test_a_loss_scale_that_no_float_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="loss_scale"):
        ComputeSpec(precision="fp16", loss_scale=1e300)
