"""A training of seconds made of the real parts, whose losses can be spoilt at chosen batches.

Two stages of 8 and 8 steps, two micro-batches of four images a step. What a batch holds follows
from its number in the stream, as with the real loader.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.checkpoint.state import TrainState, Window
from pipeline.checkpoint.store import Store, read
from pipeline.checkpoint.writer import Writer
from pipeline.data.bad import BadSpec, Tally
from pipeline.data.batches import MicroBatch
from pipeline.data.preprocess import PreprocessSpec
from pipeline.engine.guard import Course, DataPlan, Recovery, Trouble
from pipeline.engine.inputs import Inputs
from pipeline.engine.loop import Loop, StepReport, capture, restore, train
from pipeline.engine.pace import Pace
from pipeline.engine.settings import GuardSpec
from pipeline.engine.signals import StopWish
from pipeline.engine.step import Stepper
from pipeline.models.efficientnet import build
from pipeline.models.table import ModelSpec
from pipeline.optim.ema import Ema
from pipeline.optim.groups import param_groups
from pipeline.optim.loss import loss_fn
from pipeline.optim.rmsprop import FIRST_SLOTS, RMSpropTF
from pipeline.optim.settings import LossSpec
from pipeline.parallel.build import build_strategy
from pipeline.parallel.settings import ComputeSpec, DdpSpec, StrategySpec
from pipeline.parallel.world import World
from pipeline.plan.durations import LengthSpec
from pipeline.plan.lr import LrSpec
from pipeline.plan.plan import EmaSpec, Plan, make_plan
from pipeline.plan.stages import StagesSpec

STEPS, BATCH, PARTS, CLASSES = 16, 8, 2, 5
STAGES = [
    {"px": 16, "micro_batches": PARTS, "mixup": 0.2, "dropout": 0.1},
    {"px": 24, "micro_batches": PARTS, "mixup": 0.2, "dropout": 0.2},
]


def make_plan_of(steps: int = STEPS) -> Plan:
    """Return the plan of the small training."""
    return make_plan(
        LengthSpec.parse({"steps": steps}, "test"),
        StagesSpec.model_validate(STAGES),
        LrSpec.parse({"kind": "constant", "peak": 0.01}, "test"),
        EmaSpec.parse({"decay": 0.9}, "test"),
        global_batch=BATCH,
        num_samples=40,
    )


def micro_batch(batch: int, index: int, px: int) -> MicroBatch:
    """Return what micro-batch `index` of batch `batch` of the stream holds."""
    rng = np.random.default_rng((batch, index))
    size = BATCH // PARTS
    pixels = torch.from_numpy(rng.integers(0, 256, (size, px, px, 3), dtype=np.uint8))
    labels = torch.from_numpy(rng.integers(0, CLASSES, (size, 1)))
    return MicroBatch(batch, index, pixels, labels, batch * BATCH + torch.arange(size))


@dataclass
class Spoiler:
    """The loss, spoilt where `value` or `gradient` names the batch at hand.

    `value` makes it NaN or infinite, `gradient` keeps its value and makes its gradient NaN; of the
    micro-batches only `index` is spoilt.
    """

    value: dict[int, float] = field(default_factory=dict)
    gradient: set[int] = field(default_factory=set)
    index: int = PARTS - 1
    at: list[MicroBatch] = field(default_factory=list)

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        loss = loss_fn(LossSpec())(logits, targets)
        batch = self.at.pop(0) if self.at else None  # none in the warm-up
        if batch is None or batch.index != self.index:
            return loss
        if batch.step in self.gradient:
            return loss + (logits.sum() * 0).sqrt()
        return loss * self.value.get(batch.step, 1.0)


class Training:
    """One attempt at the small training by one rank of `world`, checkpoints in `folder`."""

    def __init__(
        self,
        world: World,
        folder: Path,
        strategy: StrategySpec | None = None,
        guard: GuardSpec | None = None,
        compute: ComputeSpec | None = None,
        save_every: int = 4,
    ) -> None:
        self.world = world
        self.store = Store(folder, keep=99, fence=lambda: None)
        self.spoiler, self.wish = Spoiler(), StopWish()
        self.reports: list[StepReport] = []
        self.seen: list[tuple[int, int]] = []  # (batch, px)
        self.told: list[tuple[Trouble, Window]] = []
        self.guard, self.save_every = guard or GuardSpec(), save_every
        self.stop_at, self.can_go_back = math.inf, True
        self.pace: Pace | None = None
        self.stepper = self._stepper(strategy or DdpSpec(), compute or ComputeSpec())
        self.tally = Tally(BadSpec(), 40, BATCH)
        self.before_step: Callable[[int], None] = lambda batch: None

    def _stepper(self, strategy: StrategySpec, compute: ComputeSpec) -> Stepper:
        spec = ModelSpec.parse({"name": "tiny", "drop_path": 0.2}, "test")
        model = build(spec, CLASSES, np.random.default_rng(0))
        ema = Ema(model)
        optimizer = RMSpropTF(param_groups(model.named_parameters(), 1e-5), lr=0.0)
        wrapped = build_strategy(strategy, self.world, model, optimizer, compute, FIRST_SLOTS)
        inputs = Inputs(PreprocessSpec(), CLASSES, 0.1, 0, self.world.device, True)
        return Stepper(self.world, model, wrapped, ema, inputs, self.spoiler)

    def first_state(self) -> TrainState:
        """Return the state before the first step."""
        whole = {k: v.clone() for k, v in self.stepper.ema.module.state_dict().items()}
        names = {name for name, _ in self.stepper.ema.module.named_parameters()}
        return TrainState(
            step=0,
            weights={k: v for k, v in whole.items() if k in names},
            buffers={k: v for k, v in whole.items() if k not in names},
            ema=whole,
            slots={},
        )

    def newest(self) -> TrainState | None:
        """Return the newest checkpoint of rank 0."""
        path = self.world.share(str(self.store.newest(print) or "") if self.is_first else None)
        return read(Path(path)) if path else None

    @property
    def is_first(self) -> bool:
        """Return whether this rank writes."""
        return self.world.is_first

    def run(self, state: TrainState | None = None) -> TrainState:
        """Train from `state` (else from the first) to the end or until asked to stop."""
        if self.is_first:
            self.store.prepare()
        state = state or self.first_state()
        self.stepper.warm_up(16, BATCH // PARTS)
        restore(self.stepper, state)
        plan = make_plan_of()
        data = DataPlan(plan, state.windows)
        recovery = Recovery(data, self.newest, lambda *what: self.told.append(what))
        writer = Writer(self.store, print) if self.is_first else None
        loop = Loop(
            plan=plan,
            stepper=self.stepper,
            batches=lambda first: self._batches(data, first),
            data_wait_s=lambda: 0.0,
            report=self.reports.append,
            evaluate=lambda step: 0.5,
            writer=writer,
            tally=self.tally,
            name_bad=lambda bad: None,
            facts={},
            save_every=self.save_every,
            evaluate_every=99,
            guard=self.guard,
            recovery=recovery if self.can_go_back else None,
            pace=self.pace,
        )
        try:
            return train(loop, state, self.wish)[0]
        finally:
            if writer is not None:
                writer.close()

    def state(self) -> TrainState:
        """Return the present state, copied."""
        return capture(self.stepper, Course(0, (None, None), (), ())).on_host()

    def _batches(self, data: DataPlan, first: int) -> Iterator[list[MicroBatch]]:
        for batch in range(first, data.total_steps):
            px = data.at(batch).px
            own = range(self.world.rank, PARTS, self.world.size)
            step = [micro_batch(batch, index, px) for index in own]
            self.spoiler.at = list(step)
            self.seen.append((batch, px))
            self.before_step(batch)
            if batch >= self.stop_at:
                self.wish.reason = "SIGUSR2"
            yield step
