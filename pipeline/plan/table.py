"""The plan as a text table: what a person checks before a long training is queued."""

from collections.abc import Callable

from pipeline.plan.plan import Plan, PlannedStage
from pipeline.plan.text import aligned

_HEAD = ("stage", "steps", "epochs", "px", "randaug", "mixup", "cutmix", "dropout",
         "lr first", "lr last", "micro-batches")  # fmt: skip

SMALL_MACS = 1e8  # under this two decimals of a GMAC would say nothing


def render(
    plan: Plan, macs_at: Callable[[int], float] | None = None, world_size: int | None = None
) -> str:
    """Return the table and its summary; columns for GMACs and ranks appear where they are known."""
    head = [*_HEAD]
    head += ["accumulate"] if world_size else []
    head += ["GMACs"] if macs_at else []
    rows = [head] + [_row(plan, stage, macs_at, world_size) for stage in plan.stages]
    return "\n".join([*aligned(rows), "", *_summary(plan, macs_at)]) + "\n"


def mean_macs(plan: Plan, macs_at: Callable[[int], float]) -> float:
    """Return the multiply-adds of one forward pass per image, averaged over all steps."""
    work = sum((s.end - s.start) * macs_at(s.settings.px) for s in plan.stages)
    return work / plan.total_steps


def _row(
    plan: Plan,
    stage: PlannedStage,
    macs_at: Callable[[int], float] | None,
    world_size: int | None,
) -> list[str]:
    settings = stage.settings
    epochs = [step * plan.global_batch / plan.num_samples for step in (stage.start, stage.end)]
    cells = [
        str(stage.number),
        f"{stage.start}-{stage.end}",
        f"{epochs[0]:.1f}-{epochs[1]:.1f}",
        str(settings.px),
        *(f"{value:.4g}" for value in (settings.randaugment, settings.mixup, settings.cutmix)),
        f"{settings.dropout:.3g}",
        f"{plan.at(stage.start).lr:.4g}",
        f"{plan.at(stage.end - 1).lr:.4g}",
        f"{settings.micro_batches} x {plan.global_batch // settings.micro_batches}",
    ]
    if world_size:
        cells.append(_accumulation(settings.micro_batches, world_size))
    if macs_at:
        macs = macs_at(settings.px)
        cells.append(f"{macs / 1e9:.3f}" if macs >= SMALL_MACS else _gmacs(macs))
    return cells


def _accumulation(micro_batches: int, world_size: int) -> str:
    """Micro-batches a rank works through in a step; a world that does not fit is named."""
    if micro_batches % world_size:
        return f"not on {world_size} ranks"
    return str(micro_batches // world_size)


def _summary(plan: Plan, macs_at: Callable[[int], float] | None) -> list[str]:
    epochs = plan.total_steps * plan.global_batch / plan.num_samples
    lr = plan.lr
    lines = [
        f"{plan.total_steps:,} steps of {plan.global_batch:,} samples: {epochs:.2f} epochs of "
        f"{plan.num_samples:,} ({plan.steps_per_epoch:.2f} steps each)",
        f"lr {lr.kind}, peak {lr.peak:g}, warmup {lr.warmup_steps:,} steps from 0; "
        f"ema {plan.ema.decay:g}{' with warmup' if plan.ema.warmup else ''}",
    ]
    if any(
        stage.settings.cutmix and stage.settings.cutmix_labels == "mean" for stage in plan.stages
    ):
        lines.append("labels of cut images get the mean share of all boxes, not their own")
    if macs_at:
        mean, last = mean_macs(plan, macs_at), macs_at(plan.stages[-1].settings.px)
        lines.append(
            f"{_gmacs(mean)} GMACs an image forward on average, {_gmacs(last)} at the final "
            f"{plan.stages[-1].settings.px} px throughout: {1 - mean / last:.0%} saved"
        )
    return lines


def _gmacs(macs: float) -> str:
    return f"{macs / 1e9:.2f}" if macs >= SMALL_MACS else f"{macs / 1e9:.3g}"
