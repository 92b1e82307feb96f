"""The five stages of a build. Each reads what the one before left in the work folder.

list      sources -> catalogue -> layout -> population
check     every image judged, cleaned, transcoded            element k of K: chunks k, k + K, ...
arrange   duplicates, holdouts, order, shards
write     OUT/SPLIT/shard-000000.tar and its index           element k of K: shards k, k + K, ...
finish    rejects.jsonl, _info.json, and manifest.json last; the work folder goes
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.against import open_other
from data_prep.arrange import Arranged, arrange
from data_prep.catalogue import Catalogue, Reader
from data_prep.checking import check_chunks, load_checked
from data_prep.columns import is_whole
from data_prep.failure import naming_full_disk
from data_prep.holdout import check_holdouts, in_order, per_class
from data_prep.layouts import LAYOUTS, LayoutOptions
from data_prep.options import BuildSpec
from data_prep.population import TRAIN, LabelChoice, Population, write_population
from data_prep.record import Origin, write_record
from data_prep.room import check_room
from data_prep.shards import collect_shards, write_shards
from data_prep.sources import SPOOLS, Source, write_catalogue
from data_prep.spool import are_whole
from data_prep.tar import printable
from data_prep.write import Work
from pipeline.data.labels import published
from pipeline.data.manifest import save_manifest
from pipeline.run.files import read_json, write_json
from pipeline.spec import Misuse

WORK = ".build"
"""Folder inside OUT for the locks, and for what an unfinished build knows."""
EVAL_PREFIX = "eval/"
"""Goes before the names of what lies in a source of its own for eval."""

_LISTED = "listed.json"
_LIST_BYTES = 3 << 30
"""What the lists of 14 million images take; those of others much less."""
_RECORD_BYTES = 16 << 20

Element = tuple[int, int]
WHOLE: Element = (0, 1)


@dataclass(frozen=True)
class Job:
    """Where the images are, where the shards go, and how."""

    sources: tuple[Source, ...]
    """The first one holds train; a second one all of eval, with EVAL_PREFIX."""
    out: Path
    spec: BuildSpec
    workers: int = 1
    scratch: Path | None = None
    """A disk for what is only needed until the shards are written; None: OUT itself."""

    @property
    def work(self) -> Path:
        """Return the folder for what an unfinished build knows."""
        if self.scratch is None:
            return self.out / WORK
        place = hashlib.sha256(str(self.out.resolve()).encode()).hexdigest()
        return self.scratch / f"{self.out.resolve().name}-{place[:12]}"


def list_images(job: Job, plan: str) -> None:
    """Find all images and their classes; what was found from the same `plan` (digest) is kept.

    Raises:
        Misuse: an archive is missing, wrong or damaged, or an option does not fit the images.
        Failed: the disk has too little room.
    """
    for against in job.spec.against:
        open_other(against, job.spec)
    listed = job.work / _LISTED
    if read_json(listed) == {"plan": plan} and _is_there(job.work):
        population = Population(job.work / "population")
    else:
        listed.unlink(missing_ok=True)
        with naming_full_disk(job.work, _LIST_BYTES):
            population = _list(job)
        write_json(listed, {"plan": plan})
    with _listing_again_if_refused(job):
        _check_choices(job, population)
    num_bytes = int(population.rows["size"].sum(dtype=np.int64))
    check_room(job.out, job.work, job.spec, num_bytes, len(population))
    print(
        f"list: {len(population):,} images in {' and '.join(population.splits)}, "
        f"{len(population.classes):,} classes, {num_bytes / 1e9:,.3f} GB"
    )


def check_images(job: Job, element: Element = WHOLE) -> None:
    """Judge every image of the chunks of an element.

    Raises:
        Misuse: the images are not listed yet.
        Failed: a worker died, the disk is full, or an archive cannot be read.
    """
    population = Population(job.work / "population")
    check_chunks(population, job.spec, job.work, job.workers, element)


def arrange_images(job: Job) -> None:
    """Decide which image goes where.

    Raises:
        Misuse: not all images are checked, or a choice leaves a class or a split empty.
    """
    population = Population(job.work / "population")
    with _listing_again_if_refused(job), naming_full_disk(job.work, 8 * len(population)):
        arrange(population, load_checked(population, job.work), job.spec, job.work)


def write_images(job: Job, element: Element = WHOLE) -> None:
    """Write the shards of an element.

    Raises:
        Misuse: the images are not arranged yet.
        Failed: the disk is full, a worker died, or a source changed on the way.
    """
    work = _open(job)
    write_shards(job.out, job.work, work.arranged, work.checked, job.workers, element)


def finish(job: Job) -> None:
    """Write what stands above the shards; the manifest makes the folder a data set.

    Raises:
        Misuse: a shard is not written yet.
        Failed: one is gone since.
    """
    work = _open(job)
    shards = collect_shards(job.out, job.work, work.arranged, work.checked)
    origin = Origin(
        sources=tuple(printable(source.path.resolve().name) for source in job.sources),
        refused=Catalogue(job.work / "catalogue").refused,
        has_eval_source=len(job.sources) > 1,
    )
    with naming_full_disk(job.out, _RECORD_BYTES):
        manifest = write_record(job.out, job.spec, origin, work, shards)
        save_manifest(job.out, manifest)


ELEMENTS: dict[str, Callable[[Job, Element], None]] = {"check": check_images, "write": write_images}
"""Stages that elements of an array may share."""


def _list(job: Job) -> Population:
    spec, prefix = job.spec, job.sources[1].prefix if len(job.sources) > 1 else ""
    catalogue = write_catalogue(job.sources, job.work, spec.seed, job.workers)
    options = LayoutOptions(
        splits=spec.splits,
        eval_labels=spec.eval_labels,
        eval_prefix=prefix,
        classes=spec.classes,
        label_space=spec.label_space,
    )
    space = published(spec.label_space) if spec.label_space else None
    reader = Reader(catalogue.containers)
    try:
        placed = LAYOUTS[spec.layout](catalogue, reader, options)
        choice = LabelChoice(space, tuple(sorted(spec.classes)), spec.names or {})
        return write_population(job.work / "population", placed, catalogue.containers, choice)
    finally:
        reader.close()


@contextlib.contextmanager
def _listing_again_if_refused(job: Job) -> Iterator[None]:
    """Forget the list of a folder that was refused: the remedy may be another file in it."""
    try:
        yield
    except Misuse:
        if any(source.path.is_dir() for source in job.sources):
            (job.work / _LISTED).unlink(missing_ok=True)
        raise


def _check_choices(job: Job, population: Population) -> None:
    """Refuse now what would be refused when all images are checked, hours later.

    Raises:
        Misuse: a split is asked for twice, a class has no file, or a holdout would take nothing.
    """
    spec = job.spec
    check_holdouts(spec.holdouts, population.splits)
    counts = _num_train(population)
    if not counts.all() and not (spec.allow_empty or spec.label_space):
        empty = population.classes[int(np.argmin(counts))]
        source = job.sources[0].path
        where = source / empty if (source / empty).is_dir() else source
        raise Misuse(
            f"{where}: class '{empty}' has no usable image to train on "
            f"({np.count_nonzero(counts == 0)} such classes); add images or remove its folder, or "
            "keep the class in the label space with --allow-empty"
        )
    for split, hold in in_order(spec.holdouts):
        if not per_class(hold, counts, counts).any():
            raise Misuse(
                f"--holdout for {split}: it takes none of {int(counts.sum())} images without "
                "emptying a class; raise it, or leave it away"
            )


def _num_train(population: Population) -> np.ndarray:
    """Return the files of train of each class."""
    classes = population.rows["cls"]
    if TRAIN in population.splits:
        classes = classes[population.rows["split"] == population.splits.index(TRAIN)]
    else:
        classes = classes[:0]
    return np.bincount(classes, minlength=len(population.classes))


def _is_there(work: Path) -> bool:
    """Tell whether what was listed is still there; a scratch gets swept."""
    if not (is_whole(work / "catalogue") and is_whole(work / "population")):
        return False
    containers = Population(work / "population").containers
    there = all(Path(container["path"]).exists() for container in containers)
    return there and are_whole(containers, work / SPOOLS)


def _open(job: Job) -> Work:
    population = Population(job.work / "population")
    return Work(population, load_checked(population, job.work), Arranged(job.work))
