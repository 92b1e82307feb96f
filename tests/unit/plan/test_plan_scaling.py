"""Which worlds may run a plan, what a larger cluster brings, and where it stops paying."""

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.plan.cost import Cluster, Sharding, Work
from pipeline.plan.estimate import Job, estimate, fitting_micro_batches
from pipeline.plan.estimate_text import estimate_text, scale_text
from pipeline.plan.plan import Plan
from pipeline.plan.scaling import (
    capacities,
    cut_micro_batches,
    legal_worlds,
    parse_range,
    pays_until,
    scale,
    world_for,
)
from pipeline.spec import Misuse

Make = Callable[..., Plan]
H100 = Cluster("h100", 1, 8, 400)


def work(px: int) -> Work:
    """A network of V2-S's cost, in proportion to the pixels."""
    share = (px / 300) ** 2
    return Work("v2_s", px, 21_000_000, 150_000, 5.3e9 * share, 22.7e6 * share, 171)


def stages(*micro_batches: int, px: int = 300, mixup: float = 0.0) -> list[dict[str, Any]]:
    return [{"px": px, "mixup": mixup, "micro_batches": count} for count in micro_batches]


def job_for(plan: Plan, **changes: Any) -> Job:
    values: dict[str, Any] = {
        "plan": plan, "work_at": work, "bits": 16, "sharding": Sharding(), "cores": 10,
        "bytes_an_image": 100_000.0, "bytes_basis": "assumed", "eval_images": 0, "eval_px": 300,
        "evaluations": 10, "kept": 5,
    }  # fmt: skip
    return Job(**{**values, **changes})


@pytest.mark.parametrize(
    ("text", "ends"), [("1..512", (1, 512)), ("8..8", (8, 8)), ("3..20", (3, 20))]
)
def test_a_range_is_read(text: str, ends: tuple[int, int]) -> None:
    assert parse_range(text) == ends


@pytest.mark.parametrize("text", ["512", "0..8", "8..1", "a..b", "1..", "1..99999999", "-1..4"])
def test_what_is_no_range_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(Misuse, match=r"--scale .*1\.\.512"):
        parse_range(text)


def test_cards_are_doubled_up_to_the_last() -> None:
    assert capacities(1, 8) == [1, 2, 4, 8]
    assert capacities(3, 20) == [3, 6, 12, 20]
    assert capacities(5, 5) == [5]


def test_a_world_divides_the_micro_batches_of_every_stage(plan: Make) -> None:
    made = plan(40, stages=stages(8, 4))
    assert legal_worlds(made) == [1, 2, 4]
    assert [world_for(made, capacity) for capacity in (1, 3, 4, 100)] == [1, 2, 4, 4]


def test_a_world_makes_whole_groups_of_batch_norm(plan: Make) -> None:
    made = plan(40, stages=stages(4))
    twelve = made.stages[0].settings.model_copy(update={"micro_batches": 12})
    first = made.stages[0]._replace(settings=twelve)
    made = made._replace(global_batch=192, stages=(first,))
    assert legal_worlds(made) == [1, 2, 3, 4, 6, 12]
    assert legal_worlds(made, bn_group=4) == [1, 2, 4, 12]
    assert world_for(made, 8, bn_group=4) == 4
    assert cut_micro_batches(made, 8, bn_group=4) == [16]
    assert cut_micro_batches(made, 2, bn_group=8) == [16]
    assert cut_micro_batches(made, 6, bn_group=4) is None
    (point,) = scale(job_for(made, bn_group=4), H100, 6, 6)
    assert (point.estimate.ranks, point.idle, point.cut) == (4, 2, None)
    assert "of every stage: 1, 2, 4, 12;" in scale_text(job_for(made, bn_group=4), [point])


def test_cut_micro_batches_are_the_fewest_that_all_can_share(plan: Make) -> None:
    made = plan(40, stages=stages(8, 4))  # a global batch of 64
    assert cut_micro_batches(made, 16) == [16, 16]
    assert cut_micro_batches(made, 4) == [8, 4]
    assert cut_micro_batches(made, 64) == [64, 64]
    assert cut_micro_batches(made, 3) is None, "64 has no factor 3"
    assert cut_micro_batches(made, 128) is None


def test_cutting_leaves_enough_images_to_mix(plan: Make) -> None:
    made = plan(40, stages=stages(8, mixup=0.2))
    assert cut_micro_batches(made, 16) == [16]
    assert cut_micro_batches(made, 32) is None


