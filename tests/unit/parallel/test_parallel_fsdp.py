"""FSDP on one rank: what is gathered at a time, and weights that outlive the gathering."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from pipeline.models.efficientnet import EfficientNet
from pipeline.models.table import ModelSpec
from pipeline.optim.groups import param_groups
from pipeline.optim.rmsprop import FIRST_SLOTS, RMSpropTF
from pipeline.parallel.build import build_strategy
from pipeline.parallel.fsdp import sharded_units
from pipeline.parallel.settings import ComputeSpec, FsdpSpec
from pipeline.parallel.strategy import Strategy
from pipeline.parallel.world import World, open_world


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    alone = open_world(60)
    yield alone
    alone.close()


def linear(world: World) -> tuple[nn.Module, Strategy]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    optimizer = RMSpropTF(param_groups(model.named_parameters(), 0.0), lr=0.0)
    return model, build_strategy(FsdpSpec(), world, model, optimizer, ComputeSpec(), FIRST_SLOTS)


def test_blocks_are_gathered_one_by_one() -> None:
    model = EfficientNet(ModelSpec(name="tiny"), 10)
    assert sharded_units(model) == list(model.blocks)


def test_lists_of_lists_are_gathered_by_their_innermost_members() -> None:
    inner = nn.ModuleList([nn.Linear(1, 1), nn.SiLU(), nn.Linear(1, 1)])
    model = nn.ModuleDict({"stages": nn.ModuleList([inner]), "head": nn.Linear(1, 1)})
    assert sharded_units(model) == [inner[0], inner[2]]


def test_whole_weights_stay_readable_after_the_state_was_asked_for(world: World) -> None:
    model, strategy = linear(world)
    weights = strategy.weights()
    before = {name: weight.tolist() for name, weight in weights.items()}
    model.state_dict()  # drops what was gathered
    assert {name: weight.tolist() for name, weight in weights.items()} == before


def test_a_step_after_the_weights_were_asked_for_uses_the_new_ones(world: World) -> None:
    model, strategy = linear(world)
    images = torch.ones(4, 3)
    losses = []
    for _ in range(3):
        losses.append(float(strategy.micro_step(lambda m: m(images).square().mean(), last=True)))
        strategy.weights()
        strategy.step(0.1)
        strategy.weights()
    assert losses[0] > losses[1] > losses[2]
    whole = strategy.weights()
    plain = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    plain.load_state_dict(whole)
    expected = plain(images)
    strategy.micro_step(lambda m: _check(m(images), expected), last=True)


def _check(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    assert torch.equal(found, expected)
    return found.mean()


def test_restored_slots_begin_as_the_optimizer_says(world: World) -> None:
    _, strategy = linear(world)
    strategy.micro_step(lambda m: m(torch.ones(4, 3)).square().mean(), last=True)
    strategy.step(0.1)
    first = strategy.snapshot()
    strategy.restore(type(first)(first.weights, {}, {}))
    for key, slot in strategy.snapshot().slots.items():
        assert torch.all(slot == FIRST_SLOTS[key.split("/")[0]]), key
