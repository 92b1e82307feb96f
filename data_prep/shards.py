"""A layout to shards: cut it into tasks, sweep up after a killed build, write over processes."""

import re
import shutil
from pathlib import Path

import numpy as np

from data_prep.archive import printable
from data_prep.failure import Failed, full_disk
from data_prep.layout import Layout, Rows, Source, shard_numbers
from data_prep.options import BuildSpec
from data_prep.pool import Progress, run
from data_prep.write import WORK, ShardTask, write_shard
from pipeline.data.manifest import Shard


def write_shards(
    out: Path, sources: list[Source], layout: Layout, spec: BuildSpec, workers: int
) -> dict[str, list[Shard]]:
    """Write what is not there yet; the records of all shards by split, in order.

    Raises:
        Failed: the disk is full, a worker died, a source changed, or a strange shard lies in OUT.
    """
    tasks = [t for split in layout.splits for t in _tasks(out, sources, layout, split, spec)]
    _sweep(out, {task.file for task in tasks})
    left = sum(int(task.verdicts["size"].sum()) + 1536 * len(task.keys) for task in tasks)
    left -= sum(file.stat().st_size for file in out.glob("*/shard-*.tar"))
    if shutil.disk_usage(out).free < left:
        raise full_disk(out, left)
    shards: dict[str, list[Shard]] = {split: [] for split in layout.splits}
    num_kept = 0
    with Progress("write", "images", sum(len(task.keys) for task in tasks)) as progress:
        for shard, kept in run(write_shard, tasks, workers):
            shards[shard.file.partition("/")[0]].append(shard)
            num_kept += kept
            progress.add(shard.num_samples)
    if num_kept:
        print(f"{num_kept} of {len(tasks)} shards were finished before and kept")
    return {split: sorted(its, key=lambda shard: shard.file) for split, its in shards.items()}


def _sweep(out: Path, expected: set[str]) -> None:
    """Remove what a killed build left half-written; refuse shards of another one."""
    for file in out.glob("*/.shard-*.tmp"):
        file.unlink(missing_ok=True)
    for file in out.glob("*/shard-*.tar"):
        if file.relative_to(out).as_posix() not in expected:
            raise Failed(f"{file}: not a shard of this build; remove it or choose another OUT")


def _tasks(
    out: Path, sources: list[Source], layout: Layout, split: str, spec: BuildSpec
) -> list[ShardTask]:
    rows = layout.splits[split]
    source = sources[rows.source]
    verdicts = source.checked.verdicts[rows.rows]
    numbers = shard_numbers(verdicts["size"], spec)
    ends = np.flatnonzero(np.diff(numbers, append=numbers[-1] + 1)) + 1
    tasks, start = [], 0
    left = int(verdicts["size"].sum())
    for number, end in enumerate(ends.tolist()):
        chosen = np.arange(start, end)
        tasks.append(
            ShardTask(
                out=out,
                file=f"{split}/shard-{number:06d}.tar",
                record=out / WORK / f"{split}-{number:06d}.json",
                root=source.listing.root,
                places=[source.listing.places[row] for row in rows.rows[chosen].tolist()],
                verdicts=verdicts[chosen],
                keys=[_key(source, rows, position) for position in chosen.tolist()],
                labels=[rows.labels[position] for position in chosen.tolist()],
                classes=[_several(layout, rows.labels[p]) for p in chosen.tolist()],
                left_bytes=left,
            )
        )
        left -= int(verdicts["size"][chosen].sum())
        start = end
    return tasks


def _key(source: Source, rows: Rows, position: int) -> str:
    """Return a key that is unique in the split and tells the file: 00000017-cat-0001."""
    name = printable(source.listing.places[int(rows.rows[position])].name).rpartition(".")[0]
    return f"{position:08d}-{re.sub(r'[^A-Za-z0-9_]+', '-', name)[-64:].strip('-')}"


def _several(layout: Layout, labels: tuple[int, ...]) -> list[str]:
    return [layout.labels.classes[label] for label in labels] if len(labels) > 1 else []
