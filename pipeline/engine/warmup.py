"""Rehearsals: a stage's shapes are tried before it begins, so that nothing is found out on the way.

Before step 1 every stage to come is tried once: a lack of memory shows there, not at hour 20.
At a boundary the new stage is compiled and its kernels are chosen while the loader already works
for it. A rehearsal is a forward and a backward pass that leaves no trace: gradients are asked for,
not accumulated, and no rank waits for another.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from pipeline.data.batches import MicroBatch
from pipeline.engine.guard import DataPlan
from pipeline.engine.step import Stepper
from pipeline.engine.together import joined
from pipeline.engine.watchdog import Watch
from pipeline.models.batchnorm import discard_statistics, each_alone
from pipeline.plan.plan import Plan, StepPlan
from pipeline.run.beats import Section
from pipeline.spec import Misuse


def rehearse(stepper: Stepper, plan: StepPlan, batch: int) -> None:
    """Run forward and backward on a micro-batch of `batch` images as step `plan` would.

    Where micro-batches share BatchNorm statistics, on as many as go through the model together.

    Weights, gradients, BatchNorm sums, optimizer, average and random state stay as they are. Needs
    weights that are whole on every rank; must stand between two steps.

    Raises:
        RuntimeError: what torch raises; `is_out_of_memory` tells a lack of memory.
    """
    device = stepper.world.device
    stepper.model.train()
    weights = [weight for weight in stepper.model.parameters() if weight.requires_grad]
    with torch.random.fork_rng([device.index] if device.type == "cuda" else []):
        together = range(stepper.model.spec.together(stepper.world.size))
        images, targets, noise = joined(
            [
                stepper.inputs.train(_pretended(stepper, plan, batch, j), plan, stepper.model)
                for j in together
            ]
        )

        try:
            with each_alone(stepper.model):  # one rank's lack of memory must not hang the others
                loss = stepper.strategy.forward(
                    lambda model: stepper.loss(model(images, noise), targets)
                )
                torch.autograd.grad(loss, weights, allow_unused=True)
        finally:
            discard_statistics(stepper.model)


def rehearse_stages(stepper: Stepper, plan: Plan, first_step: int, most: int | None = None) -> None:
    """Try, without compiling, the stages that a training from `first_step` still comes to.

    All of them, or only the next `most`. All ranks do, and all refuse where one lacks memory. What
    is compiled needs less as a rule, so a stage that does not fit as it is gets a second try
    compiled. Weights must be restored after it: where they are sharded over the ranks, real steps
    are made.

    Raises:
        Misuse: a stage does not fit; names its size and micro-batch, and what would.
    """
    for number, at, batch in itertools.islice(_stages(plan, first_step), most):
        if is_sharded(stepper):
            _step_for_real(stepper, number, at, batch)
            continue
        error = _try(stepper, at, batch)
        try:
            stepper.world.agree(_refusal(number, at, batch, error) if error else "")
        except RuntimeError as refusal:
            raise Misuse(str(refusal)) from None


@torch.inference_mode()
def rehearse_evaluation(stepper: Stepper, px: int, batch: int) -> None:
    """Score `batch` images of noise of `px` with the average, beside everything training holds.

    Raises:
        Misuse: there is no memory for it on some rank; all ranks refuse.
    """
    reason = ""
    try:
        pixels = torch.zeros(batch, px, px, 3, dtype=torch.uint8)
        stepper.ema.module(stepper.inputs.images(pixels)).argmax(1).cpu()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = (
            f"field 'evaluate.batch' is {batch}: so many images of {px} px do not fit into memory "
            f"beside the training ({str(error).partition(chr(10))[0]}); use less, for example "
            f"evaluate.batch={max(batch // 2, 1)}"
        )
    finally:
        _give_back(stepper.world.device)
    try:
        stepper.world.agree(reason)
    except RuntimeError as refusal:
        raise Misuse(str(refusal)) from None


def first_step_for_real(stepper: Stepper, plan: Plan, first_step: int) -> None:
    """Make the throw-away step of the stage at `first_step` (`Stepper.warm_up`).

    Gradients and the optimizer's slots are there afterwards, beside which all stages must fit.

    Raises:
        Misuse: there is no memory for it; on this rank alone, as the others may be in the midst of
            talking to it.
    """
    _step_for_real(stepper, *next(_stages(plan, first_step)))


def rehearsed(
    steps: Iterator[list[MicroBatch]],
    stepper: Stepper,
    plan: Plan | DataPlan,
    first_step: int,
    watch: Watch,
) -> Iterator[list[MicroBatch]]:
    """Yield `steps` of a training from `first_step` on; rehearse each later stage as it begins.

    `watch` is told of the rehearsal, and that data are waited for after it.
    """
    for step in range(first_step, plan.total_steps):
        if step > first_step and plan.at(step).stage != plan.at(step - 1).stage:
            _give_back(stepper.world.device)  # memory that is cut for the last stage's sizes
            at = plan.at(step)
            if not is_sharded(stepper):
                watch.enter(Section.COMPILE, at.step + 1)
                rehearse(stepper, at, plan.global_batch // at.micro_batches)
                watch.enter(Section.DATA, at.step + 1)
        batches = next(steps, None)
        if batches is None:
            return
        yield batches
        del batches  # or this step's memory would be in use while the next one is asked for


def is_sharded(stepper: Stepper) -> bool:
    """Return whether a rank holds only a part of the weights: of DTensors, or of ZeRO 3's."""
    weights = list(stepper.model.parameters())
    return any(isinstance(weight, DTensor) or weight.numel() == 0 for weight in weights)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether torch could not get memory, on a GPU or in the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return "not enough memory" in text or "can't allocate memory" in text


