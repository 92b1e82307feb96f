"""Whether the ranks still hold the same numbers, looked at before a checkpoint is taken.

Replicas that drift apart (a faulty device, a sum that one rank took in another order) train on
without any sign. One exact checksum of the bits of each tensor is compared with rank 0's.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.checkpoint.state import TrainState
from pipeline.parallel.world import World
from pipeline.spec import Failure

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ODD = 0x9E3779B1
_BLOCK = 16384
"""Elements of host memory that are looked at together: they stay in the core's cache, and torch
takes so few in one thread. Whole tensors asked for six times the state's memory, and had all
threads meet at each of them: ten times the processor time, a hundred where cores were not free."""


def checksums(tensors: list[Tensor], device: torch.device) -> Tensor:
    """Return an int64 for each tensor, a sum over its elements' bits, on `device`.

    Whole numbers that wrap around: the order of adding does not matter, so equal bits give equal
    sums in any memory layout. The square keeps differences from cancelling out.
    """
    sums = [_checksum(tensor).to(device, non_blocking=True) for tensor in tensors]
    return torch.stack(sums) if sums else torch.zeros(0, dtype=torch.int64, device=device)


def check_replicas(state: TrainState, world: World) -> None:
    """Compare `state` over the ranks, a collective.

    Raises:
        Failure: a rank's tensor has other bits than rank 0's; the same on all ranks.
    """
    if world.size == 1:
        return
    tensors = _named(state)
    own = checksums(list(tensors.values()), world.device).tolist()
    pairs = zip(own, world.share(own), strict=True)
    first = next((index for index, (here, there) in enumerate(pairs) if here != there), len(own))
    found = torch.zeros(world.size, dtype=torch.int64, device=world.device)
    found[world.rank] = len(own) - first
    world.sum(found)
    if found.any():
        raise Failure(_drift(state.step, [len(own) - n for n in found.tolist()], list(tensors)))


def first_not_finite(state: TrainState, world: World) -> str | None:
    """Return the first tensor that holds infinities or NaN on any rank, a collective."""
    tensors = {name: t for name, t in _named(state).items() if t.is_floating_point()}
    largest = [_largest(tensor).to(world.device, non_blocking=True) for tensor in tensors.values()]
    if not largest:
        return None
    sick = (~torch.isfinite(torch.stack(largest))).to(torch.int64)
    world.sum(sick)
    return next((name for name, n in zip(tensors, sick.tolist(), strict=True) if n), None)


def _named(state: TrainState) -> dict[str, Tensor]:
    return {
        f"{part}/{name}": tensor.detach()
        for part, tensors in state.tensors().items()
        for name, tensor in sorted(tensors.items())
    }


def _checksum(tensor: Tensor) -> Tensor:
    sums = [torch.zeros((), dtype=torch.int64, device=tensor.device)]
    for block in _blocks(tensor.view(_BITS[tensor.element_size()])):
        bits = block.to(torch.int64)
        sums.append((bits + _ODD).mul_(bits).sum())
    return torch.stack(sums).sum()


def _largest(tensor: Tensor) -> Tensor:
    """Return the largest magnitude, NaN where there is one."""
    found = [torch.zeros((), device=tensor.device)]
    for block in _blocks(tensor):
        found += torch.aminmax(block.float())  # an eighth of the time of an infinity norm
    return torch.stack(found).abs().amax()


def _blocks(tensor: Tensor) -> Iterator[Tensor]:
    """Yield all elements in the order in which they lie in memory; a GPU's at once."""
    if not tensor.numel():
        return
    if tensor.is_cuda:
        yield tensor
        return
    outermost_first = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    yield from tensor.permute(outermost_first).reshape(-1).split(_BLOCK)


def _drift(step: int, first: list[int], names: list[str]) -> str:
    """Name the ranks that differ from most others, and the first tensor in which they do."""
    apart = [rank for rank, index in enumerate(first) if index < len(names)]
    name = names[min(first)]
    who = f"rank {', '.join(map(str, apart))} differs from rank 0"
    if len(apart) > len(first) // 2:  # most do, so rank 0 is the odd one
        who = f"rank 0 differs from {len(apart)} of {len(first) - 1} ranks"
    return (
        f"step {step}: {who} in '{name}': the replicas drifted apart, so no checkpoint was taken. "
        "Start again (it goes on from the last checkpoint); if it happens again, look at the "
        "device of that rank and leave out its node"
    )
