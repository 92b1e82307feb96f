"""The end of a training: final scores, the package, the tracked run's status, registration.

A tracker that cannot be reached does not fail a training: everything stays in the run's folder
and the line that registers it later is printed.
"""

from collections.abc import Callable
from typing import Any

from pipeline.engine.step import Stepper
from pipeline.engine.watchdog import Watch
from pipeline.evaluate.score import Scores
from pipeline.export.package import write_package
from pipeline.jobs.prepare import Prepared
from pipeline.jobs.progress import Progress
from pipeline.jobs.register import register_package
from pipeline.jobs.scoring import Scoring
from pipeline.parallel.world import World
from pipeline.run import faults
from pipeline.run.beats import Section
from pipeline.tracking.facts import describe


def finish(
    prepared: Prepared,
    world: World,
    stepper: Stepper,
    scoring: Scoring,
    progress: Progress,
    watch: Watch,
    fence: Callable[[], None],
) -> None:
    """Score, package and register; all ranks call it, rank 0 writes, all leave together.

    Raises:
        LeaseHeld: another job took the run over; from `fence`, before the package or the registry
            would be touched.
    """
    step = prepared.plan.total_steps
    faults.hit("finish", step, world.rank)
    fence()
    watch.enter(Section.EVALUATE, step)
    scores = scoring.final(step)
    watch.enter(Section.FINISH, step)
    if world.is_first:
        recipe = prepared.recipe
        fence()
        write_package(
            recipe.folder.package,
            recipe.model,
            dict(stepper.ema.module.state_dict()),
            prepared.manifest.labels,
            recipe.preprocess,
            _facts(prepared, scores),
        )
        progress.say(
            f"done: top-1 {scores.top1:.4f}, top-5 {scores.top5:.4f} on {scores.num_images} "
            f"held-out images; the model is in {recipe.folder.package}"
        )
        if progress.sender is not None:
            _track(prepared, progress, fence)
    world.barrier()


def _track(prepared: Prepared, progress: Progress, fence: Callable[[], None]) -> None:
    folder = prepared.recipe.folder
    unsent = progress.finish_tracking("FINISHED")
    if unsent:
        progress.say(
            f"warning: {unsent} events did not reach MLflow; send them later with "
            f"`python -m pipeline sync {folder.path}`"
        )
    if prepared.recipe.tracking.register_as is None:
        return
    fence()
    try:
        version = register_package(folder, prepared.recipe)
    except Exception as error:  # a broken tracker must not undo a finished training
        progress.say(
            f"warning: not registered ({type(error).__name__}: {error}); register it later "
            f"with `python -m pipeline register {folder.path}`"
        )
        return
    progress.say(
        f"registered as {version.uri} (alias candidate), run it with "
        f"`python -m pipeline predict --model {version.uri} IMAGE...`"
    )


def _facts(prepared: Prepared, scores: Scores) -> dict[str, Any]:
    recipe = prepared.recipe
    return {
        "run": recipe.name,
        "step": prepared.plan.total_steps,
        "recipe_digest": recipe.digest(),
        "data_name": prepared.manifest.name,
        "data_digest": prepared.manifest.digest(),
        "parent": recipe.init.origin if recipe.init else None,
        "top1": scores.top1,
        "top5": scores.top5,
        "num_eval_images": scores.num_images,
        **describe(),
    }
