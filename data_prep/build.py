"""`build`: raw images to a folder of shards, in five steps that can be interrupted anywhere.

    list the sources > check every image > lay out splits and shards > write shards > manifest

OUT/build.json says from what and how the folder is built; OUT/.build keeps what is done until the
manifest, which comes last, makes the folder a data set.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.checking import check_all
from data_prep.classes import TRAIN, check_classes, place, select
from data_prep.layout import Source, lay_out
from data_prep.options import TOOL, BuildSpec
from data_prep.record import make_manifest, write_rejects
from data_prep.shards import write_shards
from data_prep.sources import Listing, fingerprint, list_source
from data_prep.write import WORK
from pipeline.data.manifest import FILE, Manifest, load_manifest, save_manifest
from pipeline.run.files import read_json, write_json
from pipeline.spec import Misuse, differences


@dataclass(frozen=True)
class Job:
    """Where the images are, where the shards go, and how."""

    source: Path
    eval_source: Path | None
    out: Path
    spec: BuildSpec
    workers: int

    @property
    def work(self) -> Path:
        return self.out / WORK

    @property
    def inputs(self) -> list[Path]:
        return [path for path in (self.source, self.eval_source) if path is not None]


def build(job: Job) -> Manifest:
    """Build the shards, or go on where an interrupted build stopped.

    Raises:
        Misuse: the source is no data set, choices conflict, or OUT holds something else.
        Failed: the disk is full, a worker died, or a source changed on the way.
    """
    _check_paths(job)
    with _only_one(job):
        trees = {path: list_source(path, job.work) for path in job.inputs if path.is_dir()}
        finished = _is_finished(job, trees)
        manifest = load_manifest(job.out) if finished else _build(job, trees)
        shutil.rmtree(job.work)
    return manifest


def _build(job: Job, trees: dict[Path, Listing]) -> Manifest:
    listings = [trees.get(path) or list_source(path, job.work) for path in job.inputs]
    sources = _place(job, listings)
    for number, source in enumerate(sources):
        source.checked = check_all(source.listing, job.work / f"check-{number}", job.workers)
    layout = lay_out(sources, job.spec)
    shards = write_shards(job.out, sources, layout, job.spec, job.workers)
    manifest = make_manifest(job.spec, sources, layout, shards)
    write_rejects(job.out, sources)
    save_manifest(job.out, manifest)
    return manifest


def _check_paths(job: Job) -> None:
    out = job.out
    if out.exists() and not out.is_dir():
        raise Misuse(f"{out}: is a file; OUT must be a new or empty folder")
    begun = (out / "build.json").exists() or job.work.exists()
    if out.is_dir() and any(out.iterdir()) and not begun:
        raise Misuse(f"{out}: not empty, and not an unfinished build; choose another OUT")
    for source in job.inputs:
        if not source.exists():
            raise Misuse(f"{source}: no such folder or tar; give the images to build from")
        if out.resolve().is_relative_to(source.resolve()):
            raise Misuse(f"{out}: lies inside the source {source}; choose OUT outside of it")


@contextlib.contextmanager
def _only_one(job: Job) -> Iterator[None]:
    """Keep a second build out of the same folder."""
    job.work.mkdir(parents=True, exist_ok=True)
    handle = os.open(job.work / "lock", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Misuse(
                f"{job.out}: another build writes there; wait for it, or choose another OUT"
            ) from None
        yield
    finally:
        os.close(handle)


def _is_finished(job: Job, trees: dict[Path, Listing]) -> bool:
    """Tell whether this build is done; refuse where the folder was filled from something else."""
    plan = {
        "tool": TOOL,
        "sources": [str(path.resolve()) for path in job.inputs],
        "inputs": [trees[p].fingerprint if p in trees else fingerprint(p) for p in job.inputs],
        "options": job.spec.model_dump(mode="json"),
    }
    file = job.out / "build.json"
    begun = read_json(file)
    finished = (job.out / FILE).exists()
    if begun != plan:
        if finished or any(job.out.glob("*/shard-*.tar")):
            what = "\n  ".join(differences(begun or {}, plan))
            raise Misuse(
                f"{file}: this folder was begun with other inputs or options:\n  {what}\n"
                "use the same ones, or choose another OUT (or remove this one)"
            )
        write_json(file, plan)
    return finished


def _place(job: Job, listings: list[Listing]) -> list[Source]:
    spec = job.spec
    placed = [place(listings[0], spec.splits)]
    check_classes(placed[0], spec.classes)
    placed += [place(listing, {}, spec.eval_labels) for listing in listings[1:]]
    sources = [Source(*both) for both in zip(listings, placed, strict=True)]
    for source in sources:
        select(source.listing, source.placed, spec.classes)
    has_eval = any(split != TRAIN for split in placed[0].splits)
    if has_eval + bool(spec.holdout) + (len(sources) > 1) > 1:
        raise Misuse(
            f"{job.source}: the eval split is asked for twice (a test folder in the source, "
            "--holdout, --eval-source): keep one; --split train=FOLDER leaves other folders out"
        )
    return sources
