"""Checksums of the ranks' numbers, and states that must not be saved."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.checkpoint.state import TrainState
from pipeline.engine.replicas import check_replicas, checksums, first_not_finite
from pipeline.parallel.world import World

CPU = torch.device("cpu")
WORLD = World(0, 1, CPU)


def checksum(tensor: Tensor) -> int:
    return int(checksums([tensor], CPU)[0])


def test_equal_bits_have_equal_sums_in_any_layout() -> None:
    images = torch.randn(4, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    expected = checksum(images)
    assert checksum(images.to(memory_format=torch.channels_last)) == expected
    assert checksum(images.half().float()) != expected


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 99), st.integers(0, 31), st.integers(0, 99), st.integers(0, 31))
def test_one_or_two_flipped_bits_are_seen(i: int, bit: int, j: int, other: int) -> None:
    before = torch.randn(100, generator=torch.Generator().manual_seed(1))
    after = before.clone()
    bits = after.view(torch.int32)
    bits[i] ^= -(2**31) if bit == 31 else 1 << bit
    assert checksum(after) != checksum(before)
    bits[j] ^= -(2**31) if other == 31 else 1 << other
    assert (checksum(after) == checksum(before)) == torch.equal(bits, before.view(torch.int32))


def test_differences_do_not_cancel_out() -> None:
    """An ulp up here and one down there, as two orders of adding give them."""
    before = torch.linspace(1, 2, 50)
    after = before.clone()
    after.view(torch.int32)[3] += 1
    after.view(torch.int32)[40] -= 1
    assert checksum(after) != checksum(before)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool]
)
def test_any_kind_of_number_has_a_sum(dtype: torch.dtype) -> None:
    zero, one = torch.zeros(3).to(dtype), torch.ones(3).to(dtype)
    assert checksum(zero) != checksum(one)
    assert checksum(torch.tensor(0.0)) != checksum(torch.tensor(-0.0))
    assert checksums([], CPU).tolist() == []


def state(**parts: dict[str, Tensor]) -> TrainState:
    empty: dict[str, dict[str, Tensor]] = {"weights": {}, "buffers": {}, "ema": {}, "slots": {}}
    return TrainState(3, **{**empty, **parts})  # type: ignore[arg-type]


@pytest.mark.parametrize("part", ["weights", "buffers", "ema", "slots"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_tensor_that_is_not_finite_is_named(part: str, value: float) -> None:
    good = {"a": torch.ones(4), "b": torch.zeros(0), "n": torch.tensor([2**40])}
    sick = {**good, "c.weight": torch.tensor([[1.0, value]])}
    assert first_not_finite(state(weights=good, ema=good), WORLD) is None
    assert first_not_finite(state(**{part: sick}), WORLD) == f"{part}/c.weight"
    assert first_not_finite(state(), WORLD) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 16383, 16384, 99_999])
def test_large_tensors_are_looked_at_from_end_to_end(where: int, value: float) -> None:
    images = torch.ones(400, 250).t()  # not in the order in which it lies in memory
    whole = checksum(images)
    assert checksum(images.contiguous()) == whole
    images.t().view(-1)[where] = value
    assert checksum(images) != whole
    assert first_not_finite(state(ema={"w": images}), WORLD) == "ema/w"


def test_large_numbers_are_still_numbers() -> None:
    most = torch.full((1000,), torch.finfo(torch.float32).max)
    assert first_not_finite(state(weights={"w": most}), WORLD) is None


def test_one_rank_has_nobody_to_differ_from() -> None:
    check_replicas(state(weights={"w": torch.ones(2)}), WORLD)
