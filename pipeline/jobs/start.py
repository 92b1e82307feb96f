"""The first weights of a training: drawn from the seed, or taken from a finished model."""

import tempfile
from pathlib import Path

import torch

from pipeline.data.labels import LabelSpace, convert
from pipeline.data.manifest import Manifest
from pipeline.export.package import Package, load_package
from pipeline.jobs.elsewhere import Origin, from_elsewhere, is_elsewhere
from pipeline.models.network import Network, build_network
from pipeline.parallel.world import World
from pipeline.plan.draws import Stream, keyed
from pipeline.recipe import Recipe
from pipeline.spec import Misuse
from pipeline.tracking.registry import fetch
from pipeline.tracking.settings import TrackingSpec

HEAD = "classifier."
NAMED = 10
"""So many classes that a head lacks are named."""


def first_weights(recipe: Recipe, manifest: Manifest, world: World) -> Network:
    """Build the model; every rank gets the same weights.

    With `init.from` the trunk comes from that model. Its head comes along where the classes are
    the same, is converted row by row where some are, and is new where none is or where the
    classes of weights from elsewhere are not named.

    Raises:
        Misuse: the model to start from is of another architecture, or built another way.
    """
    model = build_network(recipe.model, manifest.num_classes, keyed(Stream.WEIGHTS, recipe.seed))
    if recipe.init is not None:
        origin = find_origin(recipe.init.origin, recipe)
        note = adopt(model, recipe, origin, manifest.labels)
        if world.is_first:
            print(note, flush=True)
    return model


def find_origin(name: str, recipe: Recipe) -> Origin:
    """Load what `init.from` names: weights from elsewhere, or what `open_package` opens."""
    if is_elsewhere(name):
        return from_elsewhere(name, recipe.model)
    return of_package(name, open_package(name, recipe.tracking))


def of_package(name: str, package: Package) -> Origin:
    """Return a package as a place to start from."""
    state, labels = package.model.state_dict(), package.labels
    return Origin(name, package.spec, state, len(labels), labels)


def open_package(origin: str, tracking: TrackingSpec) -> Package:
    """Load a model from the registry (`models:/...`), a package folder or a run's folder.

    Raises:
        Misuse: there is none, or `origin` names weights from elsewhere, which are no package.
    """
    if origin.startswith("models:/"):
        with tempfile.TemporaryDirectory(prefix="package-") as folder:
            return load_package(fetch(origin, tracking, Path(folder) / "package"))
    if is_elsewhere(origin):
        raise Misuse(
            f"'{origin}': weights from elsewhere come without preprocessing; make a package of "
            f"them first: python -m pipeline port CONFIG --to FOLDER init={origin}"
        )
    folder = Path(origin)
    return load_package(folder / "package" if (folder / "package").is_dir() else folder)


@torch.no_grad()
def adopt(model: Network, recipe: Recipe, origin: Origin, labels: LabelSpace) -> str:
    """Copy a finished model's weights into `model`; returns what became of the head, in words.

    Raises:
        Misuse: they are of another architecture, or made for another padding or epsilon.
    """
    ours, theirs = model.state_dict(), origin.state
    head = {name for name in ours if name.startswith(HEAD)}
    wrong = [
        name
        for name in ours
        if name not in head and (name not in theirs or theirs[name].shape != ours[name].shape)
    ]
    if wrong:
        raise Misuse(
            f"field 'init.from' is '{origin.name}': a {origin.spec.name} does not fit "
            f"model.name={recipe.model.name} ({len(wrong)} tensors, the first is {wrong[0]}); "
            "name the same model"
        )
    _check_built_alike(recipe, origin)
    model.load_state_dict({n: t for n, t in theirs.items() if n not in head}, strict=False)
    if origin.labels is None:
        return (
            f"starting from {origin.name}: its head of {origin.num_classes:,} classes is left out; "
            "to convert it, name their label space behind an @ (docs/weights.md)"
        )
    converted = convert(labels, origin.labels)
    rows = [row for row, position in enumerate(converted.positions) if position >= 0]
    for name in head:
        for row in rows:
            ours[name][row] = theirs[name][converted.positions[row]]
    note = (
        f"starting from {origin.name}: head rows of {len(rows)} of {len(labels)} classes taken over"
    )
    return note + (f", new are {_list(converted.missing)}" if converted.missing else "")


def _list(classes: tuple[str, ...]) -> str:
    more = len(classes) - NAMED
    return ", ".join(classes[:NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _check_built_alike(recipe: Recipe, origin: Origin) -> None:
    """Refuse weights that fit but mean something else: made for another padding or epsilon."""
    wrong = {
        field: getattr(origin.spec, field)
        for field in ("padding", "bn_eps")
        if getattr(origin.spec, field) != getattr(recipe.model, field)
    }
    for field, theirs in wrong.items():
        remedy = " ".join(f"model.{name}={value}" for name, value in wrong.items())
        raise Misuse(
            f"field 'model.{field}' is {getattr(recipe.model, field)!r}, but the model of field "
            f"'init.from' ({origin.name}) has {theirs!r}; set {remedy}"
        )
