"""Where the file of a shard is: in its folder, or on this node once it has been brought there.

Shards are read where they lie (`direct`), after a copy of all of them to this node's disk
(`stage`), or one by one through a folder of bounded size (`cache`). The reader sees none of it: it
asks for the path of a shard, and says when it has done with it.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from pipeline.data.manifest import Shard
from pipeline.spec import Failure, Misuse, Spec

SCHEMES = ("http", "https", "s3", "gs", "gcs", "abfs", "az", "hf", "file", "memory")
"""What a URL of shards may begin with; all else fsspec knows could run or unpack something."""
GB = 10**9


class ShardGone(Failure):
    """A shard that is not there, or not as the manifest says, and another try would not help."""


class PlacesSpec(Spec):
    """How the shards of `data.path` come to the node that reads them."""

    kind: Literal["auto", "direct", "stage", "cache"] = "auto"
    """auto: folders direct, URLs through a cache."""
    folder: str = ""
    """On a disk of the node: the staged copies or the cache; all processes of a node share it."""
    max_gb: float = Field(default=200.0, gt=0)
    """Most that the shards in `folder` may take, in 10^9 bytes."""
    connections: int = Field(default=4, ge=1, le=64)
    """Files that a process brings at the same time."""
    retries: int = Field(default=6, ge=0)
    """Tries that bring next to nothing, after the first, before a source counts as dead."""
    timeout_s: float = Field(default=60.0, gt=0)
    """A connection that gives nothing for so long is dropped and tried again."""
    ahead_steps: int = Field(default=64, ge=0)
    """With a cache: shards are asked for so many steps before they are needed."""
    storage: Mapping[str, Any] = {}
    """Options of fsspec's file system (`endpoint_url`, `anon`); never secrets, they are recorded:
    those belong into the environment or a credentials file."""

    @model_validator(mode="after")
    def _folder_is_named(self) -> Self:
        if self.kind in ("stage", "cache") and not self.folder:
            raise ValueError(f"kind {self.kind} needs `folder`, on a disk of the node")
        return self

    @property
    def max_bytes(self) -> int:
        return int(self.max_gb * GB)


class Places(Protocol):
    """The files of one split's shards, by shard number."""

    @property
    def keep(self) -> int:
        """Return how many shards one process may hold at once."""
        ...

    @property
    def ahead_steps(self) -> int:
        """Return how many steps before it is needed a shard should be expected; 0: never."""
        ...

    def path(self, shard: int) -> Path:
        """Return a file that stays until `release`; may have to fetch it first.

        Raises:
            ShardGone: it cannot be had as the manifest says.
            Failure: the source does not answer, or the disk of the node does not take it.
        """
        ...

    def release(self, shard: int) -> None:
        """Say that this process has closed what `path` gave."""
        ...

    def expect(self, shards: Iterable[int]) -> None:
        """Say which shards will be needed soon, so that they may be fetched meanwhile."""
        ...

    def renew(self, shard: int) -> bool:
        """Throw a copy with wrong bytes away; True where `path` may then give the right ones."""
        ...

    def renew_index(self, shard: int) -> bool:
        """Bring the index of a shard again if its copy is wrong; True where it is right now.

        Raises:
            ShardGone, Failure: as `path`.
        """
        ...

    @property
    def are_copies(self) -> bool:
        """Say whether shards are copies, whose times tell nothing of when they were changed."""
        ...

    def origin(self, shard: int) -> str:
        """Return what errors call the shard: its path, or its URL and where its copy lies."""
        ...

    @property
    def remedy(self) -> str:
        """Return what errors advise where a shard is not as the manifest says."""
        ...


class LocalPlaces:
    """Shards that are read where they lie."""

    keep = 512
    ahead_steps = 0
    are_copies = False

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        self._folder, self._shards = folder, shards

    def path(self, shard: int) -> Path:
        return self._folder / self._shards[shard].file

    def release(self, shard: int) -> None:
        pass

    def expect(self, shards: Iterable[int]) -> None:
        pass

    def renew(self, shard: int) -> bool:
        return False

    def renew_index(self, shard: int) -> bool:
        return False

    def origin(self, shard: int) -> str:
        return str(self._folder / self._shards[shard].file)

    @property
    def remedy(self) -> str:
        return folder_remedy(self._folder)


def folder_remedy(folder: Path) -> str:
    """Return what errors advise where a shard of a folder is not as its manifest says."""
    return f"run `python -m data_prep verify {folder}`, then restore or build this shard again"


def is_url(path: str | Path) -> bool:
    """Say whether `data.path` names a source that must be fetched.

    Raises:
        Misuse: a URL that is of no known kind, or would put a secret into the recorded recipe.
    """
    if isinstance(path, Path) or "://" not in path:
        return False
    parts = urlsplit(path)
    if parts.scheme not in SCHEMES or "::" in path:
        known = ", ".join(SCHEMES)
        raise Misuse(f"field 'data.path' is {path!r}: URLs of shards begin with one of {known}")
    if parts.username or parts.password or parts.query or parts.fragment:
        shown = f"{parts.scheme}://{parts.hostname or ''}{parts.path}"
        raise Misuse(
            f"field 'data.path' is a URL ({shown}) with a user, password, '?' or '#': it would be "
            "recorded with the run; name the folder alone, secrets belong into ~/.netrc or the "
            "environment"
        )
    return True
