"""The printed plan: what a person checks before a long training is queued."""

from collections.abc import Callable

from pipeline.plan.plan import Plan
from pipeline.plan.table import mean_macs


def square(px: int) -> float:
    """A made-up cost: a thousand multiply-adds a pixel, in millions."""
    return px * px * 1e6


def test_each_stage_is_a_line_with_its_values(plan: Callable[..., Plan]) -> None:
    lines = plan(steps=100).table().splitlines()
    assert lines[0].split()[:4] == ["stage", "steps", "epochs", "px"]
    assert lines[1].split() == [
        "0", "0-25", "0.0-2.5", "16", "2", "0", "0", "0.1", "0", "0.05", "4", "x", "16",
    ]  # fmt: skip
    assert lines[4].split()[:8] == ["3", "75-100", "7.5-10.0", "32", "5", "0.2", "0", "0.25"]
    assert len({len(line) for line in lines[:5]}) == 1, "columns are aligned"


def test_the_summary_tells_steps_epochs_and_rates(plan: Callable[..., Plan]) -> None:
    text = plan(steps=100).table()
    assert "100 steps of 64 samples: 10.00 epochs of 640 (10.00 steps each)" in text
    assert "lr constant, peak 0.05, warmup 10 steps from 0; ema 0.99 with warmup" in text
    assert "GMACs" not in text


def test_cost_is_printed_where_it_is_known(plan: Callable[..., Plan]) -> None:
    made = plan(steps=100)
    text = made.table(square)
    assert text.splitlines()[0].endswith("GMACs")
    assert [line.split()[-1] for line in text.splitlines()[1:5]] == [
        "0.256", "0.441", "0.729", "1.024",
    ]  # fmt: skip
    assert mean_macs(made, square) == (16**2 + 21**2 + 27**2 + 32**2) / 4 * 1e6
    assert "0.61 GMACs an image forward on average, 1.02 at the final 32 px" in text
    assert "40% saved" in text


def test_the_mean_cost_weighs_stages_by_their_steps(plan: Callable[..., Plan]) -> None:
    made = plan(steps=3, stages=[{"px": 16, "micro_batches": 1}, {"px": 32, "micro_batches": 1}],
                lr={"kind": "constant", "peak": 1.0})  # fmt: skip
    assert mean_macs(made, square) == (16**2 + 2 * 32**2) / 3 * 1e6


def test_another_weighing_of_cut_labels_is_told(plan: Callable[..., Plan]) -> None:
    cut = {"kind": "fixed", "px": 32, "cutmix": 0.2}
    assert "mean share" in plan(steps=50, stages={**cut, "cutmix_labels": "mean"}).table()
    assert "mean share" not in plan(steps=50, stages=cut).table()


def test_accumulation_is_printed_for_a_world(plan: Callable[..., Plan]) -> None:
    made = plan(steps=100)
    assert "accumulate" not in made.table()
    assert [line.split()[-1] for line in made.table(world_size=2).splitlines()[1:5]] == ["2"] * 4
    assert "not on 3 ranks" in made.table(world_size=3)
