"""Stages: the three published rules, plain lists, overrides by number, and what is refused."""

from typing import Any

import pytest

from pipeline.plan.stages import Stage, StagesSpec
from pipeline.spec import Misuse

RAMPED = {"count": 4, "px": [128, 300], "randaugment": [5, 15], "micro_batches": 8}


def spec(**values: Any) -> StagesSpec:
    return StagesSpec.parse(values, "test")


def sizes(**values: Any) -> list[int]:
    return [stage.px for stage in spec(**values).resolve()]


def test_released_sizes_skip_the_first_and_are_truncated() -> None:
    assert sizes(kind="released", **RAMPED) == [171, 214, 257, 300]


@pytest.mark.parametrize("kind", ["paper", "arxiv_v1"])
def test_paper_sizes_start_at_the_first_and_are_rounded(kind: str) -> None:
    assert sizes(kind=kind, **RAMPED) == [128, 185, 243, 300]


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_any_number_of_stages_ends_at_the_last_values(count: int) -> None:
    for kind in ("released", "paper"):
        stages = spec(kind=kind, **{**RAMPED, "count": count}).resolve()
        assert len(stages) == count
        assert (stages[-1].px, stages[-1].randaugment) == (300, 15.0)
        assert stages[0].randaugment == 5.0
        assert [s.px for s in stages] == sorted(s.px for s in stages)


def test_sizes_may_shrink() -> None:
    assert sizes(kind="paper", count=3, px=[96, 32]) == [96, 64, 32]


def test_magnitudes_are_interpolated_in_every_rule() -> None:
    for kind in ("released", "paper"):
        stages = spec(kind=kind, **RAMPED, mixup=[0, 0.3], cutmix=[0.3, 0]).resolve()
        assert [s.mixup for s in stages] == pytest.approx([0, 0.1, 0.2, 0.3])
        assert [s.cutmix for s in stages] == pytest.approx([0.3, 0.2, 0.1, 0])


def test_dropout_grows_in_the_paper_and_not_in_the_released_code() -> None:
    grown = spec(kind="paper", **RAMPED, dropout=[0.1, 0.4]).resolve()
    assert [s.dropout for s in grown] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    with pytest.raises(Misuse, match=r"released.*never ramps dropout.*stages.dropout=0.4"):
        spec(kind="released", **RAMPED, dropout=[0.1, 0.4])


def test_labels_of_cut_images_are_weighed_one_way_in_all_stages_unless_told_otherwise() -> None:
    assert {s.cutmix_labels for s in spec(kind="paper", **RAMPED).resolve()} == {"own"}
    told = spec(kind="paper", **RAMPED, cutmix_labels="mean", **{"2": {"cutmix_labels": "own"}})
    assert [s.cutmix_labels for s in told.resolve()] == ["mean", "mean", "own", "mean"]


def test_stages_recorded_before_there_was_a_choice_read_back_as_they_were() -> None:
    recorded = spec(kind="paper", **RAMPED).model_dump(mode="json")
    del recorded["cutmix_labels"]
    assert StagesSpec.parse(recorded, "test") == spec(kind="paper", **RAMPED)


def test_one_number_stands_for_a_range_that_does_not_move() -> None:
    stages = spec(kind="fixed", count=2, px=96, randaugment=7, dropout=0.2).resolve()
    assert stages == (Stage(px=96, randaugment=7.0, dropout=0.2, micro_batches=1),) * 2


def test_micro_batches_may_be_listed_by_stage() -> None:
    stages = spec(kind="paper", **{**RAMPED, "micro_batches": [8, 8, 16, 32]}).resolve()
    assert [s.micro_batches for s in stages] == [8, 8, 16, 32]


def test_a_plain_list_is_taken_as_it_is() -> None:
    listed = StagesSpec.model_validate(
        [{"px": 32, "micro_batches": 1}, {"px": 48, "randaugment": 3, "micro_batches": 2}]
    )
    assert listed.kind == "explicit"
    assert [(s.px, s.randaugment, s.micro_batches) for s in listed.resolve()] == [
        (32, 0.0, 1),
        (48, 3.0, 2),
    ]


def test_a_digit_key_overrides_one_stage_in_either_form() -> None:
    ruled = spec(kind="paper", **RAMPED, **{"1": {"px": 224, "mixup": 0.5}})
    assert [s.px for s in ruled.resolve()] == [128, 224, 243, 300]
    assert [s.mixup for s in ruled.resolve()] == [0, 0.5, 0, 0]
    listed = spec(
        kind="explicit", count=1, explicit=[{"px": 32, "micro_batches": 1}], **{"0": {"px": 40}}
    )
    assert listed.resolve()[0].px == 40


def test_what_was_resolved_survives_being_written_and_read() -> None:
    before = spec(kind="paper", **RAMPED, **{"2": {"dropout": 0.3}})
    again = StagesSpec.parse(before.model_dump(mode="json"), "test")
    assert again.resolve() == before.resolve()
    assert again.digest() == before.digest()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "fixed"}, r"px is \[128, 300\].*never ramps px"),
        ({"count": 1}, "needs count of 2 or more"),
        ({"px": None}, "px is missing"),
        ({"px": [128, 200, 300]}, r"expected one number or \[first, last\]"),
        ({"px": [4, 300]}, "greater than or equal to 8"),
        ({"px": "large"}, r"expected one number or \[first, last\]"),
        ({"randaugment": [-1, 5]}, "greater than or equal to 0"),
        ({"dropout": [0.1, 1.0]}, "less than 1"),
        ({"micro_batches": [8, 16]}, "lists 2 values for 4 stages"),
        ({"micro_batches": 0}, "greater than or equal to 1"),
        ({"4": {"px": 64}}, "there is no stage 4: they are 0 to 3"),
        ({"1": 64}, "stage '1' needs a field"),
        ({"1": {"pixels": 64}}, "overrides.1.pixels"),
        ({"explicit": [{"px": 32, "micro_batches": 1}]}, "a list of stages has no effect"),
        ({"cutmix_labels": "half"}, "'own' or 'mean'"),
        ({"kind": "progressive"}, "'fixed', 'released', 'paper', 'arxiv_v1' or 'explicit'"),
    ],
)
def test_wrong_stages_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Misuse, match=message):
        spec(**{"kind": "paper", **RAMPED, **changes})


def test_a_list_of_stages_must_fit_its_count() -> None:
    with pytest.raises(Misuse, match="count is 3, but 1 stages are listed"):
        spec(kind="explicit", count=3, explicit=[{"px": 32, "micro_batches": 1}])
    with pytest.raises(Misuse, match="list of stages is empty"):
        spec(kind="explicit")
