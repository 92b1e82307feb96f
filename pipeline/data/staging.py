"""Copies all shards of a split to this node's disk before training begins.

For network disks and servers that many nodes would otherwise read all the time. Every rank of the
node calls it and they share the work: a shard that one of them copies is left to it. What is there
already is not copied again, so that a job that starts again begins at once. While the processes of
the job live, no other job that shares the folder may push the shards out. A shard that the source
does not have, or has otherwise than the manifest says, is told and left out: whoever reads one of
its samples meets it again.
"""

import fcntl
import io
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path

from pipeline.data.cache import KEPT
from pipeline.data.cached_places import CachedPlaces
from pipeline.data.manifest import Shard
from pipeline.data.places import GB, ShardGone
from pipeline.spec import Failure, Misuse

SAY_S = 10.0
Say = Callable[[str], None]


def stage(places: CachedPlaces, what: str, say: Say = print) -> None:
    """Have all shards of `places` on this node, and keep them while this process lives.

    Those that cannot be had as the manifest says are remembered by `places`.

    Args:
        places: of the split; its cache must be able to hold all of it.
        what: is copied, in words.
        say: is told how far it is.

    Raises:
        Misuse: `data.shards.max_gb` is too small; names the number needed.
        Failure: the disk has no room, or the source or the disk fails.
    """
    check_fits(places, what)
    places.kept = _keep(places.home)
    progress = _Progress(places.shards, what, say)
    first = os.getpid() % len(places.shards) if places.shards else 0
    order = [*range(first, len(places.shards)), *range(first)]
    for may_wait in (False, True):  # first what no other process is at
        missing = [n for n in order if not places.is_here(n) and not places.is_gone(n)]
        _bring_all(places, missing, may_wait, progress)


def check_fits(places: CachedPlaces, what: str) -> None:
    """Refuse a split that the folder or the disk cannot hold; see `stage`."""
    total = sum(shard.num_bytes for shard in places.shards)
    folder, most = places.cache.folder, places.cache.max_bytes
    if total > most:
        raise Misuse(
            f"field 'data.shards.max_gb' is {most / GB:g}: {what} takes {total / GB:.4g} GB; set "
            f"it to {rounded_gb(total)} or more, or use data.shards.kind=cache"
        )
    missing = sum(s.num_bytes for n, s in enumerate(places.shards) if not places.is_here(n))
    removable = max(0, places.cache.used_bytes() - (total - missing))
    free = shutil.disk_usage(folder).free
    if missing > free + removable:
        raise Failure(
            f"{folder}: {what} needs {missing / GB:.4g} GB more, the disk has {free / GB:.4g} GB; "
            "make room, name another data.shards.folder, or use data.shards.kind=cache"
        )


def rounded_gb(num_bytes: int) -> float:
    """Return a size in GB, rounded up to two digits after the point."""
    return -(-num_bytes * 100 // GB) / 100


def _keep(home: Path) -> io.FileIO:
    """Lock the data set's folder against eviction while any process has the file open."""
    home.mkdir(parents=True, exist_ok=True)
    kept = io.FileIO(home / KEPT, "a")
    fcntl.flock(kept, fcntl.LOCK_SH)
    return kept


def _bring_all(
    places: CachedPlaces, shards: Sequence[int], may_wait: bool, progress: "_Progress"
) -> None:
    with ThreadPoolExecutor(places.spec.connections, "staging") as pool:
        running: dict[Future[bool], int] = {
            pool.submit(places.bring, shard, places.spec.timeout_s, may_wait): shard
            for shard in shards
        }
        try:
            while running:
                done, _ = wait(running, timeout=1.0, return_when=FIRST_EXCEPTION)
                for future in done:
                    shard = running.pop(future)
                    try:
                        progress.add(shard, future.result())
                    except ShardGone as error:
                        progress.tell_gone(error)
                progress.tell()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class _Progress:
    """Says from time to time how much this process has brought."""

    def __init__(self, shards: Sequence[Shard], what: str, say: Say) -> None:
        self._shards, self._what, self._say = shards, what, say
        self._begun = self._told = time.monotonic()
        self._bytes = self._count = 0

    def add(self, shard: int, brought: bool) -> None:
        if brought:
            self._bytes += self._shards[shard].num_bytes
            self._count += 1

    def tell_gone(self, error: ShardGone) -> None:
        self._say(f"staging {self._what}: {error}; its samples cannot be used")

    def tell(self) -> None:
        now = time.monotonic()
        if now - self._told >= SAY_S:
            self._told = now
            rate = self._bytes / GB / (now - self._begun)
            self._say(
                f"staging {self._what}: {self._count:,} of {len(self._shards):,} shards, "
                f"{self._bytes / GB:.1f} GB by this process ({rate:.2f} GB/s)"
            )
