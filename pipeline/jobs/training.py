"""Builds the parts of a training in the order the data flows, runs the loop, closes everything."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.checkpoint.state import TrainState
from pipeline.checkpoint.store import Store, read
from pipeline.checkpoint.writer import Writer
from pipeline.data.bad import Tally
from pipeline.data.loader import StepLoader, TrainLoader
from pipeline.data.order import Order
from pipeline.data.sources import open_index
from pipeline.data.transfer import DeviceLoader, device_loader
from pipeline.engine.inputs import Inputs
from pipeline.engine.loop import Loop, restore
from pipeline.engine.loop import train as run_loop
from pipeline.engine.signals import StopWish
from pipeline.engine.step import Stepper
from pipeline.jobs.finish import finish
from pipeline.jobs.prepare import Prepared
from pipeline.jobs.progress import Progress
from pipeline.jobs.scoring import Scoring
from pipeline.jobs.start import first_weights
from pipeline.models.efficientnet import EfficientNet
from pipeline.optim.ema import Ema
from pipeline.optim.groups import param_groups
from pipeline.optim.loss import loss_fn
from pipeline.optim.rmsprop import FIRST_SLOTS, RMSpropTF
from pipeline.parallel.build import build_strategy
from pipeline.parallel.place import local_ranks
from pipeline.parallel.world import World, open_world
from pipeline.run.folder import Outcome, Status
from pipeline.run.lease import Lease


def run_training(prepared: Prepared, lease: Lease | None, wish: StopWish) -> Outcome:
    """Train from the newest checkpoint (or from scratch) to the end or to a stop signal.

    `lease` is there on rank 0 only: it alone writes.
    """
    recipe = prepared.recipe
    with ExitStack() as stack:
        world = open_world(recipe.compute.collective_timeout_s)
        stack.callback(world.close)
        progress = Progress(prepared, world, wish)
        stack.push(progress.leave)
        model = first_weights(recipe, prepared.manifest, world)
        stepper = _stepper(prepared, world, model)
        store = _store(prepared, _fence(lease, progress))
        state = _first_state(store, stepper, world, progress)
        scoring = Scoring(prepared, world, stepper, progress)
        if state.step < prepared.plan.total_steps:
            on_host = _loader(prepared, world)
            progress.memory = on_host.memory
            loader = device_loader(
                on_host, world.device, recipe.loader.decode, recipe.augment.device
            )
            stack.callback(loader.close)
            _warm_up(stepper, prepared, state.step)
            restore(stepper, state)
            loop = _loop(prepared, stepper, loader, scoring, store, progress)
            state, complete = run_loop(loop, state, wish)
            if not complete:
                return progress.saved(state.step)
        else:
            stepper.ema.module.load_state_dict(state.ema)
        finish(prepared, world, stepper, scoring, progress)
        return Outcome(Status.DONE, state.step)


def _loop(
    prepared: Prepared,
    stepper: Stepper,
    loader: DeviceLoader,
    scoring: Scoring,
    store: Store,
    progress: Progress,
) -> Loop:
    recipe, plan, total = prepared.recipe, prepared.plan, prepared.plan.total_steps
    return Loop(
        plan=plan,
        stepper=stepper,
        batches=loader.steps,
        data_wait_s=lambda: loader.wait_s,
        report=progress.step,
        evaluate=scoring.at_step,
        writer=Writer(store, progress.say) if stepper.world.is_first else None,
        tally=Tally(recipe.loader.bad, plan.num_samples, plan.global_batch),
        name_bad=progress.bad_samples,
        facts={"recipe": recipe.digest(), "data": prepared.manifest.digest()},
        save_every=recipe.checkpoint.interval(total),
        evaluate_every=recipe.evaluate.interval(total),
    )


def _store(prepared: Prepared, fence: Callable[[], None]) -> Store:
    recipe = prepared.recipe
    papers = {"labels.json": prepared.manifest.labels.model_dump(mode="json")}
    return Store(recipe.folder.checkpoints, recipe.checkpoint.keep, fence, papers)


def _fence(lease: Lease | None, progress: Progress) -> Callable[[], None]:
    """Return what stands before each commit: still the one writer, and all points on disk."""

    def check() -> None:
        if lease is not None:
            lease.check()
        progress.sync()

    return check


def _stepper(prepared: Prepared, world: World, model: EfficientNet) -> Stepper:
    recipe = prepared.recipe
    model.to(world.device)
    ema = Ema(model)
    optimizer = RMSpropTF(
        param_groups(model.named_parameters(), recipe.optim.weight_decay),
        lr=0.0,
        decay=recipe.optim.decay,
        momentum=recipe.optim.momentum,
        eps=recipe.optim.eps,
    )
    if recipe.compute.compile:
        nn.Module.compile(model, dynamic=False)
    strategy = build_strategy(
        recipe.strategy, world, model, optimizer, recipe.compute.precision, FIRST_SLOTS
    )
    inputs = Inputs(
        recipe.preprocess,
        prepared.manifest.num_classes,
        recipe.loss.label_smoothing,
        recipe.seed,
        world.device,
        recipe.compute.channels_last,
    )
    return Stepper(world, model, strategy, ema, inputs, loss_fn(recipe.loss))


def _first_state(store: Store, stepper: Stepper, world: World, progress: Progress) -> TrainState:
    """Return the newest checkpoint's state (rank 0 chooses), else the state before step 1."""
    choice = None
    if world.is_first:
        store.prepare()
        newest = store.newest(progress.say)
        choice = str(newest) if newest else None
    choice = world.share(choice)
    if choice is not None:
        state = read(Path(choice))
        progress.resume(state.step)
        return state
    everything = {name: value.clone() for name, value in stepper.model.state_dict().items()}
    names = {name for name, _ in stepper.model.named_parameters()}
    return TrainState(
        step=0,
        weights={name: value for name, value in everything.items() if name in names},
        buffers={name: value for name, value in everything.items() if name not in names},
        ema=everything,
        slots={},
    )


def _loader(prepared: Prepared, world: World) -> StepLoader:
    recipe = prepared.recipe
    common: dict[str, Any] = {
        "plan": prepared.plan,
        "global_batch": recipe.batch.global_size,
        "rank": world.rank,
        "world": world.size,
        "augment": recipe.augment,
        "seed": recipe.seed,
        "spec": recipe.loader,
    }
    if recipe.data.stream is not None:
        from pipeline.data.stream import StreamLoader, find_tars

        return StreamLoader(find_tars(recipe.data.stream), prepared.manifest.labels, **common)
    index = open_index(
        recipe.data.path,
        recipe.data.shards,
        prepared.manifest,
        recipe.data.train,
        lanes=-(-recipe.loader.lanes * local_ranks(os.environ, world.size) // world.size),
        window=recipe.loader.window,
    )
    order = Order(len(index), recipe.seed, recipe.loader.lanes, recipe.loader.window)
    ahead_steps = index.places.ahead_steps
    return TrainLoader(index=index, order=order, ahead_steps=ahead_steps, **common)


def _warm_up(stepper: Stepper, prepared: Prepared, step: int) -> None:
    plan = prepared.plan.at(step)
    stepper.warm_up(plan.px, prepared.recipe.batch.global_size // plan.micro_batches)
