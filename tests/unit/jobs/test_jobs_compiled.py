"""What is compiled and what is tried before the first step, in a real training."""

from functools import partial
from pathlib import Path

import pytest
import torch

from pipeline.engine.kernels import compile_model, graphs_compiled
from pipeline.engine.step import Stepper
from pipeline.engine.warmup import rehearse_stages
from pipeline.jobs import stepper as building
from pipeline.jobs import training
from pipeline.plan.plan import Plan
from pipeline.run.folder import RunFolder

TWO_STAGES = "stages={kind: paper, count: 2, px: [16, 24], micro_batches: 2, dropout: 0.1}"
EVERY_STEP = "tracking.every_steps=1"


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_compiled_training_has_the_losses_of_one_that_is_not(
    small_train, low_digits: Path, tmp_path: Path, read_losses, strategy: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Graphs are captured as always, but run as they are: building kernels takes minutes here."""
    monkeypatch.setattr(building, "compile_model", partial(compile_model, backend="eager"))
    words = (TWO_STAGES, EVERY_STEP, f"strategy={strategy}")
    assert small_train(low_digits, "name=plain", *words) == 0
    torch.compiler.reset()
    before = graphs_compiled()
    assert small_train(low_digits, "name=compiled", *words, "compute.compile=true") == 0
    assert graphs_compiled() > before
    plain, compiled = (read_losses(RunFolder(tmp_path / "runs" / n)) for n in ("plain", "compiled"))
    assert plain.keys() == compiled.keys() and len(plain) == 6
    assert max(abs(plain[at] - compiled[at]) for at in plain) < 1e-5


def test_later_stages_are_tried_beside_the_optimizers_slots(
    small_train, low_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take as much memory as two more models, and are there in every real step."""
    tried: list[tuple[int | None, bool]] = []

    def noted(stepper: Stepper, plan: Plan, first_step: int, most: int | None = None) -> None:
        tried.append((most, bool(getattr(stepper.strategy, "_optimizer").state)))  # noqa: B009
        rehearse_stages(stepper, plan, first_step, most)

    monkeypatch.setattr(training, "rehearse_stages", noted)
    assert small_train(low_digits, "name=tried", TWO_STAGES) == 0
    assert tried == [(1, False), (None, True)]
