"""A lack of memory in a throw-away step is told as one in a rehearsal is: with what would fit."""

from pathlib import Path

import pytest
import torch

from pipeline.engine.step import Stepper
from pipeline.engine.warmup import first_step_for_real, rehearse_evaluation, rehearse_stages
from pipeline.parallel.settings import DdpSpec, FsdpSpec
from pipeline.parallel.world import World
from pipeline.spec import Misuse
from tests.unit.engine.small_training import Training, make_plan_of


@pytest.fixture
def small_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device on which images of 24 px do not fit in a real step."""
    warm_up = Stepper.warm_up

    def limited(self: Stepper, px: int, batch: int) -> None:
        if px >= 24:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB\nmore")
        warm_up(self, px, batch)

    monkeypatch.setattr(Stepper, "warm_up", limited)


TOLD = r"field 'stages.1.micro_batches' is 2: a micro-batch of 4 images of 24 px .*allocate 7 GiB\)"


def test_a_stage_that_sharded_weights_leave_no_room_for_is_refused(
    world: World, tmp_path: Path, small_device: None
) -> None:
    stepper = Training(world, tmp_path, FsdpSpec()).stepper
    rehearse_stages(stepper, make_plan_of(), 0, most=1)
    with pytest.raises(Misuse, match=TOLD):
        rehearse_stages(stepper, make_plan_of(), 0)


def test_a_first_step_without_room_is_refused(
    world: World, tmp_path: Path, small_device: None
) -> None:
    stepper = Training(world, tmp_path, DdpSpec()).stepper
    first_step_for_real(stepper, make_plan_of(), 0)
    with pytest.raises(Misuse, match=TOLD):
        first_step_for_real(stepper, make_plan_of(), 8)


def test_an_evaluation_without_room_is_refused_before_training(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepper = Training(world, tmp_path, DdpSpec()).stepper
    before = {name: value.clone() for name, value in stepper.ema.module.state_dict().items()}
    rehearse_evaluation(stepper, 24, 6)
    assert all(torch.equal(before[k], v) for k, v in stepper.ema.module.state_dict().items())

    def limited(images: torch.Tensor) -> torch.Tensor:
        assert images.shape == (6, 3, 24, 24)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB\nmore")

    monkeypatch.setattr(stepper.ema.module, "forward", limited)
    with pytest.raises(Misuse, match=r"'evaluate.batch' is 6: .*7 GiB\).*evaluate.batch=3"):
        rehearse_evaluation(stepper, 24, 6)
