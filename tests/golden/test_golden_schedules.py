"""The published schedules: steps, sizes, magnitudes, rates, the average's decay and the cost.

Sources: google/automl efficientnetv2 (datasets.py, effnetv2_configs.py, main.py, utils.py);
Tan and Le 2021 (arXiv 2104.00298), table 6 and algorithm 1. Costs are counted by this project's
own counter, whose values agree with the papers' (test_golden_models.py).
"""

from fractions import Fraction
from functools import cache
from pathlib import Path

import pytest

from pipeline.models.count import macs
from pipeline.models.table import TABLE
from pipeline.plan.plan import Plan, Stage
from pipeline.plan.table import mean_macs
from pipeline.recipe import load_recipe

TRAIN, TRAINVAL, WINTER21, FALL11 = 1_256_144, 1_281_167, 13_021_965, 12_720_275


@cache
def plan(repo: Path, name: str, num_train: int) -> Plan:
    return load_recipe(repo / "configs" / f"{name}.yaml").plan(num_train)


@pytest.mark.parametrize(
    ("name", "num_train", "steps"),
    [
        ("v2_s_1k", TRAIN, 107_336),
        ("v2_s_1k", TRAINVAL, 109_474),
        ("v2_l_1k_paper", TRAIN, 107_336),
        ("v2_l_21k", FALL11, 186_332),
        ("v2_xl_21k_released", FALL11, 186_332),
        ("v2_l_21k", WINTER21, 190_751),
        ("v2_m_21k_ft1k", TRAIN, 36_801),
        ("transfer_finetune", 8_144, 10_000),  # Cars: the floor holds
        ("transfer_finetune", 50_000, 10_000),  # CIFAR
        ("v1_b0_1k", TRAIN, 107_336),
        ("v1_b7_1k", TRAIN, 107_336),
        ("v2_b2_1k", TRAIN, 107_336),
        ("v2_b3_21k_ft1k", TRAIN, 36_801),
        ("v2_b0_21k_released", FALL11, 186_332),
        ("transfer_finetune_paper", 50_000, 10_000),
    ],
)
def test_total_steps(repo: Path, name: str, num_train: int, steps: int) -> None:
    assert plan(repo, name, num_train).total_steps == steps


def test_an_epoch_is_not_a_whole_number_of_steps(repo: Path) -> None:
    assert round(plan(repo, "v2_s_1k", TRAIN).steps_per_epoch, 2) == 306.68


SIZES = {
    "v2_s_1k": [171, 214, 257, 300],
    "v2_m_1k": [192, 256, 320, 384],
    "v2_l_1k": [192, 256, 320, 384],
    "v2_s_1k_paper": [128, 185, 243, 300],
    "v2_m_1k_paper": [128, 212, 296, 380],
    "v2_l_1k_paper": [128, 212, 296, 380],
    "v2_s_1k_arxiv_v1": [128, 185, 243, 300],
    "v2_m_1k_arxiv_v1": [128, 212, 296, 380],
    "v2_l_1k_arxiv_v1": [128, 212, 296, 380],
    "v2_s_21k": [128, 185, 243, 300],
    "v2_m_21k": [128, 212, 296, 380],
    "v2_l_21k": [128, 212, 296, 380],
    "v2_xl_21k": [128, 212, 296, 380],
    "v2_s_21k_released": [224],
    "v2_m_21k_released": [224],
    "v2_l_21k_released": [224],
    "v2_xl_21k_released": [224],
    "v2_s_21k_ft1k": [384],
    "v2_m_21k_ft1k": [480],
    "v2_l_21k_ft1k": [480],
    "v2_xl_21k_ft1k": [512],
    "v2_b0_1k": [144, 160, 176, 192],
    "v2_b1_1k": [144, 160, 176, 192],
    "v2_b2_1k": [148, 168, 188, 208],
    "v2_b3_1k": [156, 184, 212, 240],
    "v2_b0_21k": [128, 149, 171, 192],
    "v2_b3_21k": [128, 165, 203, 240],
    "v2_b2_21k_released": [224],
    "v2_b2_21k_ft1k": [256],
    "v2_b3_21k_ft1k": [288],
    "v1_b0_1k": [176],
    "v1_b1_1k": [192],
    "v1_b2_1k": [208],
    "v1_b3_1k": [240],
    "v1_b4_1k": [304],
    "v1_b5_1k": [352],
    "v1_b6_1k": [416],
    "v1_b7_1k": [480],
}


@pytest.mark.parametrize(("name", "sizes"), SIZES.items())
def test_sizes_in_px(repo: Path, name: str, sizes: list[int]) -> None:
    assert [s.settings.px for s in plan(repo, name, TRAIN).stages] == sizes


