"""What a build leaves on record: the manifest, and every rejected file with its reason."""

import json
from pathlib import Path

import numpy as np

from data_prep.archive import printable
from data_prep.classes import EVAL, TRAIN
from data_prep.clean import REJECTED
from data_prep.layout import Layout, Source
from data_prep.options import TOOL, BuildSpec
from pipeline.data.manifest import Holdout, Manifest, Notes, Shard, Split
from pipeline.run.files import write_atomically

REJECTS = "rejects.jsonl"


def make_manifest(
    spec: BuildSpec, sources: list[Source], layout: Layout, shards: dict[str, list[Shard]]
) -> Manifest:
    """Put together what is known of a finished build."""
    splits = {}
    for split in sorted(shards, key=lambda name: (name != TRAIN, name)):
        labels = [label for its in layout.splits[split].labels for label in its]
        counts = np.bincount(labels, minlength=len(layout.labels)).tolist()
        splits[split] = Split(shards=tuple(shards[split]), class_counts=tuple(counts))
    repaired = [
        (printable(source.listing.places[row].name), kind, reason)
        for source in sources
        for row, kind, reason in source.checked.notes
        if source.checked.verdicts["state"][row] != REJECTED
    ]
    return Manifest(
        name=spec.name,
        tool=TOOL,
        sources=tuple(source.listing.root.name for source in sources),
        seed=spec.seed,
        holdout=_holdout(spec, len(sources), splits),
        labels=layout.labels,
        splits=splits,
        rejected=Notes.of(_rejects(sources)),
        repaired=Notes.of(repaired),
        merged_duplicates=layout.num_merged,
        eval_twins=layout.num_twins,
    )


def _holdout(spec: BuildSpec, num_sources: int, splits: dict[str, Split]) -> Holdout:
    if num_sources > 1:
        return Holdout(rule="source")
    if spec.holdout:
        return Holdout(rule="fraction", fraction=spec.holdout)
    return Holdout(rule="folders" if EVAL in splits else "none")


def _rejects(sources: list[Source]) -> list[tuple[str, str, str]]:
    found: list[tuple[str, str, str]] = []
    for source in sources:
        found += source.listing.refused + source.placed.refused
        states = source.checked.verdicts["state"]
        for row, kind, reason in source.checked.notes:
            if states[row] == REJECTED:
                found.append((printable(source.listing.places[row].name), kind, reason))
    return found


def write_rejects(out: Path, sources: list[Source]) -> None:
    """Write one line of JSON for each file that was left out."""
    lines = [
        json.dumps({"file": file, "kind": kind, "reason": reason}) + "\n"
        for file, kind, reason in _rejects(sources)
    ]
    write_atomically(out / REJECTS, "".join(lines))
