"""Dropout and drop-path masks, drawn outside the model and handed in as tensors.

The forward pass holds no random state: the same key gives the same masks on any rank, in any
attempt, compiled or not. Masks already hold the factor 1/keep, so their expectation is one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch


class Noise(NamedTuple):
    """Factors for one micro-batch of B images, float32; 0 drops, 1/keep keeps.

    `drop_path` is (num_blocks, B) and scales a block's branch, `dropout` is (B, head width) and
    scales the pooled features.
    """

    drop_path: torch.Tensor
    dropout: torch.Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Noise":
        """Return the same factors on `device`."""
        return Noise(*(tensor.to(device, non_blocking=non_blocking) for tensor in self))


def drop_path_rates(num_blocks: int, last: float) -> tuple[float, ...]:
    """Return `last * i / n` for block i of n: the official code's linear rule, so 0 comes first."""
    return tuple(last * index / num_blocks for index in range(num_blocks))


def draw_noise(
    drop_path: Sequence[float],
    dropout: float,
    batch: int,
    head: int,
    rng: np.random.Generator,
) -> Noise:
    """Draw the factors of `batch` images, layer by layer, block 0 first and dropout last.

    `drop_path` holds one drop rate per block, `head` is the number of pooled features. A layer
    with rate 0 takes its turn all the same, so that one layer's rate never moves another's draws.
    """
    paths = [_factors(rate, (batch,), rng) for rate in drop_path]
    features = _factors(dropout, (batch, head), rng)
    stacked = np.stack(paths) if paths else np.ones((0, batch), dtype=np.float32)
    return Noise(torch.from_numpy(stacked), torch.from_numpy(features))


def _factors(rate: float, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    assert 0 <= rate < 1, f"drop rate {rate}: expected 0 <= rate < 1"
    kept = rng.random(shape, dtype=np.float32) >= np.float32(rate)
    return kept.astype(np.float32) / np.float32(1 - rate)