def test_more_cards_than_micro_batches_stay_idle_and_cost(plan: Make) -> None:
    job = job_for(plan(40, stages=stages(4)), work_at=lambda px: work(4 * px))
    four, eight = scale(job, H100, 4, 8)
    assert (four.idle, eight.idle) == (0, 4)
    assert eight.estimate.total_s == pytest.approx(four.estimate.total_s)
    assert eight.estimate.gpu_hours == pytest.approx(2 * four.estimate.gpu_hours)
    assert four.cut is None
    assert eight.cut is not None
    assert eight.cut.total_s < eight.estimate.total_s


def test_a_step_is_the_slower_of_computing_and_loading(plan: Make) -> None:
    made = plan(40, stages=stages(4))
    fed = estimate(job_for(made), H100, 4).stages[0]
    starved = estimate(job_for(made, cores=1), H100, 4).stages[0]
    assert fed.waits == 0
    assert fed.step_s == fed.compute_s + fed.exposed_s
    assert starved.step_s == starved.load_s > fed.step_s
    assert starved.waits == pytest.approx(1 - fed.step_s / starved.step_s)
    exact = estimate(job_for(made, cores=1), H100, 4).stages[0].cores
    assert exact == pytest.approx(starved.load_s / fed.step_s), "so many cores end the wait"


def test_the_whole_is_its_stages_and_evaluations(plan: Make) -> None:
    made = plan(40, stages=stages(4, 4))
    plain = estimate(job_for(made), H100, 4)
    assert plain.total_s == pytest.approx(sum(s.steps * s.step_s for s in plain.stages))
    scored = estimate(job_for(made, eval_images=1000), H100, 4)
    forward_s = 10 * 1000 / 4 / (3 * plain.stages[0].pace.images_s)
    assert scored.total_s - plain.total_s == pytest.approx(forward_s)
    assert scored.gpu_hours == pytest.approx(scored.total_s / 3600 * 8)


def test_a_stage_that_does_not_fit_says_what_would(plan: Make) -> None:
    heavy = job_for(plan(40, stages=stages(1)), work_at=lambda px: work(px * 5))
    found = estimate(heavy, Cluster("t4", 1, 1, 10), 1)
    counts = fitting_micro_batches(heavy, found.cluster, heavy.plan.stages[0])
    assert counts is not None
    assert f"! stage 0 needs {found.stages[0].memory.total / 2**30:.1f} GiB a card: set " in (
        text := estimate_text(heavy, found)
    )
    assert f"stages.0.micro_batches={counts}" in text
    again = estimate(heavy, found.cluster, 1, [counts])
    assert again.stages[0].memory.total <= found.cluster.card.memory_bytes
    assert again.stages[0].memory.total * 2 > found.cluster.card.memory_bytes, "no more than needed"


def test_a_model_that_never_fits_needs_another_card(plan: Make) -> None:
    huge = job_for(plan(40, stages=stages(1)), work_at=lambda px: work(px * 60))
    cluster = Cluster("t4", 1, 1, 10)
    assert fitting_micro_batches(huge, cluster, huge.plan.stages[0]) is None
    assert "take a larger card" in estimate_text(huge, estimate(huge, cluster, 1))


def test_it_pays_until_the_added_cards_bring_too_little() -> None:
    linear = [(n, 100 / n) for n in (1, 2, 4, 8)]
    assert pays_until(linear, 100) == 8
    assert pays_until([*linear, (16, 100 / 11), (32, 100 / 32)], 100) == 8
    assert pays_until([(1, 100), (2, 90)], 100) == 1
    assert pays_until([(4, 25)], 100) == 4


def test_the_scaling_text_names_worlds_idle_cards_and_the_end(plan: Make) -> None:
    job = job_for(plan(40, stages=stages(4), lr={"kind": "constant", "peak": 0.1}))
    text = scale_text(job, scale(job, H100, 1, 64))
    lines = [line.split() for line in text.splitlines()]
    assert ["8", "4", "4"] in [line[:3] for line in lines]
    assert "share the micro-batches of every stage: 1, 2, 4;" in text
    assert "as the recipe is it pays up to 4 cards: 8 would be 1.00 times as fast" in text
    assert "with smaller micro-batches it pays up to" in text
    assert "another recipe: batch norm sees fewer images" in text


def test_without_idle_cards_nothing_is_said_of_cutting(plan: Make) -> None:
    job = job_for(plan(40, stages=stages(8)))
    text = scale_text(job, scale(job, H100, 1, 8))
    assert "smaller micro-batches" not in text
    assert "pays up to" in text


def test_the_estimate_says_what_it_rests_on(plan: Make) -> None:
    job = job_for(plan(40, stages=stages(4)), cores=1)
    text = estimate_text(job, estimate(job, H100, 4))
    for words in (
        "4 ranks work; 4 stay idle", "GPU-hours", "Reserve", "checkpoints", "estimated: no rate",
        "set loader.workers=", "assumed", "ring of 84 MB", "docs/measurements.md",
    ):  # fmt: skip
        assert words in text, words
