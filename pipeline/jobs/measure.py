"""`pipeline plan --measure`: the largest micro-batch of each stage, found on the device at hand.

What it prints is a piece of config: micro-batches for each stage, for this device and number of
ranks. Put it into a file that a config extends, or take the lines as overrides.
"""

from typing import NamedTuple

import torch

from pipeline.engine.trials import Trial, measure_micro_batch, micro_batch_counts
from pipeline.jobs.stepper import build_stepper
from pipeline.models.network import build_network
from pipeline.parallel.world import World, open_world
from pipeline.plan.draws import Stream, keyed
from pipeline.plan.plan import StepPlan
from pipeline.plan.stages import Stage
from pipeline.recipe import Recipe
from pipeline.spec import Misuse

GPU_SHARE = 0.92
"""Of a GPU's memory; the rest is for what other libraries take and for holes between blocks."""
HOST_SHARE = 0.8
MOST_GIB = 2**20


class Found(NamedTuple):
    """What was found for a stage."""

    number: int
    stage: Stage
    micro_batches: int
    trial: Trial


def measure(
    recipe: Recipe, num_classes: int, ranks: int = 1, memory_gib: float | None = None
) -> str:
    """Try micro-batches of each stage here and return the fitting ones as YAML with comments.

    Args:
        num_classes: of the data set.
        ranks: that will share the run; every one gets equally many micro-batches.
        memory_gib: of one rank; by default the GPU's or, without one, what the host has free.

    Raises:
        Misuse: no micro-batch fits, or ranks, lanes and batch exclude each other.
    """
    stages = recipe.stages.resolve()
    counts = [_counts(recipe, stage, ranks) for stage in stages]
    if recipe.model.bn_group > 1:
        raise Misuse(
            f"field 'model.bn_group' is {recipe.model.bn_group}: such groups are cut from the "
            "micro-batches, so their size defines what is trained; set stages.micro_batches by hand"
        )
    world = open_world(recipe.compute.collective_timeout_s)
    try:
        limit = _limit_bytes(world, memory_gib)
        found = _try_stages(recipe, num_classes, world, stages, counts, limit)
    finally:
        world.close()
    return _text(recipe, found, ranks, limit, world)


def _counts(recipe: Recipe, stage: Stage, ranks: int) -> list[int]:
    """Return the numbers of micro-batches to try, but for single images where there is a choice.

    BatchNorm cannot normalise one image by itself where strides leave one pixel of it.
    """
    size, mixes = recipe.batch.global_size, stage.mixup + stage.cutmix > 0
    counts = micro_batch_counts(size, ranks, recipe.loader.lanes, mixes)
    return [count for count in counts if count < size] or counts


def _try_stages(
    recipe: Recipe,
    num_classes: int,
    world: World,
    stages: tuple[Stage, ...],
    counts: list[list[int]],
    limit_bytes: int,
) -> list[Found]:
    model = build_network(recipe.model, num_classes, keyed(Stream.WEIGHTS, recipe.seed))
    stepper = build_stepper(recipe, num_classes, world, model)
    size = recipe.batch.global_size
    with torch.compiler.set_stance("force_eager"):  # gradients, slots and buckets come to be
        stepper.warm_up(stages[0].px, size // counts[0][0])
    found: list[Found] = []
    for number, (stage, allowed) in enumerate(zip(stages, counts, strict=True)):

        def at(count: int, number: int = number, stage: Stage = stage) -> StepPlan:
            """Return a step of the stage with `count` micro-batches; the rates do not matter."""
            other = stage.model_copy(update={"micro_batches": count})
            return StepPlan.of(other, number, step=0, epoch=0.0, lr=0.0, ema_decay=1.0)

        trial = measure_micro_batch(stepper, at, size, allowed, limit_bytes)
        found.append(Found(number, stage, size // trial.batch, trial))
    return found


def _limit_bytes(world: World, memory_gib: float | None) -> int:
    if memory_gib is not None:
        if not 0 < memory_gib < MOST_GIB:
            raise Misuse(f"memory is {memory_gib:g} GiB: expected more than 0, under {MOST_GIB}")
        return int(memory_gib * 2**30)
    if world.device.type == "cuda":
        return int(torch.cuda.get_device_properties(world.device).total_memory * GPU_SHARE)
    import psutil

    return int(psutil.virtual_memory().available * HOST_SHARE)


def _text(recipe: Recipe, found: list[Found], ranks: int, limit_bytes: int, world: World) -> str:
    on_gpu = world.device.type == "cuda"
    device = torch.cuda.get_device_name(world.device) if on_gpu else "CPU"
    head = [
        f"# Measured for {recipe.name} ({recipe.model.name}, {recipe.compute.precision}) on "
        f"{device}: global batch {recipe.batch.global_size}, {ranks} ranks,",
        f"# up to {limit_bytes / 2**30:.1f} GiB a rank. Uncompiled; images/s are of forward and "
        "backward pass on one rank.",
        "# BatchNorm statistics and mixing partners belong to the micro-batch: other numbers "
        "train slightly otherwise.",
        "stages:",
    ]
    rows = [
        f'  "{number}": {{micro_batches: {count}}}  # {stage.px} px, {trial.batch} images, '
        f"{trial.peak_bytes / 2**30:.2f} GiB, {trial.images_s:.0f} images/s "
        f"(was {stage.micro_batches})"
        for number, stage, count, trial in found
    ]
    return "\n".join([*head, *rows])
