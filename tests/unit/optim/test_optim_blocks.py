"""Blocks: pieces are the tensors themselves, none is left out, and a block is small."""

import copy

import pytest
import torch
from torch import nn

from pipeline.optim import blocks
from pipeline.optim.blocks import in_blocks
from pipeline.optim.rmsprop import RMSpropTF

SHAPES = [(3,), (40, 7, 3, 3), (5,), (101,), (64, 2, 3, 3), (1,), (900,)]


def drawn(seed: int, last: bool = False) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=generator) for shape in SHAPES]
    layout = torch.channels_last if last else torch.contiguous_format
    return [t.contiguous(memory_format=layout) if t.ndim == 4 else t for t in tensors]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 100)


def elements(block: list[list[torch.Tensor]]) -> int:
    return sum(tensor.numel() for tensor in block[0])


@pytest.mark.parametrize("last", [False, True])
def test_pieces_are_views_and_cover_everything_once(last: bool) -> None:
    first, second = drawn(0, last), drawn(1, last)
    for left, right in in_blocks([first, second]):
        for one, other in zip(left, right, strict=True):
            assert one.shape == other.shape
            one += 1
            other -= 1
    for tensors, seed, moved in ((first, 0, 1), (second, 1, -1)):
        for tensor, before in zip(tensors, drawn(seed, last), strict=True):
            assert torch.equal(tensor, before + moved)


def test_blocks_hold_what_a_core_can_and_no_more() -> None:
    sizes = [elements(block) for block in in_blocks([drawn(0)])]
    assert sum(sizes) == sum(tensor.numel() for tensor in drawn(0))
    assert max(sizes) == 100 * torch.get_num_threads()
    assert len(sizes) > sum(sizes) // 100


def test_tensors_of_unlike_layouts_are_not_cut_but_still_meet() -> None:
    """Their elements lie in other places: a cut along memory would pair the wrong ones."""
    plain, last = drawn(0), drawn(1, last=True)
    for left, right in in_blocks([plain, last]):
        for one, other in zip(left, right, strict=True):
            one.copy_(other)
    assert all(torch.equal(one, other) for one, other in zip(plain, last, strict=True))


def test_parts_of_larger_tensors_are_left_whole() -> None:
    wide = torch.zeros(300, 4)
    (block,) = in_blocks([[wide[:, :2]]])
    block[0][0] += 1
    assert wide.sum() == 600 and wide[:, 2:].sum() == 0


def test_nothing_gives_no_block() -> None:
    assert list(in_blocks([[], []])) == []


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("decay", [0.0, 1e-2])
def test_an_optimizer_gives_the_same_bits_in_blocks_and_whole(
    last: bool, decay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = {}
    for size in (100, 1 << 40):
        monkeypatch.setattr(blocks, "BLOCK", size)
        params = [nn.Parameter(tensor.clone()) for tensor in drawn(0, last)]
        optimizer = RMSpropTF(params, lr=0.1, weight_decay=decay)
        for step in range(5):
            for parameter, grad in zip(params, drawn(10 + step, last), strict=True):
                parameter.grad = grad
            optimizer.step()
        trained[size] = params
    assert all(torch.equal(one, other) for one, other in zip(*trained.values(), strict=True))


def test_slots_follow_the_layout_of_their_weights() -> None:
    """Slots from a checkpoint are contiguous; a GPU joins tensors of like layouts only."""
    weight = nn.Parameter(torch.randn(8, 4, 3, 3).contiguous(memory_format=torch.channels_last))
    optimizer = RMSpropTF([weight], lr=0.1)
    weight.grad = torch.ones_like(weight)
    squares = torch.rand(8, 4, 3, 3)
    expected = squares * 0.9
    expected += 0.1
    optimizer.state[weight] = {"square_avg": squares, "momentum_buffer": torch.zeros(8, 4, 3, 3)}
    optimizer.step()
    state = copy.copy(optimizer.state[weight])
    assert {slot.stride() for slot in state.values()} == {weight.stride()}
    torch.testing.assert_close(state["square_avg"], expected)
