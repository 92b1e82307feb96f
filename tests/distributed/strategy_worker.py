"""One rank of the strategies' shared suite: trains a small network under each of them.

    RANK=0 WORLD_SIZE=1 python -m tests.distributed.strategy_worker FOLDER

Runs everything in one process group and writes what came out, from every rank, to FOLDER; the
tests judge it. A later worker with more ranks goes on from what an earlier one saved there.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.models.batchnorm import commit_statistics, discard_statistics
from pipeline.models.blocks import ConvNorm
from pipeline.models.table import ModelSpec
from pipeline.optim.ema import Ema
from pipeline.optim.groups import param_groups
from pipeline.optim.loss import loss_fn
from pipeline.optim.rmsprop import FIRST_SLOTS, RMSpropTF
from pipeline.optim.settings import LossSpec
from pipeline.parallel.build import build_strategy
from pipeline.parallel.settings import ComputeSpec, DdpSpec, DeepspeedSpec, FsdpSpec
from pipeline.parallel.strategy import Strategy, Tensors
from pipeline.parallel.world import World, open_world

MICRO_BATCHES, IMAGES, PX, CLASSES = 4, 6, 12, 5
STEPS, SAVED, LR, DECAY = 6, 3, 0.01, 0.6
CLIP = 0.5
TOO_LARGE = 2.0**26
STRATEGIES = {
    "ddp": DdpSpec(),
    "ddp-static": DdpSpec(static_graph=True),
    "zero0": DeepspeedSpec(zero_stage=0),
    "zero1": DeepspeedSpec(zero_stage=1),
    "zero2": DeepspeedSpec(zero_stage=2),
    "zero3": DeepspeedSpec(zero_stage=3, persistent_elements=0),
    "zero3-persistent": DeepspeedSpec(zero_stage=3, persistent_elements=1000),
    "zero1-offload": DeepspeedSpec(zero_stage=1, offload_optimizer=True),
    "zero2-offload": DeepspeedSpec(zero_stage=2, offload_optimizer=True),
    "zero3-offload": DeepspeedSpec(zero_stage=3, offload_optimizer=True, persistent_elements=0),
    "fsdp": FsdpSpec(),
    "fsdp-keep": FsdpSpec(reshard_after_forward=False),
}
MIXED = ("ddp", "zero0", "zero1", "zero2", "zero3", "zero2-offload", "fsdp")


@dataclass
class Training:
    """A network under one strategy and what happened to it."""

    world: World
    model: nn.Module
    strategy: Strategy
    ema: Ema
    losses: list[float] = field(default_factory=list)
    applied: list[bool] = field(default_factory=list)

    def steps(self, first: int, last: int, spike: float = 1.0) -> None:
        """Train steps `first` to `last` - 1; `spike` multiplies the last micro-batch's loss."""
        for step in range(first, last):
            total = self.gradients(step, spike) / self.world.size
            commit_statistics(
                self.model, MICRO_BATCHES // self.world.size, self.world.sum, MICRO_BATCHES
            )
            self.applied.append(self.strategy.step(LR))
            if self.applied[-1]:
                self.ema.update(self.model, DECAY, self.strategy.weights())
            self.world.sum(total)
            self.losses.append(float(total))

    def gradients(self, step: int, spike: float = 1.0) -> Tensor:
        """Collect the gradients of this rank's micro-batches; return its mean loss."""
        mine = range(self.world.rank, MICRO_BATCHES, self.world.size)
        total = torch.zeros(())
        self.model.train()
        for index in mine:
            images, targets = batch(step, index)
            factor = spike if index == MICRO_BATCHES - 1 else 1.0

            def compute(model: nn.Module, images=images, targets=targets, factor=factor):
                return LOSS(model(images), targets) * factor / len(mine)

            total += self.strategy.micro_step(compute, last=index == mine[-1])
        return total

    def tensors(self) -> dict[str, Tensor]:
        """Return everything a checkpoint would hold, copied."""
        state = self.strategy.snapshot()
        buffers = {k: v for k, v in self.model.state_dict().items() if k not in state.weights}
        parts = {"weights": state.weights, "slots": state.slots, "buffers": buffers,
                 "ema": self.ema.module.state_dict()}  # fmt: skip
        return {f"{part}:{name}": value.detach().clone().contiguous()
                for part, values in parts.items() for name, value in values.items()}  # fmt: skip

    def restore(self, tensors: dict[str, Tensor], scaler: dict[str, float]) -> None:
        """Put what `tensors` returned back, from whatever strategy it came."""
        parts: dict[str, dict[str, Tensor]] = {"weights": {}, "slots": {}, "buffers": {}, "ema": {}}
        for key, value in tensors.items():
            part, name = key.split(":", 1)
            parts[part][name] = value
        self.strategy.restore(Tensors(parts["weights"], parts["slots"], scaler))
        self.model.load_state_dict(parts["buffers"], strict=False)
        self.ema.module.load_state_dict(parts["ema"])


