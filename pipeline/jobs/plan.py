"""`pipeline plan`: print what a config means and what it would cost, before there is anything."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from pipeline.data.manifest import Manifest
from pipeline.data.places import is_url
from pipeline.jobs.look import look, num_train
from pipeline.jobs.prepare import IMAGENET_CLASSES, num_classes, plan_text
from pipeline.models.table import ModelSpec
from pipeline.plan.cost import Cluster
from pipeline.plan.estimate import Job, estimate
from pipeline.plan.estimate_text import estimate_text, scale_text
from pipeline.plan.plan import Plan
from pipeline.plan.rates import CARDS, Rate, card_named
from pipeline.plan.scaling import parse_range, scale, world_for
from pipeline.recipe import Recipe, load_recipe
from pipeline.run.files import write_atomically
from pipeline.run.folder import DONE
from pipeline.spec import Failure, Misuse, Spec, load

GPUS_PER_NODE, NETWORK_GBIT = 8, 400.0
"""Of a node, unless told."""


@dataclass(frozen=True)
class Hardware:
    """What `plan` is asked to plan for: the command line's options, None where not given."""

    gpu: str | None = None
    nodes: int | None = None
    gpus_per_node: int | None = None
    network_gbit: float | None = None
    rates: Path | None = None
    scale: str | None = None
    plot: Path | None = None


@dataclass(frozen=True)
class Measuring:
    """What `--measure` tries: for how many ranks, in how much memory (None: what is here)."""

    ranks: int = 1
    memory_gib: float | None = None


class OwnRate(Spec):
    """A rate that somebody measured: images/s of one card in training, by model and size."""

    gpu: str
    model: str
    px: int = Field(gt=0)
    bits: Literal[16, 32] = 16
    images_s: float = Field(gt=0)
    source: str = Field(min_length=1)

    @field_validator("gpu")
    @classmethod
    def _known(cls, gpu: str) -> str:
        if gpu not in CARDS:
            raise ValueError(f"no such card; there are {', '.join(CARDS)}")
        return gpu


class OwnRates(Spec):
    """The file of `--rates`."""

    rates: tuple[OwnRate, ...] = Field(min_length=1)


def plan(
    config: Path,
    overrides: Sequence[str],
    hardware: Hardware | None = None,
    measuring: Measuring | None = None,
) -> int:
    """Print the plan of a config, and with `hardware.gpu` what it costs there.

    Without the shards, the data card's counts are used. With `measuring` the micro-batches that
    fit into this node are found by trial and printed as a piece of config.

    Raises:
        Misuse: the config or the hardware does not make sense, or no micro-batch fits.
        Failure: the picture cannot be written.
    """
    hardware = hardware or Hardware()
    _check(hardware)
    recipe = load_recipe(config, overrides)
    found = look(recipe)
    planned = recipe.plan(num_train(recipe, found))
    if found.missing and is_url(recipe.data.path):
        print(f"note: {found.missing}; the data card's counts are used", file=sys.stderr)
    print(plan_text(recipe, planned, found.manifest))
    if hardware.gpu is not None:
        _print_cost(recipe, planned, found.manifest, hardware)
    if measuring is not None:
        _print_measured(recipe, found.manifest, measuring)
    return DONE


def own_rates(path: Path) -> tuple[Rate, ...]:
    """Read a file of measured rates.

    Raises:
        Misuse: a row is wrong; names file, field, value and what is expected.
    """
    from pipeline.jobs.work import work_at

    rows = OwnRates.parse(load(path), str(path)).rates
    found = []
    for row in rows:
        model = ModelSpec.parse({"name": row.model}, str(path))
        work = work_at(model, IMAGENET_CLASSES)(row.px)
        costs = (row.images_s, work.macs / 1e9, work.elements / 1e6)
        found.append(Rate(row.gpu, row.model, row.px, row.bits, *costs, row.source, "measured"))
    return tuple(found)


def _check(hardware: Hardware) -> None:
    """Refuse options that contradict each other or mean nothing."""
    given = {
        "--nodes": hardware.nodes,
        "--gpus-per-node": hardware.gpus_per_node,
        "--network-gbit": hardware.network_gbit,
        "--scale": hardware.scale,
        "--rates": hardware.rates,
        "--plot": hardware.plot,
    }
    asked = [name for name, value in given.items() if value is not None]
    if hardware.gpu is None and asked:
        raise Misuse(f"{asked[0]} needs --gpu, one of {', '.join(CARDS)}")
    if hardware.plot is not None and hardware.scale is None:
        raise Misuse("--plot draws the curve of --scale; add --scale 1..512")
    if hardware.nodes is not None and hardware.scale is not None:
        raise Misuse("--nodes and --scale: one is a cluster, the other a range; give one of them")
    counts = {"--nodes": hardware.nodes, "--gpus-per-node": hardware.gpus_per_node}
    for name, count in counts.items():
        if count is not None and not 1 <= count <= 65_536:
            raise Misuse(f"{name} is {count}: expected 1 to 65536")
    gbit = hardware.network_gbit
    if gbit is not None and not 0 < gbit < 1e6:
        raise Misuse(f"--network-gbit is {gbit:g}: expected Gbit/s of a node, 400")
    if hardware.gpu is not None:
        card_named(hardware.gpu)
    if hardware.scale is not None:
        parse_range(hardware.scale)


def _print_cost(
    recipe: Recipe, planned: Plan, manifest: Manifest | None, hardware: Hardware
) -> None:
    from pipeline.jobs.work import job_of

    job = job_of(recipe, planned, manifest, own_rates(hardware.rates) if hardware.rates else ())
    assert hardware.gpu is not None
    per_node, gbit = hardware.gpus_per_node or GPUS_PER_NODE, hardware.network_gbit or NETWORK_GBIT
    cluster = Cluster(hardware.gpu.lower(), hardware.nodes or 1, per_node, gbit)
    if hardware.scale is None:
        world = world_for(planned, cluster.capacity, recipe.model.bn_group)
        print(estimate_text(job, estimate(job, cluster, world)))
    else:
        _print_scaling(recipe.name, job, cluster, hardware.scale, hardware.plot)


def _print_measured(recipe: Recipe, manifest: Manifest | None, measuring: Measuring) -> None:
    from pipeline.jobs.measure import measure

    if measuring.ranks < 1:
        raise Misuse(f"--ranks is {measuring.ranks}: expected 1 or more")
    print(measure(recipe, num_classes(recipe, manifest), measuring.ranks, measuring.memory_gib))


def _print_scaling(name: str, job: Job, cluster: Cluster, text: str, picture: Path | None) -> None:
    points = scale(job, cluster, *parse_range(text))
    print(scale_text(job, points))
    if picture is not None:
        from pipeline.jobs.scaling_plot import plot as draw

        try:
            picture.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(picture, draw(points, f"{name} on {cluster.card.title}"))
        except OSError as error:
            raise Failure(
                f"--plot {picture}: {error.strerror}; name a file that can be written"
            ) from error
        print(f"drawn into {picture}")
