"""Every strategy, alone and with two ranks: the same training, the same checkpoints.

`strategy_worker.py` runs them all, once for each number of ranks; the tests judge what it wrote.
The reference is DDP on one rank in fp32.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.strategy_worker import CLIP, MIXED, SAVED, STRATEGIES, TOO_LARGE

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

WORKER = "tests.distributed.strategy_worker"
WORLDS = (1, 2)
TIMEOUT_S = 400
FP32 = 1e-6
"""Sums of other orders: one unit in the last place of what is near one."""
BOUNDS = {"bf16": 2e-2, "fp16": 2e-3}
"""On the loss; bf16 keeps 8 bits and fp16 11, and losses here are about 1.6."""


@dataclass
class Results:
    """What the workers wrote."""

    folder: Path
    facts: dict[tuple[int, int], dict[str, Any]]

    def of(self, name: str, world: int = 1, rank: int = 0) -> dict[str, Any]:
        return self.facts[world, rank][name]

    def tensors(self, name: str, world: int = 1, rank: int = 0) -> dict[str, torch.Tensor]:
        return load_file(self.folder / f"{name}-{world}-{rank}.safetensors")


@pytest.fixture(scope="module")
def results(starters, tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("strategies")
    facts = {}
    for world in WORLDS:
        starters.start([WORKER, str(folder)], world, folder / f"log-{world}").finish(TIMEOUT_S)
        for rank in range(world):
            facts[world, rank] = json.loads((folder / f"facts-{world}-{rank}.json").read_text())
    return Results(folder, facts)


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def largest(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", STRATEGIES)
def test_in_fp32_losses_weights_slots_and_average_are_the_same(
    results: Results, name: str, world: int
) -> None:
    reference, run = results.of("fp32-ddp"), results.of(f"fp32-{name}", world)
    assert largest(run["losses"], reference["losses"]) < FP32
    assert all(run["applied"]) and run["scaler"] == {}
    whole = results.tensors("fp32-ddp")
    assert {key.split(":")[0] for key in whole} == {"weights", "slots", "buffers", "ema"}
    assert apart(results.tensors(f"fp32-{name}", world), whole) < FP32


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", STRATEGIES)
def test_the_average_follows_the_whole_weights(results: Results, name: str, world: int) -> None:
    """The average of a weight, from the weights of each strategy's own checkpoints."""
    saved, last = (results.tensors(f"{key}-{name}", world) for key in ("saved", "fp32"))
    for key in (key for key in last if key.startswith("ema:")):
        assert not torch.equal(last[key], saved[key]), f"{key} stands still"
    moved = [key[4:] for key in last if key.startswith("ema:") and f"weights:{key[4:]}" in last]
    assert moved and all(last[f"ema:{n}"].shape == last[f"weights:{n}"].shape for n in moved)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("precision", BOUNDS)
def test_mixed_precision_stays_within_bounds(
    results: Results, precision: str, name: str, world: int
) -> None:
    reference, run = results.of("fp32-ddp"), results.of(f"{precision}-{name}", world)
    difference = largest(run["losses"], reference["losses"])
    assert 0 < difference < BOUNDS[precision], "0: it was computed in fp32"
    assert bool(run["scaler"]) == (precision == "fp16")


def test_all_ranks_end_with_the_same_bits(results: Results) -> None:
    assert results.facts[2, 0] == results.facts[2, 1]
    files = sorted(results.folder.glob("*-2-0.safetensors"))
    assert len(files) > 3 * len(STRATEGIES)
    for file in files:
        name = file.name.removesuffix("-2-0.safetensors")
        assert apart(results.tensors(name, 2, 0), results.tensors(name, 2, 1)) == 0, name


@pytest.mark.parametrize("taker", STRATEGIES)
def test_a_checkpoint_of_any_strategy_and_world_goes_on_in_any_other(
    results: Results, taker: str
) -> None:
    expected = results.of("fp32-ddp")["losses"][SAVED]
    pairs = [
        (f"exchange-{giver}-{size}-{taker}", world)
        for world in WORLDS
        for size in WORLDS[:world]
        for giver in list(STRATEGIES)[: None if size < world else _place(taker) + 1]
    ]
    assert len(pairs) > len(STRATEGIES)
    for name, world in pairs:
        run = results.of(name, world)
        assert run["same"], f"{name}: what was restored is given out otherwise"
        assert abs(run["losses"][0] - expected) < FP32, f"{name}: it goes on otherwise"


def _place(name: str) -> int:
    """A taker meets the checkpoints of its own world that were written before and with its own."""
    return list(STRATEGIES).index(name)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", STRATEGIES)
def test_gradients_are_clipped_by_their_global_norm(
    results: Results, name: str, world: int
) -> None:
    reference, run = results.of("clip-ddp"), results.of(f"clip-{name}", world)
    assert largest(run["losses"], reference["losses"]) < FP32
    assert apart(results.tensors(f"clip-{name}", world), results.tensors("clip-ddp")) < FP32
    unclipped = results.of("fp32-ddp")["losses"][: len(run["losses"])]
    assert largest(run["losses"], unclipped) > 100 * FP32, f"{CLIP} clips nothing here"


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", STRATEGIES)
def test_micro_batches_add_up_to_the_large_batch(results: Results, name: str, world: int) -> None:
    large = results.tensors("plain-large")
    added = results.tensors(f"plain-{name}", world)
    for key in (key for key in large if key.startswith(("weights:", "slots:"))):
        assert torch.allclose(added[key], large[key], atol=FP32, rtol=0), key


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", MIXED)
def test_an_overflow_skips_the_step_and_halves_the_scale(
    results: Results, name: str, world: int
) -> None:
    run = results.of(f"overflow-{name}", world)
    assert run["kept"], "a skipped step changed weights, slots or the average"
    assert not run["applied"][0] and run["applied"][-1], "nothing overflowed, or for ever"
    assert run["scaler"]["scale"] == TOO_LARGE / 2 ** run["applied"].count(False)
    assert run["scaler"]["growth"] == run["applied"][::-1].index(False)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", MIXED)
def test_an_overflow_on_one_rank_skips_the_step_on_all(
    results: Results, name: str, world: int
) -> None:
    for rank in range(world):
        run = results.of(f"spike-{name}", world, rank)
        assert run["applied"] == [True, True, False, True, True]
        assert run["scaler"] == {"scale": 2.0**15, "growth": 2.0}
    reference = results.tensors("spike-ddp")
    weights = [key for key in reference if key.startswith("weights:")]
    mine = results.tensors(f"spike-{name}", world)
    assert all(torch.isfinite(mine[key]).all() for key in weights)
    assert max(float((mine[key] - reference[key]).abs().max()) for key in weights) < 1e-3


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", STRATEGIES)
def test_discarded_gradients_leave_no_trace(results: Results, name: str, world: int) -> None:
    run = results.of(f"discard-{name}", world)
    assert run["kept"]
    assert largest(run["losses"], results.of("fp32-ddp")["losses"][SAVED:]) < FP32


def test_deepspeed_comes_without_mlflow(results: Results) -> None:
    assert all(facts["mlflow"] is False for facts in results.facts.values())
