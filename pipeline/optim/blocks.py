"""Cuts lists of tensors into blocks that fit a core's cache, for elementwise work of many passes.

A GPU takes whole lists in one launch and gains nothing from blocks. On a CPU ten passes over all
weights go through main memory ten times, over a block of them once.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

BLOCK = 1 << 17
"""Elements of a block for each core, half a MB of each tensor. Tried 2^14 to 2^18: smaller ones
cost more in calls than they save in memory, larger ones leave the cache."""

Lists = list[list[Tensor]]


def in_blocks(lists: Sequence[Sequence[Tensor]]) -> Iterator[Lists]:
    """Yield pieces of parallel lists of tensors; together they are the lists, in order.

    `lists[i][k]` are of one shape for each k. Pieces are views: what is written in place arrives.
    On other devices than the CPU the lists come as one piece.
    """
    if not lists[0] or lists[0][0].device.type != "cpu":
        if lists[0]:
            yield [list(members) for members in lists]
        return
    size = BLOCK * torch.get_num_threads()
    block: Lists = [[] for _ in lists]
    filled = 0
    for row in zip(*lists, strict=True):
        for piece in _cut(row, size):
            if filled and filled + piece[0].numel() > size:
                yield block
                block, filled = [[] for _ in lists], 0
            for members, tensor in zip(block, piece, strict=True):
                members.append(tensor)
            filled += piece[0].numel()
    if filled:
        yield block


def _cut(row: tuple[Tensor, ...], size: int) -> Iterator[tuple[Tensor, ...]]:
    """Yield `row`, cut along its memory where it is larger than a block and laid out alike."""
    count, strides = row[0].numel(), row[0].stride()
    if count <= size or not all(t.stride() == strides and _is_flat(t) for t in row):
        yield row
        return
    flat = [tensor.as_strided((count,), (1,)) for tensor in row]
    yield from zip(*(tensor.split(size) for tensor in flat), strict=True)


def _is_flat(tensor: Tensor) -> bool:
    """Return whether `tensor` is an ordinary one (no DTensor) that fills its memory."""
    if type(tensor) not in (Tensor, nn.Parameter):
        return False
    return tensor.is_contiguous() or (
        tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    )
