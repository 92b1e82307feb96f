"""What must be right before torch is loaded: config, data set, plan, world, run folder."""

import os
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.data.manifest import Manifest
from pipeline.data.sources import make_ready, open_manifest
from pipeline.jobs.continued import check_continues
from pipeline.jobs.idle import without_effect
from pipeline.jobs.shards import check_shards
from pipeline.parallel.place import Place, check_divides, place_from
from pipeline.plan.plan import Plan
from pipeline.recipe import Recipe, load_recorded
from pipeline.run.files import read_json, write_atomically, write_json
from pipeline.spec import Misuse, differences, dump
from pipeline.tracking.settings import resolve_uri

IMAGENET_CLASSES = 1000
FREE_TO_CHANGE = (
    "runs",
    "strategy",
    "compute.collective_timeout_s",
    "loader.workers",
    "loader.prefetch",
    "loader.timeout_s",
    "loader.start_method",
    "loader.bad",
    "guard",
    "watch",
    "checkpoint",
    "evaluate",
    "tracking",
    "source",
    "expects",
    "data.path",
    "data.shards",
)
"""Settings that a resumed run may change: they do not define what is trained. Shards may be moved;
that they are the same is seen from their digest."""

DATA = "data.json"


@dataclass(frozen=True)
class Prepared:
    """A training that may start."""

    recipe: Recipe
    manifest: Manifest
    plan: Plan
    place: Place


def prepare(recipe: Recipe) -> Prepared:
    """Check a recipe against its data set and this world; writes nothing.

    Raises:
        Misuse: the shards or a split are missing, the ranks cannot share the micro-batches, the
            model cannot take the images, the tracking address cannot be used, collectives
            are less patient than the watchdog, or the watchdog less than so many ranks' beats.
    """
    recipe.check_patience()
    manifest = open_manifest(recipe.data.path, recipe.data.shards)
    manifest.split(recipe.data.eval)
    plan = recipe.plan(num_train(recipe, manifest))
    if recipe.tracking.enabled:
        resolve_uri(recipe.tracking)
    place = place_from(os.environ)
    recipe.watch.check_world(place.size)
    check_divides(place.size, [stage.settings.micro_batches for stage in plan.stages])
    recipe.model.together(place.size)
    return Prepared(recipe, manifest, plan, place)


def make_data_ready(prepared: Prepared, say: Callable[[str], None] = print) -> None:
    """Bring what can be brought before training; every rank does, before any waits for another.

    Shards that are read where they lie are looked for, by rank 0. `say` is told how far it is.

    Raises:
        Misuse: the node's disk is too small for what is asked, or shards are missing or too short.
        Failure: the source of the shards lacks some, or does not answer.
    """
    data = prepared.recipe.data
    if prepared.place.rank == 0:
        check_shards(prepared.recipe, prepared.manifest)
    splits = [data.eval] if data.stream is not None else [data.train, data.eval]
    make_ready(data.path, data.shards, prepared.manifest, splits, say)


def num_train(recipe: Recipe, manifest: Manifest) -> int:
    """Return the number of training images: the split's, or what is said of streamed tars."""
    if recipe.data.stream is not None:
        assert recipe.data.num_train is not None
        return recipe.data.num_train
    return manifest.split(recipe.data.train).num_samples


def record(prepared: Prepared, accept_changes: bool) -> None:
    """Write the recipe and plan into the run's folder; refuse another recipe than recorded.

    Raises:
        Misuse: the run was started with other settings or images; each difference is listed. Or
            its checkpoints are of another model or label space, which cannot be accepted.
    """
    recipe, folder = prepared.recipe, prepared.recipe.folder
    changes: list[str] = []
    if folder.recipe.is_file():
        recorded = load_recorded(folder)
        changes = _changes(prepared, recorded)
        if accept_changes:  # else all differences are listed, these among them
            check_continues(folder, recorded.model, recipe.model, prepared.manifest.labels)
    if changes and not accept_changes:
        raise Misuse(
            f"{folder.recipe}: the run was started with other settings:\n  "
            + "\n  ".join(changes)
            + "\nuse another name=..., undo the changes, or pass --accept-changes"
        )
    folder.path.mkdir(parents=True, exist_ok=True)
    write_json(folder.path / DATA, _images(prepared.manifest))
    write_atomically(folder.recipe, dump(recipe.values()))
    text = plan_text(recipe, prepared.plan, prepared.manifest)
    write_atomically(folder.path / "plan.txt", text + "\n")


def _changes(prepared: Prepared, recorded: Recipe) -> list[str]:
    """Name what differs from the recorded run and defines what is trained."""
    recipe, folder = prepared.recipe, prepared.recipe.folder
    lines = differences(recorded.values(), recipe.values())
    lines = [line for line in lines if not line.startswith(FREE_TO_CHANGE)]
    known, images = read_json(folder.path / DATA), _images(prepared.manifest)
    return lines + (differences(known, images, "data.") if isinstance(known, dict) else [])


def _images(manifest: Manifest) -> dict[str, str]:
    return {"shards": manifest.name, "digest": manifest.digest()}


def plan_text(recipe: Recipe, plan: Plan, manifest: Manifest | None) -> str:
    """Return the printed plan: what the recipe says, stage by stage, and what of it is idle.

    Without the `manifest` of the shards, the data card's number of classes is used.
    """
    from pipeline.models.count import model_macs, model_params

    model, classes = recipe.model, num_classes(recipe, manifest)
    head = [
        f"{recipe.name}: {model.name}, {model_params(model, classes):,} parameters, "
        f"{recipe.variant} recipe, seed {recipe.seed}",
        f"data {recipe.data.name or recipe.data.path}, global batch {recipe.batch.global_size}, "
        f"{recipe.strategy.kind}, {recipe.compute.precision}",
    ]
    head += _fixed(recipe, plan)
    head += [f"source: {recipe.source}"] if recipe.source else []
    head += [f"expects: {recipe.expects}"] if recipe.expects else []
    table = plan.table(lambda px: float(model_macs(model, px, classes)))
    return "\n".join([*head, table, *(f"no effect: {text}" for text in without_effect(recipe))])


def _fixed(recipe: Recipe, plan: Plan) -> list[str]:
    """Say what is the same in all stages: pixels, policy, evaluation, what else regularises."""
    augment, preprocess, model = recipe.augment, recipe.preprocess, recipe.model
    layers = f" of {augment.num_layers} layers" if augment.kind.startswith("randaugment") else ""
    lines = [
        f"images: crop {augment.crop}, {augment.kind}{layers}; evaluated at {preprocess.eval_px} "
        f"px, {preprocess.eval_resize}",
        f"weight decay {recipe.optim.weight_decay:g}, label smoothing "
        f"{recipe.loss.label_smoothing:g}, drop-path {model.drop_path:g}, "
        f"BatchNorm momentum {model.bn_momentum:g}, loss {recipe.loss.kind}",
    ]
    if not layers and any(stage.settings.randaugment for stage in plan.stages):
        lines.append(f"! augment.kind {augment.kind} has no magnitude: stages.randaugment is idle")
    return lines


def num_classes(recipe: Recipe, manifest: Manifest | None) -> int:
    """Return the classes of the shards, else of the data card, else ImageNet-1k's."""
    if manifest is not None:
        return manifest.num_classes
    return recipe.data.num_classes or IMAGENET_CLASSES