def _stages(plan: Plan, first_step: int) -> Iterator[tuple[int, StepPlan, int]]:
    """Yield number, first step's plan and micro-batch of the stages from `first_step` on."""
    for stage in plan.stages:
        if stage.end > first_step:
            at = plan.at(max(stage.start, first_step))
            yield stage.number, at, plan.global_batch // at.micro_batches


def _step_for_real(stepper: Stepper, number: int, plan: StepPlan, batch: int) -> None:
    together = stepper.model.spec.together(stepper.world.size)
    try:
        stepper.warm_up(plan.px, batch * together)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0]
        raise Misuse(_refusal(number, plan, batch, reason)) from None


def _try(stepper: Stepper, plan: StepPlan, batch: int) -> str:
    """Return why a stage cannot be had, empty where it can."""
    with torch.compiler.set_stance("force_eager"):
        reason = _lack(stepper, plan, batch)
    if reason and stepper.is_compiled:
        reason = _lack(stepper, plan, batch)
    return reason


def _lack(stepper: Stepper, plan: StepPlan, batch: int) -> str:
    try:
        rehearse(stepper, plan, batch)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return str(error).partition("\n")[0]
    finally:
        _give_back(stepper.world.device)
    return ""


def _refusal(number: int, plan: StepPlan, batch: int, reason: str) -> str:
    return (
        f"field 'stages.{number}.micro_batches' is {plan.micro_batches}: a micro-batch of {batch} "
        f"images of {plan.px} px does not fit into memory ({reason}); use more micro-batches, for "
        f"example stages.{number}.micro_batches={2 * plan.micro_batches}; `python -m pipeline plan "
        "--measure` finds what fits"
    )


def _pretended(stepper: Stepper, plan: StepPlan, batch: int, index: int) -> MicroBatch:
    """Return a micro-batch of noise, as large and as laid out as the loader's."""
    rng = np.random.default_rng(index)
    pixels = torch.from_numpy(rng.integers(0, 256, (batch, plan.px, plan.px, 3), dtype=np.uint8))
    labels = torch.arange(batch).remainder(stepper.inputs.num_classes).view(-1, 1)
    device = stepper.world.device
    return MicroBatch(plan.step, index, pixels.to(device), labels.to(device), torch.arange(batch))


def _give_back(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
