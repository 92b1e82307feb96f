"""Settings that a strategy cannot have are refused with the remedy, before anything is loaded."""

from typing import Any

import pytest
from pydantic import TypeAdapter

from pipeline.parallel.settings import (
    ComputeSpec,
    DdpSpec,
    DeepspeedSpec,
    FsdpSpec,
    StrategySpec,
    check_fits,
    meets_in_forward,
)
from pipeline.spec import Misuse


@pytest.mark.parametrize(
    ("values", "spec"),
    [
        ({"kind": "ddp"}, DdpSpec(static_graph=False)),
        ({"kind": "deepspeed"}, DeepspeedSpec(zero_stage=1, offload_optimizer=False)),
        ({"kind": "deepspeed", "zero_stage": 3}, DeepspeedSpec(zero_stage=3)),
        ({"kind": "fsdp"}, FsdpSpec(reshard_after_forward=True)),
    ],
)
def test_the_kind_names_the_strategy(values: dict[str, Any], spec: StrategySpec) -> None:
    assert TypeAdapter(StrategySpec).validate_python(values) == spec


def test_nothing_is_clipped_or_scaled_unless_asked_for() -> None:
    compute = ComputeSpec()
    assert (compute.precision, compute.clip_norm, compute.loss_scale) == ("fp32", 0.0, 65536.0)
    assert not compute.cudnn_benchmark and not compute.tf32 and compute.compile_mode == "default"


def test_fp16_without_loss_scaling_is_refused() -> None:
    with pytest.raises(Misuse, match=r"(?s)compute\.yaml.*loss_scale is 0.*fp16.*precision=bf16"):
        ComputeSpec.parse({"precision": "fp16", "loss_scale": 0}, "compute.yaml")
    assert ComputeSpec.parse({"precision": "bf16", "loss_scale": 0}, "x").loss_scale == 0


@pytest.mark.parametrize(("field", "value"), [("clip_norm", -1), ("loss_scale", -2)])
def test_negative_numbers_are_refused(field: str, value: float) -> None:
    with pytest.raises(Misuse, match=field):
        ComputeSpec.parse({field: value}, "compute.yaml")


def test_state_that_is_not_sharded_cannot_be_offloaded() -> None:
    with pytest.raises(Misuse, match=r"offload_optimizer.*zero_stage 0.*set zero_stage to 1"):
        DeepspeedSpec.parse({"zero_stage": 0, "offload_optimizer": True}, "strategy")


def test_zero_3_cannot_be_compiled() -> None:
    spec = DeepspeedSpec(zero_stage=3)
    with pytest.raises(Misuse, match=r"compute\.compile is true.*zero_stage 3.*strategy=fsdp"):
        check_fits(spec, ComputeSpec(compile=True))
    check_fits(spec, ComputeSpec())


@pytest.mark.parametrize("spec", [DdpSpec(), DeepspeedSpec(zero_stage=2), FsdpSpec()])
def test_the_others_can_be_compiled(spec: StrategySpec) -> None:
    check_fits(spec, ComputeSpec(compile=True))


@pytest.mark.parametrize(
    ("spec", "meets"),
    [
        (DdpSpec(), False),
        (DeepspeedSpec(zero_stage=1), False),
        (DeepspeedSpec(zero_stage=2), True),
        (DeepspeedSpec(zero_stage=3), True),
        (FsdpSpec(), True),
    ],
)
def test_sharded_weights_and_gradients_make_ranks_meet_early(
    spec: StrategySpec, meets: bool
) -> None:
    assert meets_in_forward(spec) is meets
