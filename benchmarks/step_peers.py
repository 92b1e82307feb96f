"""The contestants of `step.py` and `gpu_train.py`: a training step of ours and one of timm's.

Both get the same uint8 images and labels on the device and do all that a step does: normalise,
mix up, forward with drop-path and dropout, loss with soft targets, backward, RMSProp with
TensorFlow's semantics, moving average. timm's parts are put together as its train.py does.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.data.batches import MicroBatch
from pipeline.jobs.stepper import build_stepper
from pipeline.models.network import build_network
from pipeline.parallel.world import World
from pipeline.plan.draws import Stream, keyed
from pipeline.plan.plan import StepPlan
from pipeline.recipe import Recipe

CLASSES = 1000
DROPOUT, DROP_PATH, SMOOTHING = 0.2, 0.2, 0.1
DECAY, EMA_DECAY = 1e-5, 0.9999
LR = 1e-4
TIMM_NAMES = {
    "tiny": "tf_efficientnetv2_b0",
    "v2_b0": "tf_efficientnetv2_b0",
    "v2_s": "efficientnetv2_s",
    "v2_m": "efficientnetv2_m",
    "v2_l": "efficientnetv2_l",
}
"""The same architecture there; `tf_` models pad like TensorFlow, so ours does too then."""

Step = Callable[[], object]


class Task(NamedTuple):
    """What is trained and how; `compiled` is torch.compile's mode, empty for none."""

    model: str
    px: int
    batch: int
    precision: str = "fp32"
    compiled: str = ""
    mixup: float = 0.2


class Data(NamedTuple):
    """A batch on the device: images (B, px, px, 3) uint8, labels (B,) int64."""

    images: Tensor
    labels: Tensor


def data_for(task: Task, device: torch.device) -> Data:
    """Draw a batch."""
    generator = torch.Generator().manual_seed(0)
    shape = (task.batch, task.px, task.px, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (task.batch,), generator=generator)
    return Data(images.to(device), labels.to(device))


def recipe_for(task: Task, **compute: Any) -> Recipe:
    """Return the recipe of a task: one stage of one micro-batch a step."""
    stage = {"px": task.px, "mixup": task.mixup, "dropout": DROPOUT, "micro_batches": 1}
    padding = "same" if TIMM_NAMES[task.model].startswith("tf_") else "symmetric"
    values = {
        "name": "benchmark",
        "length": {"steps": 1000},
        "batch": {"global_size": task.batch},
        "stages": [stage],
        "lr": {"kind": "constant", "peak": LR},
        "model": {"name": task.model, "padding": padding, "drop_path": DROP_PATH},
        "data": {"path": "none", "num_train": 1000 * task.batch},
        "preprocess": {"eval_px": task.px},
        "optim": {"weight_decay": DECAY},
        "loss": {"label_smoothing": SMOOTHING},
        "compute": {
            "precision": task.precision,
            "compile": bool(task.compiled),
            "compile_mode": task.compiled or "default",
            **compute,
        },
    }
    return Recipe.parse(values, "benchmark")


def ours(task: Task, data: Data, world: World, **compute: Any) -> Step:
    """Return a step of this project, with its strategy for `world`."""
    recipe = recipe_for(task, **compute)
    model = build_network(recipe.model, CLASSES, keyed(Stream.WEIGHTS, 0))
    stepper = build_stepper(recipe, CLASSES, world, model)
    plan: StepPlan = recipe.plan(1000 * task.batch).at(0)
    batch = MicroBatch(0, 0, data.images, data.labels.view(-1, 1), torch.arange(task.batch))
    return lambda: stepper.run([batch], plan)


def timm(task: Task, data: Data, device: torch.device) -> Step:
    """Return a step as timm's train.py makes it (1.0.31), of the same architecture."""
    from timm import create_model
    from timm.data import Mixup
    from timm.loss import SoftTargetCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.utils import ModelEmaV3

    model: nn.Module = create_model(
        TIMM_NAMES[task.model], drop_rate=DROPOUT, drop_path_rate=DROP_PATH
    )
    model.to(device).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = create_optimizer_v2(
        model, opt="rmsproptf", lr=LR, weight_decay=DECAY, momentum=0.9, eps=1e-3, alpha=0.9
    )
    average = ModelEmaV3(model, decay=EMA_DECAY)
    mixup = Mixup(mixup_alpha=task.mixup, label_smoothing=SMOOTHING, num_classes=CLASSES)
    loss_of = SoftTargetCrossEntropy()
    trained = torch.compile(model, mode=task.compiled) if task.compiled else model
    # Its collation gives (B, 3, px, px); its prefetcher normalises on the device.
    pixels = data.images.permute(0, 3, 1, 2).contiguous()
    mean = torch.full((1, 3, 1, 1), 128.0, device=device)
    std = torch.full((1, 3, 1, 1), 128.0, device=device)
    number = 0

    def step() -> None:
        nonlocal number
        images = pixels.float().sub_(mean).div_(std)
        images, targets = mixup(images, data.labels)
        images = images.contiguous(memory_format=torch.channels_last)
        with _autocast(task, device):
            loss = loss_of(trained(images), targets)
        loss.backward()
        optimizer.step()
        number += 1
        average.update(model, step=number)
        optimizer.zero_grad()

    return step


def _autocast(task: Task, device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16, enabled=task.precision == "bf16")
