"""Stochastic depth and dropout: survival per block, one draw per sample, means preserved.

Source: effnetv2_model.py of google/automl, efficientnetv2: with a survival probability of 0.8,
block i of n survives with 1 - 0.2 * i / n; `drop_connect` in utils.py there draws for each sample
and divides what is kept by its survival. EfficientNet (Tan and Le 2019) has the same 0.8.
"""

import numpy as np
import pytest
import torch

from pipeline.models.blocks import MBConv
from pipeline.models.layout import Block, lay_out
from pipeline.models.noise import draw_noise, drop_path_rates
from pipeline.models.table import TABLE, ModelSpec
from pipeline.plan.draws import Stream, keyed

# blocks in all, of the released tables
BLOCKS = {"v2_b0": 21, "v2_b1": 27, "v2_b2": 28, "v2_b3": 32, "v2_s": 40, "v2_m": 57, "v2_l": 79,
          "v2_xl": 100, "v1_b0": 16, "v1_b7": 55}  # fmt: skip


@pytest.mark.parametrize(("name", "count"), BLOCKS.items())
def test_survival_falls_in_a_line_and_the_first_block_always_survives(
    name: str, count: int
) -> None:
    assert len(lay_out(TABLE[name]).blocks) == count
    survival = [1 - rate for rate in drop_path_rates(count, 0.2)]
    assert survival == pytest.approx([1 - 0.2 * i / count for i in range(count)])
    assert survival[0] == 1 and survival[-1] == pytest.approx(1 - 0.2 * (count - 1) / count)


def test_every_sample_has_its_own_draw_and_the_mean_is_kept() -> None:
    rates = drop_path_rates(40, 0.2)
    noise = draw_noise(rates, 0.3, 20_000, 8, keyed(Stream.NOISE, 0, 1, 0))
    assert noise.drop_path.shape == (40, 20_000)
    for block, rate in enumerate(rates):
        factors = noise.drop_path[block]
        kept = factors[factors > 0]
        torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - rate)))
        error = 4 * np.sqrt(rate * (1 - rate) / 20_000)  # four deviations of the share
        assert abs(len(kept) / 20_000 - (1 - rate)) <= error
        assert factors.mean().item() == pytest.approx(1.0, abs=error / (1 - rate) + 1e-6)
    assert noise.dropout.mean().item() == pytest.approx(1.0, abs=0.01)
    shares = (noise.dropout == 0).float().mean(dim=0)
    assert shares.tolist() == pytest.approx([0.3] * 8, abs=0.015)


@torch.no_grad()
def test_a_dropped_sample_passes_the_block_untouched_and_its_neighbours_do_not() -> None:
    """y = x + factor * branch(x), sample by sample: 0 leaves x, 1 / survival scales the branch."""
    shape = Block("mb", 0, 1, 8, 8, kernel=3, stride=1, expand=4, squeezed=2)
    torch.manual_seed(0)
    block = MBConv(shape, ModelSpec(name="v2_s")).eval()
    x = torch.randn(3, 8, 6, 6)
    whole = block(x)
    mixed = block(x, torch.tensor([0.0, 1.0, 1.25]))
    assert torch.equal(mixed[0], x[0])
    torch.testing.assert_close(mixed[1], whole[1])
    torch.testing.assert_close(mixed[2], x[2] + 1.25 * (whole[2] - x[2]))
