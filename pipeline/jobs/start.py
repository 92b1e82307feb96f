"""The first weights of a training: drawn from the seed, or taken from a finished model."""

import tempfile
from pathlib import Path

import torch

from pipeline.data.labels import LabelSpace, convert
from pipeline.data.manifest import Manifest
from pipeline.export.package import Package, load_package
from pipeline.models.efficientnet import EfficientNet, build
from pipeline.parallel.world import World
from pipeline.plan.draws import Stream, keyed
from pipeline.recipe import Recipe
from pipeline.spec import Misuse
from pipeline.tracking.registry import fetch
from pipeline.tracking.settings import TrackingSpec

HEAD = "classifier."
NAMED = 10
"""So many classes that a head lacks are named."""


def first_weights(recipe: Recipe, manifest: Manifest, world: World) -> EfficientNet:
    """Build the model; every rank gets the same weights.

    With `init.from` the trunk comes from that model. Its head comes along where the classes are
    the same, is converted row by row where some are, and is new where none is.

    Raises:
        Misuse: the model to start from is of another architecture, or built another way.
    """
    model = build(recipe.model, manifest.num_classes, keyed(Stream.WEIGHTS, recipe.seed))
    if recipe.init is not None:
        package = open_package(recipe.init.origin, recipe.tracking)
        note = adopt(model, recipe, package, manifest.labels)
        if world.is_first:
            print(note, flush=True)
    return model


def open_package(origin: str, tracking: TrackingSpec) -> Package:
    """Load a model from the registry (`models:/...`), a package folder or a run's folder."""
    if origin.startswith("models:/"):
        with tempfile.TemporaryDirectory(prefix="package-") as folder:
            return load_package(fetch(origin, tracking, Path(folder) / "package"))
    folder = Path(origin)
    return load_package(folder / "package" if (folder / "package").is_dir() else folder)


@torch.no_grad()
def adopt(model: EfficientNet, recipe: Recipe, package: Package, labels: LabelSpace) -> str:
    """Copy a finished model's weights into `model`; returns what became of the head, in words."""
    theirs = package.model.state_dict()
    ours = model.state_dict()
    head = {name for name in ours if name.startswith(HEAD)}
    wrong = [
        name
        for name in ours
        if name not in head and (name not in theirs or theirs[name].shape != ours[name].shape)
    ]
    if wrong:
        raise Misuse(
            f"field 'init.from' is '{recipe.init and recipe.init.origin}': a "
            f"{package.spec.name} does not fit model.name={recipe.model.name} "
            f"({len(wrong)} tensors, the first is {wrong[0]}); name the same model"
        )
    _check_built_alike(recipe, package)
    model.load_state_dict({n: t for n, t in theirs.items() if n not in head}, strict=False)
    converted = convert(labels, package.labels)
    rows = [row for row, position in enumerate(converted.positions) if position >= 0]
    for name in head:
        for row in rows:
            ours[name][row] = theirs[name][converted.positions[row]]
    note = (
        f"starting from {recipe.init and recipe.init.origin}: head rows of {len(rows)} of "
        f"{len(labels)} classes taken over"
    )
    return note + (f", new are {_list(converted.missing)}" if converted.missing else "")


def _list(classes: tuple[str, ...]) -> str:
    more = len(classes) - NAMED
    return ", ".join(classes[:NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _check_built_alike(recipe: Recipe, package: Package) -> None:
    """Refuse weights that fit but mean something else: made for another padding or epsilon."""
    for name in ("padding", "bn_eps"):
        ours, theirs = getattr(recipe.model, name), getattr(package.spec, name)
        if ours != theirs:
            raise Misuse(
                f"field 'model.{name}' is {ours!r}, but the model of field 'init.from' "
                f"({recipe.init and recipe.init.origin}) has {theirs!r}; set model.{name}={theirs}"
            )
