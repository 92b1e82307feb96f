"""A small training to lay out: four stages of the paper's rule, 10 epochs of 10 steps."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from pipeline.plan.durations import LengthSpec
from pipeline.plan.lr import LrSpec
from pipeline.plan.plan import EmaSpec, Plan, make_plan
from pipeline.plan.stages import StagesSpec

STAGES = {
    "kind": "paper",
    "count": 4,
    "px": [16, 32],
    "randaugment": [2, 5],
    "mixup": [0, 0.2],
    "dropout": [0.1, 0.25],
    "micro_batches": 4,
}
LR = {"kind": "constant", "peak": 0.05, "warmup_steps": 10}


@pytest.fixture
def plan() -> Callable[..., Plan]:
    """Make a plan of so many steps; `stages`, `lr`, `ema` and the model's least px may be set."""

    def make(
        steps: int,
        stages: Mapping[str, Any] | Sequence[Any] = STAGES,
        lr: Mapping[str, Any] = LR,
        ema: Mapping[str, Any] | None = None,
        smallest_px: int = 1,
    ) -> Plan:
        return make_plan(
            LengthSpec.parse({"steps": steps}, "test"),
            StagesSpec.model_validate(stages),
            LrSpec.parse(lr, "test"),
            EmaSpec.parse(ema or {"decay": 0.99}, "test"),
            global_batch=64,
            num_samples=640,
            smallest_px=smallest_px,
        )

    return make
