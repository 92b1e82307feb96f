"""The shards of a split through a cache on this node: brought when they are needed, or before.

A shard is locked from `path` to `release`, and only that long; what the lanes have in use stays in
the cache because it was used last. A copy whose bytes turn out wrong is brought once more, that of
an index too. A shard that its source does not have is remembered: its samples cannot be used.
"""

import io
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.ahead import Ahead
from pipeline.data.cache import ShardCache, hold, is_locked, part_of, touch
from pipeline.data.fetch import Expected, fetch, fetch_file, is_at, unlock, unlocking
from pipeline.data.index import ENTRY, LABEL
from pipeline.data.manifest import Shard
from pipeline.data.places import PlacesSpec, ShardGone
from pipeline.data.remote import Source
from pipeline.spec import Failure

_NPY_HEADER_BYTES = 1 << 16
"""More than numpy writes before an array."""
_POLL_S = 0.05
_TOUCH_S = 5.0
"""A process notes the use of a shard so often at most."""


@dataclass
class _Pin:
    file: io.FileIO
    count: int = 1


def index_parts(shard: Shard) -> list[tuple[str, Expected]]:
    """Return the files of a shard's index, and what is known of them."""
    entries = shard.num_samples * ENTRY.itemsize + _NPY_HEADER_BYTES
    labels = shard.num_samples * 0xFFFF * LABEL.itemsize + _NPY_HEADER_BYTES
    return [
        (shard.index_file, Expected(None, shard.index_sha256, entries)),
        (shard.labels_file, Expected(None, shard.labels_sha256, labels)),
    ]


def bring_index_part(
    source: Source,
    home: Path,
    file: str,
    expected: Expected,
    spec: PlacesSpec,
    check: bool = False,
) -> None:
    """Bring a file of `index_parts` to its place below `home`; see `fetch_file`."""
    try:
        fetch_file(source, file, home / file, expected, spec, check)
    except ShardGone as error:
        raise ShardGone(f"{error}; {source.remedy}") from None


class CachedPlaces:
    """Where the shards of one split are once they came; may be pickled and forked.

    Args:
        source: where they come from.
        home: folder of this data set in the cache.
        shards: of the split.
        cache: on this node.
        spec: connections, retries and patience.
        keep: shards that one process may hold; more than one only where all of them fit.
    """

    are_copies = True

    def __init__(
        self,
        source: Source,
        home: Path,
        shards: Sequence[Shard],
        cache: ShardCache,
        spec: PlacesSpec,
        keep: int = 1,
    ) -> None:
        self.home, self.shards, self.cache, self.spec, self.keep = home, shards, cache, spec, keep
        self.kept: io.FileIO | None = None
        """Open as long as this process counts on all shards of the data set (staging)."""
        self._source = source
        self._gone: dict[int, str] = {}
        self._renewed: set[int] = set()
        self._begin()

    def __getstate__(self) -> dict[str, Any]:
        mine = {"_pid", "_pins", "_touched", "_ahead", "kept"}
        state = {name: value for name, value in self.__dict__.items() if name not in mine}
        return {**state, "kept": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    @property
    def ahead_steps(self) -> int:
        return self.spec.ahead_steps if self.keep == 1 else 0

    def path(self, shard: int) -> Path:
        if self._pid != os.getpid():  # a fork: the locks are its parent's
            self._begin()
        pin = self._pins.get(shard)
        if pin is not None:
            pin.count += 1
        else:
            self._pins[shard] = _Pin(self._hold(shard))
        return self._tar(shard)

    def release(self, shard: int) -> None:
        pin = self._pins.get(shard) if self._pid == os.getpid() else None
        if pin is not None:
            pin.count -= 1
            if pin.count == 0:
                unlock(self._pins.pop(shard).file)

    def expect(self, shards: Iterable[int]) -> None:
        missing = []
        for shard in shards:
            if shard in self._gone or self._is_fresh(shard):
                continue
            if self._tar(shard).exists():
                self._touch(shard)
            else:
                missing.append(shard)
        self._ahead.want(missing)

    def renew(self, shard: int) -> bool:
        pin = self._pins.get(shard)
        if pin is None or shard in self._renewed:
            return False
        self._renewed.add(shard)
        if is_at(pin.file, self._tar(shard)):  # else another process has done it
            self._tar(shard).unlink(missing_ok=True)
        return True

    def renew_index(self, shard: int) -> bool:
        for file, expected in index_parts(self.shards[shard]):
            try:
                bring_index_part(self._source, self.home, file, expected, self.spec, check=True)
            except OSError as error:
                raise Failure(
                    f"{self.home / file}: has other bytes than the manifest says and cannot be "
                    f"brought again ({error.strerror}); remove it, or name another "
                    "data.shards.folder"
                ) from None
        return True

    def origin(self, shard: int) -> str:
        name, tar = self._source.name(self.shards[shard].file), self._tar(shard)
        return f"{name} (copied to {tar})" if tar.exists() else name

    @property
    def remedy(self) -> str:
        return self._source.remedy

    def bring(self, shard: int, patience_s: float = 0.0, wait: bool = True) -> bool:
        """Have a shard in the cache; False where another process brings it and not `wait`.

        Raises:
            ShardGone: the source does not have it; it is not asked again.
            Failure: no room for it within `patience_s`, or the source or the disk fails.
        """
        tar, record = self._tar(shard), self.shards[shard]
        tar.parent.mkdir(parents=True, exist_ok=True)
        while not tar.exists():
            if shard in self._gone:
                raise ShardGone(self._gone[shard])
            part = None
            if not is_locked(part_of(tar, record.num_bytes)):
                part = self.cache.admit(tar, record.num_bytes, patience_s)
            if part is not None:
                with unlocking(part):
                    self._fetch(shard, part)
            elif not wait:
                return False
            else:
                time.sleep(_POLL_S)
        return True

    def is_here(self, shard: int) -> bool:
        """Say whether a shard is in the cache."""
        return self._tar(shard).exists()

    def is_gone(self, shard: int) -> bool:
        """Say whether the source was found not to have a shard as the manifest says."""
        return shard in self._gone

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._pins: dict[int, _Pin] = {}
        self._touched: dict[int, float] = {}
        self._ahead = Ahead(self.bring, self.spec.connections)

    def _hold(self, shard: int) -> io.FileIO:
        while True:
            file = hold(self._tar(shard), self.shards[shard].num_bytes)
            if file is not None:
                if not self._is_fresh(shard):
                    self._touch(shard)
                return file
            self.bring(shard, self.spec.timeout_s)

    def _fetch(self, shard: int, part: io.FileIO) -> None:
        record = self.shards[shard]
        expected = Expected(record.num_bytes, record.sha256, record.num_bytes)
        try:
            fetch(self._source, record.file, part, self._tar(shard), expected, self.spec)
        except ShardGone as error:
            self._gone[shard] = str(error)
            Path(part.name).unlink(missing_ok=True)
            raise

    def _is_fresh(self, shard: int) -> bool:
        return time.monotonic() - self._touched.get(shard, -_TOUCH_S) < _TOUCH_S

    def _touch(self, shard: int) -> None:
        self._touched[shard] = time.monotonic()
        touch(self._tar(shard))

    def _tar(self, shard: int) -> Path:
        return self.home / self.shards[shard].file
