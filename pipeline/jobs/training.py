"""Builds the parts of a training in the order the data flows, runs the loop, closes everything."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.checkpoint.state import TrainState
from pipeline.checkpoint.store import Store, await_whole, read
from pipeline.checkpoint.writer import Writer
from pipeline.data.bad import Tally
from pipeline.data.loader import StepLoader, TrainLoader
from pipeline.data.order import Order
from pipeline.data.sources import open_index
from pipeline.data.transfer import DeviceLoader, device_loader
from pipeline.engine.guard import DataPlan, Recovery
from pipeline.engine.loop import Loop, restore
from pipeline.engine.loop import train as run_loop
from pipeline.engine.pace import Pace
from pipeline.engine.signals import StopWish
from pipeline.engine.step import Stepper
from pipeline.engine.warmup import first_step_for_real, rehearse_stages, rehearsed
from pipeline.engine.watchdog import Watchdog
from pipeline.jobs.continued import LABELS, check_shapes
from pipeline.jobs.finish import finish
from pipeline.jobs.prepare import Prepared
from pipeline.jobs.progress import Progress
from pipeline.jobs.scoring import Scoring
from pipeline.jobs.start import first_weights
from pipeline.jobs.stepper import build_stepper
from pipeline.parallel.place import local_ranks
from pipeline.parallel.settings import meets_in_forward
from pipeline.parallel.world import World, open_world
from pipeline.recipe import Recipe
from pipeline.run import faults
from pipeline.run.beats import Section
from pipeline.run.folder import Outcome, Status
from pipeline.run.lease import Lease


def run_training(
    prepared: Prepared, lease: Lease | None, wish: StopWish, watch: Watchdog
) -> Outcome:
    """Train from the newest checkpoint (or from scratch) to the end or to a stop signal.

    `lease` is there on rank 0 only: it alone writes. `watch` is told what this rank is at.
    """
    recipe = prepared.recipe
    with ExitStack() as stack:
        world = open_world(recipe.compute.collective_timeout_s)
        stack.callback(world.close)
        watch.count = world.num_collectives
        faults.hit("setup", 0, world.rank)
        if lease is not None:
            lease.check()  # the spool takes the newest writer for the one that counts
        progress = Progress(prepared, world, wish)
        stack.push(progress.leave)
        model = first_weights(recipe, prepared.manifest, world)
        stepper = build_stepper(recipe, prepared.manifest.num_classes, world, model)
        store = _store(prepared, lease, _fence(lease, progress))
        state = _first_state(store, stepper, world, progress)
        scoring = Scoring(prepared, world, stepper, progress)
        if state.step < prepared.plan.total_steps:
            data = DataPlan(prepared.plan, state.windows)
            on_host = _loader(prepared, world, data)
            progress.memory = on_host.memory
            loader = device_loader(
                on_host, world.device, recipe.loader.decode, recipe.augment.device
            )
            stack.callback(loader.close)
            watch.enter(Section.COMPILE, state.step)
            rehearse_stages(stepper, prepared.plan, state.step, most=1)  # all ranks refuse as one
            first_step_for_real(stepper, prepared.plan, state.step)
            rehearse_stages(stepper, prepared.plan, state.step)  # beside the optimizer's slots
            scoring.rehearse()
            restore(stepper, state)
            newest = partial(_newest, store, world, progress)
            recovery = Recovery(data, newest, progress.went_back)
            writer = Writer(store, progress.say) if world.is_first else None
            if writer is not None:
                stack.callback(writer.close)  # before the spool closes, which a commit syncs
            loop = _loop(
                prepared, stepper, loader, scoring, writer, progress, recovery, state, watch
            )
            state, complete = run_loop(loop, state, wish)
            if not complete:
                return progress.saved(state.step)
        else:
            stepper.ema.module.load_state_dict(state.ema)
        finish(prepared, world, stepper, scoring, progress, watch, store.fence)
        return Outcome(Status.DONE, state.step)


def _loop(
    prepared: Prepared,
    stepper: Stepper,
    loader: DeviceLoader,
    scoring: Scoring,
    writer: Writer | None,
    progress: Progress,
    recovery: Recovery,
    state: TrainState,
    watch: Watchdog,
) -> Loop:
    recipe, plan, total = prepared.recipe, prepared.plan, prepared.plan.total_steps
    return Loop(
        plan=plan,
        stepper=stepper,
        batches=lambda batch: rehearsed(loader.steps(batch), stepper, recovery.data, batch, watch),
        data_wait_s=lambda: loader.wait_s,
        report=progress.step,
        evaluate=scoring.at_step,
        writer=writer,
        tally=Tally(
            recipe.loader.bad, plan.num_samples, plan.global_batch, state.step, state.bad_samples
        ),
        name_bad=progress.bad_samples,
        facts={"recipe": recipe.digest(), "data": prepared.manifest.digest()},
        save_every=recipe.checkpoint.interval(total),
        evaluate_every=recipe.evaluate.interval(total),
        guard=recipe.guard,
        recovery=recovery,
        pace=_pace(recipe, stepper.world, progress),
        watch=watch,
    )


def _pace(recipe: Recipe, world: World, progress: Progress) -> Pace | None:
    if not recipe.watch.pace_every_steps:
        return None
    over_ranks = recipe.model.together(world.size) < recipe.model.bn_group
    meets = over_ranks or meets_in_forward(recipe.strategy)
    return Pace(world, recipe.watch.pace_every_steps, progress.pace, meets)


def _store(prepared: Prepared, lease: Lease | None, fence: Callable[[], None]) -> Store:
    recipe = prepared.recipe
    papers = {LABELS: prepared.manifest.labels.model_dump(mode="json")}
    writer = lease.token if lease is not None else 0
    return Store(recipe.folder.checkpoints, recipe.checkpoint.keep, fence, papers, writer)


def _fence(lease: Lease | None, progress: Progress) -> Callable[[], None]:
    """Return what stands before each commit: still the one writer, and all points on disk."""

    def check() -> None:
        if lease is not None:
            lease.check()
        progress.sync()

    return check


def _first_state(store: Store, stepper: Stepper, world: World, progress: Progress) -> TrainState:
    """Return the newest checkpoint's state, else the state before step 1."""
    if world.is_first:
        store.prepare()
    first = stepper.ema.module  # a copy of the model from before it was sharded
    if (state := _newest(store, world, progress)) is not None:
        where = f"{store.folder}: the checkpoint after step {state.step}"
        check_shapes(state, first.state_dict(), where)
        progress.resume(state.step)
        return state
    everything = {name: value.clone() for name, value in first.state_dict().items()}
    names = {name for name, _ in first.named_parameters()}
    return TrainState(
        step=0,
        weights={name: value for name, value in everything.items() if name in names},
        buffers={name: value for name, value in everything.items() if name not in names},
        ema=everything,
        slots={},
    )


def _newest(store: Store, world: World, progress: Progress) -> TrainState | None:
    """Return the state of the newest checkpoint that verifies; rank 0 chooses."""
    newest = store.newest(progress.say) if world.is_first else None
    choice = world.share(str(newest) if newest else None)
    return read(await_whole(Path(choice))) if choice is not None else None


def _loader(prepared: Prepared, world: World, data: DataPlan) -> StepLoader:
    recipe = prepared.recipe
    common: dict[str, Any] = {
        "plan": data,
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
