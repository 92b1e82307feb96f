"""The plan: for every step its stage, size, magnitudes, learning rate and EMA decay.

None of this is state: it is a pure function of the recipe and the step, so a checkpoint need not
keep it and data workers can compute it for themselves. Durations become steps here, once.
"""

from bisect import bisect_right
from collections.abc import Callable
from typing import NamedTuple

from pydantic import Field

from pipeline.plan.durations import LengthSpec, make_clock
from pipeline.plan.lr import LrSchedule, LrSpec, make_schedule
from pipeline.plan.stages import CutmixLabels, Stage, StagesSpec
from pipeline.spec import Misuse, Spec

SMALLEST_MIX = 4  # under this, partners in mixup and cutmix are nearly always the same images


class EmaSpec(Spec):
    """Moving average of the weights; `warmup` is TF's min(decay, (1 + t) / (10 + t))."""

    decay: float = Field(default=0.9999, ge=0, lt=1)
    warmup: bool = True

    def decay_at(self, step: int) -> float:
        """Return the decay of the update that follows step `step` (from 0)."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay


class PlannedStage(NamedTuple):
    """One stage: it covers the steps start <= step < end."""

    start: int
    end: int
    number: int
    settings: Stage


class StepPlan(NamedTuple):
    """Everything that depends on the step and on nothing else."""

    step: int
    epoch: float
    stage: int
    px: int
    randaugment: float
    mixup: float
    cutmix: float
    dropout: float
    micro_batches: int
    lr: float
    ema_decay: float
    cutmix_labels: CutmixLabels = "own"

    @classmethod
    def of(
        cls, stage: Stage, number: int, step: int, epoch: float, lr: float, ema_decay: float
    ) -> "StepPlan":
        """Return a step of stage `number`, whose settings are `stage`."""
        return cls(
            step=step,
            epoch=epoch,
            stage=number,
            px=stage.px,
            randaugment=stage.randaugment,
            mixup=stage.mixup,
            cutmix=stage.cutmix,
            dropout=stage.dropout,
            micro_batches=stage.micro_batches,
            lr=lr,
            ema_decay=ema_decay,
            cutmix_labels=stage.cutmix_labels,
        )


class Plan(NamedTuple):
    """A training laid out in steps; made by `make_plan`, immutable and picklable."""

    total_steps: int
    global_batch: int
    num_samples: int
    stages: tuple[PlannedStage, ...]
    ends: tuple[int, ...]
    lr: LrSchedule
    ema: EmaSpec

    @property
    def steps_per_epoch(self) -> float:
        """Steps in one pass over the data; rarely a whole number."""
        return self.num_samples / self.global_batch

    def stage_at(self, step: int) -> PlannedStage:
        """Return the stage of `step`; `total_steps` itself still counts as the last stage."""
        assert 0 <= step <= self.total_steps, f"step {step} is outside 0..{self.total_steps}"
        return self.stages[min(bisect_right(self.ends, step), len(self.stages) - 1)]

    def at(self, step: int) -> StepPlan:
        """Return what step `step` (0 .. total_steps - 1) does; about two microseconds."""
        index, settings = self.stage_at(step)[2:]
        epoch = step * self.global_batch / self.num_samples
        lr, ema_decay = self.lr.lr_at(step), self.ema.decay_at(step)
        return StepPlan.of(settings, index, step, epoch, lr, ema_decay)

    def table(
        self, macs_at: Callable[[int], float] | None = None, world_size: int | None = None
    ) -> str:
        """Return the plan as text for people.

        Args:
            macs_at: multiply-adds of one forward pass of one image of the given px.
            world_size: number of ranks; adds how many micro-batches each accumulates.
        """
        from pipeline.plan.table import render

        return render(self, macs_at, world_size)


def make_plan(
    length: LengthSpec,
    stages: StagesSpec,
    lr: LrSpec,
    ema: EmaSpec,
    global_batch: int,
    num_samples: int,
    smallest_px: int = 1,
) -> Plan:
    """Lay a training out in steps: stage s of n runs until step int((s + 1) * total / n).

    Args:
        global_batch: samples in one optimizer step, over all ranks.
        num_samples: samples in the training split.
        smallest_px: the image side that the model's strides need.

    Raises:
        Misuse: a setting contradicts another; the message names both and the remedy.
    """
    clock = make_clock(length, global_batch, num_samples)
    settings = stages.resolve()
    if clock.total_steps < len(settings):
        raise Misuse(
            f"field 'length': {clock.total_steps} steps cannot hold {len(settings)} stages; "
            "train longer (length.epochs) or use fewer stages"
        )
    for index, stage in enumerate(settings):
        check_px(f"stages.{index}.px", stage.px, smallest_px)
        _check_micro_batches(index, stage, global_batch)
    ends = tuple((s + 1) * clock.total_steps // len(settings) for s in range(len(settings)))
    planned = tuple(
        PlannedStage(start, end, index, stage)
        for index, (start, end, stage) in enumerate(
            zip((0, *ends[:-1]), ends, settings, strict=True)
        )
    )
    schedule = make_schedule(lr, clock)
    return Plan(clock.total_steps, global_batch, num_samples, planned, ends, schedule, ema)


def check_px(field: str, px: int, smallest_px: int) -> None:
    """Refuse images that a model's strides would shrink to less than one pixel.

    Raises:
        Misuse: names `field`, its size and the smallest one that the model takes.
    """
    if px < smallest_px:
        raise Misuse(
            f"field '{field}' is {px}: the model's strides need images of {smallest_px} px or "
            f"more; set {field}={smallest_px} or take a model with fewer strides (model.name)"
        )


def _check_micro_batches(index: int, stage: Stage, global_batch: int) -> None:
    """Micro-batches are equal and, where images are mixed, large enough to find partners in."""
    where = f"field 'stages.{index}.micro_batches' is {stage.micro_batches}"
    if global_batch % stage.micro_batches:
        divisors = [m for m in range(1, global_batch + 1) if global_batch % m == 0]
        divisors.sort(key=lambda m: abs(m - stage.micro_batches))
        raise Misuse(
            f"{where}: it must divide batch.global_size {global_batch}; "
            f"the nearest values are {' and '.join(map(str, divisors[:2]))}"
        )
    size = global_batch // stage.micro_batches
    if size < SMALLEST_MIX and (stage.mixup > 0 or stage.cutmix > 0):
        raise Misuse(
            f"{where}: micro-batches of {size} images are too few to mix; use at most "
            f"{global_batch // SMALLEST_MIX} micro-batches, or set stages.mixup=0 stages.cutmix=0"
        )