MAGNITUDES = {
    # RandAugment, mixup = cutmix, dropout (which does not grow) by stage: the released code
    "v2_s_1k": ([5, 6.67, 8.33, 10], [0] * 4, [0] * 4, [0.2] * 4),
    "v2_m_1k": ([5, 8.33, 11.67, 15], [0, 0.067, 0.133, 0.2], [0, 0.067, 0.133, 0.2], [0.3] * 4),
    "v2_l_1k": ([5, 10, 15, 20], [0, 0.167, 0.333, 0.5], [0, 0.167, 0.333, 0.5], [0.4] * 4),
    # the final paper: no cutmix, and dropout grows
    "v2_s_1k_paper": ([5, 8.33, 11.67, 15], [0] * 4, [0] * 4, [0.1, 0.167, 0.233, 0.3]),
    "v2_m_1k_paper": ([5, 10, 15, 20], [0, 0.067, 0.133, 0.2], [0] * 4, [0.1, 0.2, 0.3, 0.4]),
    "v2_l_1k_paper": (
        [5, 11.67, 18.33, 25], [0, 0.167, 0.333, 0.5], [0] * 4, [0.1, 0.233, 0.367, 0.5],
    ),
    "v2_l_21k": (
        [5, 11.67, 18.33, 25], [0, 0.167, 0.333, 0.5], [0] * 4, [0.1, 0.233, 0.367, 0.5],
    ),
    # its first version: L's mixup ends lower
    "v2_s_1k_arxiv_v1": ([5, 8.33, 11.67, 15], [0] * 4, [0] * 4, [0.1, 0.167, 0.233, 0.3]),
    "v2_m_1k_arxiv_v1": ([5, 10, 15, 20], [0, 0.067, 0.133, 0.2], [0] * 4, [0.1, 0.2, 0.3, 0.4]),
    "v2_l_1k_arxiv_v1": (
        [5, 11.67, 18.33, 25], [0, 0.133, 0.267, 0.4], [0] * 4, [0.1, 0.233, 0.367, 0.5],
    ),
    # nothing at all
    "v2_l_21k_released": ([0], [0], [0], [0]),
    "v2_l_21k_ft1k": ([0], [0], [0], [0]),
}  # fmt: skip


def by_stage(stages: list[Stage], field: str) -> list[float]:
    return [getattr(stage, field) for stage in stages]


@pytest.mark.parametrize(("name", "expected"), MAGNITUDES.items())
def test_magnitudes(repo: Path, name: str, expected: tuple[list[float], ...]) -> None:
    stages = [planned.settings for planned in plan(repo, name, TRAIN).stages]
    for field, values in zip(("randaugment", "mixup", "cutmix", "dropout"), expected, strict=True):
        digits = 2 if field == "randaugment" else 3
        assert [round(value, digits) for value in by_stage(stages, field)] == values, field


def test_stages_change_at_quarters_of_the_steps(repo: Path) -> None:
    stages = plan(repo, "v2_s_1k", TRAIN).stages
    assert [s.end for s in stages] == [26_834, 53_668, 80_502, 107_336]
    assert [s.end for s in plan(repo, "v2_s_1k", TRAINVAL).stages] == [
        int((s + 1) / 4 * 109_474) for s in range(4)
    ]


def test_the_1k_rate_is_a_staircase_to_0_0031(repo: Path) -> None:
    made = plan(repo, "v2_s_1k", TRAIN)
    warmup = int(Fraction(5 * TRAIN, 4096))
    assert made.lr.warmup_steps == warmup == 1533
    assert made.at(0).lr == 0
    assert made.at(766).lr == pytest.approx(0.256 * 766 / 1533)
    # Counted from step 0: after 5 epochs two stairs of 2.4 epochs are down already.
    assert made.at(warmup).lr == pytest.approx(0.256 * 0.97**2)
    stair = 2.4 * TRAIN / 4096
    for step in (5_000, 26_834, 53_668, 80_502):
        assert made.at(step).lr == pytest.approx(0.256 * 0.97 ** int(step / stair))
    assert made.at(107_335).lr == pytest.approx(0.256 * 0.97**145)
    assert round(made.at(107_335).lr, 4) == 0.0031


def test_the_21k_rate_is_a_cosine_from_step_zero(repo: Path) -> None:
    made = plan(repo, "v2_l_21k", FALL11)
    assert made.lr.warmup_steps == 3_105
    assert made.at(3_104).lr == pytest.approx(0.128 * 3_104 / 3_105)
    assert made.at(93_166).lr == pytest.approx(0.064)
    assert made.at(186_331).lr < 1e-8


def test_the_finetuning_rate_is_constant(repo: Path) -> None:
    made = plan(repo, "v2_s_21k_ft1k", TRAIN)
    assert made.at(0).lr == 0
    assert {made.at(step).lr for step in (2_453, 10_000, 36_800)} == {0.001}


@pytest.mark.parametrize(("name", "decay"), [("v2_s_1k", 0.9999), ("v2_s_21k_ft1k", 0.9996)])
def test_the_average_warms_up_like_tensorflows(repo: Path, name: str, decay: float) -> None:
    """min(decay, (1 + t) / (10 + t)): the 0.9999 are reached after 89,990 steps."""
    made = plan(repo, name, TRAIN)
    assert [made.at(t).ema_decay for t in (0, 8, 90)] == [0.1, 0.5, 0.91]
    reached = round((10 * decay - 1) / (1 - decay))
    assert made.at(reached - 10).ema_decay < decay
    assert made.at(min(reached + 10, made.total_steps - 1)).ema_decay == decay


@pytest.mark.parametrize(
    ("name", "mean", "final", "saved"),
    [
        ("v2_s_1k", 3.49, 5.31, 34),
        ("v2_m_1k", 9.40, 15.74, 40),
        ("v2_l_1k", 21.45, 35.90, 40),
        ("v2_b3_1k", 1.35, 1.91, 29),
        # the paper's rule, by the same counter; no source prints these
        ("v2_s_1k_paper", 2.96, 5.31, 44),
        ("v2_m_1k_paper", 8.13, 15.65, 48),
        ("v2_l_1k_paper", 18.53, 35.67, 48),
    ],
)
def test_compute_saved_by_growing_images(
    repo: Path, name: str, mean: float, final: float, saved: int
) -> None:
    made = plan(repo, name, TRAIN)
    row = TABLE[load_recipe(repo / "configs" / f"{name}.yaml").model.name]

    def cost(px: int) -> float:
        return float(macs(row, px, 1000))

    last = cost(made.stages[-1].settings.px)
    assert round(mean_macs(made, cost) / 1e9, 2) == mean
    assert round(last / 1e9, 2) == final
    assert round(100 * (1 - mean_macs(made, cost) / last)) == saved
    assert f"{saved}% saved" in made.table(cost)
