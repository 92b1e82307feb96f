"""An arrangement to shards: cut it into tasks, write them over processes and hosts, collect them.

Element k of K writes shards k, k + K, ... of all splits; the last stage collects the records.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.arrange import Arranged
from data_prep.checking import Checked
from data_prep.failure import Failed, full_disk
from data_prep.pool import Progress, run
from data_prep.write import ShardTask, open_work, read_record, write_shard
from pipeline.data.manifest import Shard
from pipeline.spec import Misuse

_SAMPLE_BYTES = 512 + 1024
"""Of a tar, beside the image: its header, header and content of the label."""


class _Planned(NamedTuple):
    task: ShardTask
    num_images: int
    num_bytes: int
    """About what it takes on the disk."""


def write_shards(
    out: Path,
    work: Path,
    arranged: Arranged,
    checked: Checked,
    workers: int,
    element: tuple[int, int] = (0, 1),
) -> None:
    """Write those shards k, k + K, ... of element (k, K) that are not there yet.

    Raises:
        Failed: the disk is full, a worker died, a source changed, or a strange shard lies in OUT.
    """
    first, step = element
    everything = list(_plan(out, work, arranged, checked))
    refuse_strangers(out, {each.task.file for each in everything})
    mine = everything[first::step]
    left = sum(each.num_bytes - _bytes_there(each.task) for each in mine)
    if shutil.disk_usage(out).free < left:
        raise full_disk(out, left)
    num_kept = 0
    try:
        with Progress("write", "images", sum(each.num_images for each in mine)) as progress:
            for shard, kept in run(write_shard, (each.task for each in mine), workers):
                num_kept += kept
                progress.add(shard.num_samples)
    finally:
        open_work.cache_clear()  # a file that is mapped cannot be removed everywhere
    if num_kept:
        print(f"{num_kept} of {len(mine)} shards were finished before and kept")


def collect_shards(
    out: Path, work: Path, arranged: Arranged, checked: Checked
) -> dict[str, list[Shard]]:
    """Return the records of all shards by split, in order.

    Raises:
        Misuse: one is not written yet.
        Failed: one is gone since, or a strange shard lies in OUT.
    """
    tasks = [each.task for each in _plan(out, work, arranged, checked)]
    refuse_strangers(out, {task.file for task in tasks})
    shards: dict[str, list[Shard]] = {split: [] for split in arranged.splits}
    for task in tasks:
        shard = read_record(task)
        if shard is None:
            raise Misuse(
                f"{out / task.file}: not written yet ({len(tasks)} shards in all); run stage write "
                "again (element k of K takes shards k, k + K, ...)"
            )
        _check_there(out, shard)
        shards[task.split].append(shard)
    return shards


def refuse_strangers(out: Path, expected: set[str]) -> None:
    """Refuse shards of another build."""
    for file in out.glob("*/shard-*"):
        tar = file.with_name(f"{file.name.partition('.')[0]}.tar").relative_to(out).as_posix()
        if tar not in expected:
            raise Failed(f"{file}: not a shard of this build; remove it or choose another OUT")


def _plan(out: Path, work: Path, arranged: Arranged, checked: Checked) -> Iterator[_Planned]:
    """Yield all shards of all splits in order."""
    sizes = {split: _shard_bytes(arranged, checked, split) for split in arranged.splits}
    left = sum(int(its.sum()) for its in sizes.values())
    for split, its in sizes.items():
        counts = np.diff(arranged.cuts(split)).tolist()
        for number, (num_bytes, count) in enumerate(zip(its.tolist(), counts, strict=True)):
            task = ShardTask(out, work, arranged.key, split, number, left)
            yield _Planned(task, count, num_bytes)
            left -= num_bytes


def _shard_bytes(arranged: Arranged, checked: Checked, split: str) -> np.ndarray:
    cuts = arranged.cuts(split)
    images = checked.verdicts["size"][arranged.order(split)]
    return np.add.reduceat(images, cuts[:-1], dtype=np.int64) + np.diff(cuts) * _SAMPLE_BYTES


def _bytes_there(task: ShardTask) -> int:
    path = task.out / task.file
    return path.stat().st_size if path.exists() else 0


def _check_there(out: Path, shard: Shard) -> None:
    tar = out / shard.file
    there = tar.is_file() and tar.stat().st_size == shard.num_bytes
    if not there or not all((out / f).is_file() for f in (shard.index_file, shard.labels_file)):
        raise Failed(f"{tar}: gone or cut since it was written; run stage write again")
