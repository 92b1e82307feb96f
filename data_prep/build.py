"""`build`: archives to a folder of shards, in stages that can be interrupted anywhere.

OUT/build.json says from what and how the folder is built; the work folder keeps what is done until
the manifest, which comes last, makes the folder a data set.
"""

import contextlib
import shutil
from pathlib import Path

from data_prep import stages
from data_prep.build_command import STAGES
from data_prep.layouts import LAYOUTS
from data_prep.locks import one_of_many, only_one
from data_prep.plan import (
    PLAN,
    State,
    begin,
    check_begun,
    check_same,
    digest_of,
    make_plan,
    state_of,
)
from data_prep.room import check_sources_room
from data_prep.stages import WHOLE, WORK, Element, Job
from data_prep.transcode import check_encoder
from pipeline.data.labels import published
from pipeline.data.manifest import FILE, Manifest, load_manifest
from pipeline.spec import Misuse


def build(job: Job) -> Manifest:
    """Build the shards, or go on where an interrupted build stopped.

    Raises:
        Misuse: a source is no data set, choices conflict, or OUT holds something else.
        Failed: the disk is full, a worker died, or a source changed on the way.
    """
    check_job(job)
    if not _is_finished(job):
        _make_folders(job)
        with only_one(job.out / WORK):
            for stage in STAGES if not _is_finished(job) else ():
                _run_stage(job, stage, WHOLE)
    _clear(job)
    return load_manifest(job.out)


def run_stage(job: Job, stage: str, element: Element = WHOLE) -> bool:
    """Run one stage, or element (k, K) of it; returns whether the data set is finished.

    Raises:
        Misuse: as `build`; also: a stage before is not done, or this one has no elements.
        Failed: as `build`.
    """
    if element != WHOLE and stage not in stages.ELEMENTS:
        raise Misuse(
            f"--element {element[0]}/{element[1]}: stage {stage} is one piece; only "
            f"{' and '.join(stages.ELEMENTS)} are shared by the elements of an array"
        )
    check_job(job)
    if not _is_finished(job):
        _make_folders(job)
        folder = job.out / WORK
        with only_one(folder) if element == WHOLE else one_of_many(folder, stage, element):
            if not _is_finished(job):
                _run_stage(job, stage, element)
        if not _is_finished(job):
            return False
    _clear(job)
    return True


def check_job(job: Job) -> None:
    """Refuse, before any work, what cannot become shards; nothing is written.

    Raises:
        Misuse: a source is missing, OUT is taken or lies in a source, options do not fit.
    """
    out = job.out
    if job.spec.layout not in LAYOUTS:
        raise Misuse(f"--layout '{job.spec.layout}' is unknown; there are: {', '.join(LAYOUTS)}")
    if job.spec.label_space:
        published(job.spec.label_space)
    check_encoder(job.spec.transcode)
    if out.exists() and not out.is_dir():
        raise Misuse(f"{out}: is a file; OUT must be a new or empty folder")
    if out.is_dir() and any(out.iterdir()) and not _is_begun(out):
        raise Misuse(f"{out}: not empty, and not an unfinished build; choose another OUT")
    for source in job.sources:
        if not source.path.exists():
            raise Misuse(f"{source.path}: no such folder or archive; give the images to build from")
        for folder in (out, job.work):
            if folder.resolve().is_relative_to(source.path.resolve()):
                raise Misuse(
                    f"{folder}: lies inside the source {source.path}; choose OUT (and --scratch) "
                    "outside of it"
                )


def dry_run(job: Job) -> str:
    """Check a job as far as that goes without reading an archive; returns what would be done.

    Raises:
        Misuse: as `check_job`; also: OUT holds shards of another build.
        Failed: the disk has too little room for the archives.
    """
    check_job(job)
    states, plan = _plan(job)
    check_same(job.out, plan)
    done = "is finished already" if (job.out / FILE).exists() else "would be built"
    num_bytes = sum(state.num_bytes for state in states)
    return f"{job.out}: {done}, layout {job.spec.layout}, from {num_bytes / 1e9:,.3f} GB"


def _run_stage(job: Job, stage: str, element: Element) -> None:
    if stage == "list":
        stages.list_images(job, _begin(job))
        return
    sources = [source.path for source in job.sources]
    states = [state_of(path) if path.is_file() else State("", 0) for path in sources]
    check_begun(job.out, make_plan(job.sources, job.spec, states))
    if stage in stages.ELEMENTS:
        stages.ELEMENTS[stage](job, element)
    elif stage == "arrange":
        stages.arrange_images(job)
    else:
        stages.finish(job)


def _begin(job: Job) -> str:
    """Write build.json and make the work folder; returns the digest of the plan."""
    _, plan = _plan(job)
    begin(job.out, plan)
    return digest_of(plan)


def _make_folders(job: Job) -> None:
    for folder, option in ((job.out, "OUT"), (job.work, "--scratch")):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Misuse(
                f"{folder}: no folder can be made there ({error.strerror}); choose another {option}"
            ) from None


def _plan(job: Job) -> tuple[list[State], dict[str, object]]:
    states = [state_of(source.path) for source in job.sources]
    check_sources_room(job.out, job.work, job.spec, job.sources, states)
    return states, make_plan(job.sources, job.spec, states)


def _is_begun(out: Path) -> bool:
    return (out / PLAN).exists() or (out / WORK).exists()


def _is_finished(job: Job) -> bool:
    """Tell whether this build is done; refuse where OUT is finished from something else."""
    if not (job.out / FILE).exists():
        return False
    states = [state_of(source.path) for source in job.sources]
    check_same(job.out, make_plan(job.sources, job.spec, states))
    return True


def _clear(job: Job) -> None:
    """Remove what is not part of the data set, a killed build's half-written files with it."""
    for folder in {job.work, job.out / WORK}:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
    for pattern in (".*.tmp", "*/.*.tmp"):
        for file in job.out.glob(pattern):
            file.unlink(missing_ok=True)
