"""What a build leaves on record: the manifest, every image with a reason, the shards for timm.

Nothing here depends on when, where or with how many workers the shards were made.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np

from data_prep.catalogue import Note
from data_prep.clean import REJECTED, REPAIRED
from data_prep.layouts.imagenet21k import NUM_EVAL
from data_prep.options import TOOL, BuildSpec
from data_prep.population import EVAL, TRAIN
from data_prep.tar import printable
from data_prep.write import Work
from pipeline.data.manifest import INFO, REJECTS, Holdout, Manifest, Notes, Shard, Split
from pipeline.run.files import sync_folder, write_atomically

FATES = ("rejected", "dropped", "repaired", "noted")
"""What may be said of an image, in this order; field `what` of rejects.jsonl."""


class Origin(NamedTuple):
    """Where the images came from, as far as it does not depend on the machine."""

    sources: tuple[str, ...]
    """The names of the folders and archives, without what leads there."""
    refused: Iterable[Note]
    """Files that were no images to begin with; read once, when rejects.jsonl is written."""
    has_eval_source: bool = False


def write_record(
    out: Path, spec: BuildSpec, origin: Origin, work: Work, shards: Mapping[str, Sequence[Shard]]
) -> Manifest:
    """Write rejects.jsonl and _info.json; return the manifest that names them, still unwritten."""
    splits = {
        split: Split(shards=tuple(its), class_counts=work.arranged.class_counts(split))
        for split, its in shards.items()
    }
    before, after = _num_bytes(work)
    fates, rejects_sha256 = _write_rejects(out, origin, work)
    return Manifest(
        name=spec.name,
        tool=TOOL,
        sources=origin.sources,
        layout=spec.layout,
        seed=spec.seed,
        holdouts={name: _holdout(spec, origin, name) for name in splits if name != TRAIN},
        clean=spec.clean.model_dump(mode="json"),
        transcode=spec.transcode.model_dump(mode="json"),
        against=tuple(f"{other.manifest}:{','.join(other.splits)}" for other in spec.against),
        labels=work.arranged.labels,
        splits=splits,
        rejected=fates["rejected"],
        repaired=fates["repaired"],
        noted=fates["noted"],
        dropped=fates["dropped"],
        merged_duplicates=work.arranged.merged,
        leaks=work.arranged.leaks,
        eval_twins=work.arranged.eval_twins,
        bytes_before=before,
        bytes_after=after,
        rejects_sha256=rejects_sha256,
        info_sha256=write_info(out, splits),
    )


def write_info(out: Path, splits: Mapping[str, Split]) -> str:
    """Write _info.json, by which timm's webdataset reader finds the shards; returns its sha256."""
    values = {
        name: {
            "name": name,
            "num_samples": split.num_samples,
            "filenames": [shard.file for shard in split.shards],
            "shard_lengths": [shard.num_samples for shard in split.shards],
        }
        for name, split in splits.items()
    }
    text = json.dumps({"splits": values}, indent=2) + "\n"
    write_atomically(out / INFO, text)
    return hashlib.sha256(text.encode()).hexdigest()


def _holdout(spec: BuildSpec, origin: Origin, split: str) -> Holdout:
    hold = spec.holdouts.get(split)
    if hold is None:
        if spec.layout == "imagenet21k_p":
            return Holdout(rule="first", value=NUM_EVAL)
        if spec.layout != "folders":
            return Holdout(rule="official")
        return Holdout(rule="source" if origin.has_eval_source and split == EVAL else "folders")
    if hold.fraction is not None:
        return Holdout(rule="fraction", value=hold.fraction, seed=spec.seed)
    if hold.count is not None:
        return Holdout(rule="count", value=hold.count, seed=spec.seed)
    assert hold.first is not None
    return Holdout(rule="first", value=hold.first)


def _num_bytes(work: Work) -> tuple[int, int]:
    """Return the bytes of the images of all splits, in the sources and as stored."""
    before = after = 0
    for split in work.arranged.splits:
        rows = work.arranged.order(split)
        before += int(work.population.rows["size"][rows].sum(dtype=np.int64))
        after += int(work.checked.verdicts["size"][rows].sum(dtype=np.int64))
    return before, after


def _write_rejects(out: Path, origin: Origin, work: Work) -> tuple[dict[str, Notes], str]:
    """Write a line for each image with a reason; returns them by fate, and the file's sha256."""
    path, temporary = out / REJECTS, out / f".{REJECTS}.tmp"
    found = {}
    with temporary.open("w", encoding="ascii") as file:
        for what in FATES:
            found[what] = Notes.of(_write_lines(file, what, _notes(what, origin, work)))
        file.flush()
        os.fsync(file.fileno())
    with temporary.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    temporary.replace(path)
    sync_folder(out)
    return found, sha256


def _write_lines(file: TextIO, what: str, notes: Iterable[Note]) -> Iterator[Note]:
    for note in notes:
        shown = note._replace(file=printable(note.file), reason=printable(note.reason))
        file.write(json.dumps({"what": what, **shown._asdict()}) + "\n")
        yield shown


def _notes(what: str, origin: Origin, work: Work) -> Iterator[Note]:
    """Yield what befell images, in the order of the sources."""
    if what == "rejected":
        yield from origin.refused
        yield from work.population.refused
    if what == "dropped":
        yield from work.arranged.dropped()
        return
    states = work.checked.verdicts["state"]
    for row, kind, reason in work.checked.notes():
        if what == _fate(int(states[row])):
            yield Note(work.population.name(row), kind, reason)
    if what == "noted":
        yield from work.arranged.noted()


def _fate(state: int) -> str:
    return {REJECTED: "rejected", REPAIRED: "repaired"}.get(state, "noted")