LOSS = loss_fn(LossSpec())


def batch(step: int, index: int, images: int = IMAGES) -> tuple[Tensor, Tensor]:
    """Return the images and targets of one micro-batch; the same on whichever rank."""
    rng = np.random.default_rng((step, index))
    labels = rng.integers(0, CLASSES, images)
    pixels = rng.normal(size=(images, 3, PX, PX)) + labels[:, None, None, None] * 0.5
    targets = nn.functional.one_hot(torch.from_numpy(labels), CLASSES).float()
    return torch.from_numpy(pixels).float().contiguous(memory_format=torch.channels_last), targets


class Network(nn.Module):
    """Stem, blocks and classifier with BatchNorm; sizes that two ranks cannot halve."""

    def __init__(self) -> None:
        super().__init__()
        spec = ModelSpec(name="tiny")
        self.stem = ConvNorm(3, 7, spec, kernel=3, stride=2)
        self.blocks = nn.ModuleList(
            [ConvNorm(7, 7, spec, kernel=3, groups=7), ConvNorm(7, 9, spec)]
        )
        self.classifier = nn.Linear(9, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stem(images)
        for block in self.blocks:
            maps = block(maps)
        return self.classifier(maps.mean((2, 3)))


def without_norm() -> nn.Module:
    """A network without BatchNorm, whose large batch is the sum of its micro-batches."""
    torch.manual_seed(1)
    layers = (nn.Conv2d(3, 7, 3, stride=2), nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(28, CLASSES))


def start(world: World, name: str, compute: ComputeSpec, model: nn.Module | None = None):
    """Build a training and take the throw-away step that every attempt begins with."""
    if model is None:
        torch.manual_seed(1)
        model = Network()
    ema = Ema(model)
    groups = param_groups(model.named_parameters(), 1e-2)
    strategy = build_strategy(
        STRATEGIES[name], world, model, RMSpropTF(groups, lr=0.0), compute, FIRST_SLOTS
    )
    training = Training(world, model, strategy, ema)
    first = {f"weights:{k}": v.clone() for k, v in ema.module.named_parameters()}
    state = {f"ema:{k}": v.clone() for k, v in ema.module.state_dict().items()}
    buffers = {f"buffers:{k}": v.clone() for k, v in ema.module.named_buffers()
               if k in ema.module.state_dict()}  # fmt: skip
    rehearse(training)
    training.restore(
        {**first, **state, **buffers},
        {"scale": compute.loss_scale, "growth": 0.0} if compute.precision == "fp16" else {},
    )
    return training


def rehearse(training: Training) -> None:
    """Take one step of rate 0, as the engine does before it restores a state."""
    images, targets = batch(99, 0)
    training.model.train()
    while True:
        training.strategy.micro_step(lambda model: LOSS(model(images), targets), last=True)
        if training.strategy.step(0.0):
            break
    discard_statistics(training.model)


class Record:
    """Writes results to the folder, this rank's own."""

    def __init__(self, folder: Path, world: World) -> None:
        self.folder, self.world = folder, world
        self.facts: dict[str, Any] = {}

    def keep(self, name: str, training: Training, tensors: dict[str, Tensor] | None = None) -> None:
        scaler = training.strategy.snapshot().scaler
        self.facts[name] = {"losses": list(training.losses), "applied": list(training.applied),
                            "scaler": scaler}  # fmt: skip
        if tensors is not None:
            save_file(tensors, self.file(name))

    def file(self, name: str, world: int | None = None, rank: int | None = None) -> Path:
        world = self.world.size if world is None else world
        rank = self.world.rank if rank is None else rank
        return self.folder / f"{name}-{world}-{rank}.safetensors"

    def close(self) -> None:
        path = self.folder / f"facts-{self.world.size}-{self.world.rank}.json"
        path.write_text(json.dumps(self.facts))


def curves(world: World, record: Record) -> None:
    """Every strategy and precision from the same weights on the same data."""
    for precision in ("fp32", "bf16", "fp16"):
        for name in STRATEGIES if precision == "fp32" else MIXED:
            training = start(world, name, ComputeSpec(precision=precision))
            training.steps(0, SAVED)
            if precision == "fp32":
                save_file(training.tensors(), record.file(f"saved-{name}"))
            training.steps(SAVED, STEPS)
            record.keep(f"{precision}-{name}", training, training.tensors())
            if precision == "fp32":
                exchange(training, name, record)


def exchange(training: Training, name: str, record: Record) -> None:
    """Take in what every strategy and world saved so far; give it out again, and go on."""
    for size in range(1, record.world.size + 1):
        for giver in STRATEGIES:
            path = record.file(f"saved-{giver}", size, 0)
            if not path.is_file():
                continue
            given = load_file(path)
            training.losses.clear()
            training.restore(given, {})
            again = training.tensors()
            same = equal(given, again)
            training.steps(SAVED, SAVED + 1)
            facts = {"same": same, "losses": list(training.losses)}
            record.facts[f"exchange-{giver}-{size}-{name}"] = facts
    discarding(training, name, record)


def discarding(training: Training, name: str, record: Record) -> None:
    """Collect gradients that are not finite on the last rank, drop them, and go on."""
    training.restore(load_file(record.file(f"saved-{name}", rank=0)), {})
    before = training.tensors()
    training.gradients(SAVED, spike=float("nan"))
    training.strategy.discard()
    discard_statistics(training.model)
    after = training.tensors()
    training.losses.clear()
    training.steps(SAVED, STEPS)
    record.keep(f"discard-{name}", training)
    record.facts[f"discard-{name}"]["kept"] = equal(before, after)


def equal(a: dict[str, Tensor], b: dict[str, Tensor], but: str = "nothing") -> bool:
    return all(torch.equal(a[key], b[key]) for key in a | b if not key.startswith(but))


def clipping(world: World, record: Record) -> None:
    for name in STRATEGIES:
        training = start(world, name, ComputeSpec(clip_norm=CLIP))
        training.steps(0, 2)
        record.keep(f"clip-{name}", training, training.tensors())


def accumulation(world: World, record: Record) -> None:
    for name in STRATEGIES:
        training = start(world, name, ComputeSpec(), without_norm())
        training.steps(0, 2)
        record.keep(f"plain-{name}", training, training.tensors())
    if world.size == 1:
        training = start(world, "ddp", ComputeSpec(), without_norm())
        for step in range(2):
            parts = zip(*(batch(step, index) for index in range(MICRO_BATCHES)), strict=True)
            images, targets = (torch.cat(tensors) for tensors in parts)
            training.strategy.micro_step(lambda m, x=images, y=targets: LOSS(m(x), y), last=True)
            training.strategy.step(LR)
        record.keep("plain-large", training, training.tensors())


def overflows(world: World, record: Record) -> None:
    """A scale that is too large at first, then a gradient that overflows on the last rank."""
    for name in MIXED:
        training = start(world, name, ComputeSpec(precision="fp16", loss_scale=TOO_LARGE))
        before = training.tensors()
        training.steps(0, 1)
        kept = equal(before, training.tensors(), but="buffers")
        training.steps(1, 16)
        record.keep(f"overflow-{name}", training)
        record.facts[f"overflow-{name}"]["kept"] = kept

        training = start(world, name, ComputeSpec(precision="fp16", clip_norm=CLIP))
        training.steps(0, 2)
        training.steps(2, 3, spike=1e30)
        training.steps(3, 5)
        record.keep(f"spike-{name}", training, training.tensors())


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    world = open_world(120)
    record = Record(folder, world)
    accumulation(world, record)
    clipping(world, record)
    curves(world, record)
    overflows(world, record)
    record.facts["mlflow"] = "mlflow" in sys.modules
    record.close()
    world.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
