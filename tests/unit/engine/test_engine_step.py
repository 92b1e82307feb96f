"""One step: when the ranks are asked, and that asking changes nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.checkpoint.state import equal
from pipeline.engine.loop import restore
from pipeline.parallel.world import World
from tests.unit.engine.small_training import Training, make_plan_of, micro_batch


@pytest.fixture
def training(world: World, tmp_path: Path) -> Callable[[], Training]:
    def make() -> Training:
        made = Training(world, tmp_path)
        restore(made.stepper, made.first_state())
        return made

    return make


def step_of(training: Training, agree: Callable[[Tensor], Callable[[], bool]] | None) -> Tensor:
    batches = [micro_batch(0, index, 16) for index in range(2)]
    return training.stepper.run(batches, make_plan_of().at(0), agree)


def test_ranks_are_asked_before_the_last_backward_pass_and_heard_before_the_update(
    training: Callable[[], Training],
) -> None:
    one = training()
    weight = one.stepper.model.classifier.weight
    first, happened = weight.detach().clone(), []
    weight.register_post_accumulate_grad_hook(lambda _: happened.append("backward"))

    def agree(share: Tensor) -> Callable[[], bool]:
        happened.append("asked")

        def answer() -> bool:
            happened.append("heard")
            assert torch.equal(weight, first)
            return True

        return answer

    step_of(one, agree)
    assert happened == ["backward", "asked", "backward", "heard"]
    assert not torch.equal(weight, first)


def test_asking_changes_no_bit(training: Callable[[], Training]) -> None:
    asked, plain = training(), training()
    shares: list[Tensor] = []

    def agree(share: Tensor) -> Callable[[], bool]:
        shares.append(share)
        return lambda: True

    returned = step_of(asked, agree)
    assert torch.equal(returned, step_of(plain, None))
    assert torch.equal(returned, shares[0]) and len(shares) == 1
    assert equal(asked.state(), plain.state())


def test_the_share_is_the_mean_over_micro_batches(training: Callable[[], Training]) -> None:
    one = training()
    losses: list[float] = []
    real = one.stepper.loss

    def noted(logits: Tensor, targets: Tensor) -> Tensor:
        losses.append(real(logits, targets).item())
        return real(logits, targets)

    object.__setattr__(one.stepper, "loss", noted)
    assert float(step_of(one, None)) == pytest.approx(sum(losses) / 2, rel=1e-6)
