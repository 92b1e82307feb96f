"""Reads files of a source of shards in order, from any byte on: a folder, http(s), s3 and its kin.

A source only reads; nothing that it gives is trusted. What can go wrong has three kinds: a file
that is gone (`ShardGone`), an access that will stay refused (`Failure`), and everything that may
be over at the next try (`Dropped`). How often to try is `fetch`'s business.
"""

import io
import json
import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from pipeline.data.places import PlacesSpec, ShardGone, folder_remedy, is_url
from pipeline.spec import Failure, Misuse

CHUNK_BYTES = 1 << 20
PIECE_BYTES = 8 << 20
"""One request of an object store; plain http streams a whole file in one."""
GONE = {404, 410}
REFUSED = {401, 403, 407, 451}
_URL_REMEDY = (
    "see that `data.path` is right, then restore this shard at its source: `python -m data_prep "
    "verify` tells what is wrong in the folder it came from; upload that folder again as a whole"
)


class Dropped(Exception):
    """A try that failed and may go well the next time; the text says how it failed."""

    def __init__(self, reason: str, anew: bool = False) -> None:
        """With `anew`, what came so far does not fit to what the source has now."""
        super().__init__(reason)
        self.anew = anew


class Source(Protocol):
    """Files by their path relative to a base."""

    @property
    def remedy(self) -> str:
        """Return what errors advise where a file is not as the manifest says."""
        ...

    def name(self, file: str) -> str:
        """Return what errors call a file: its path or URL."""
        ...

    def chunks(self, file: str, start: int) -> "tuple[int, Generator[bytes]]":
        """Return (first byte, its bytes in order up to the end): `start`, or 0 where the source
        cannot begin in the middle. The generator must be closed.

        Raises, also while it is read:
            ShardGone: there is no such file.
            Failure: the source refuses this file to us.
            Dropped: everything else.
        """
        ...


def source_of(path: str, spec: PlacesSpec) -> Source:
    """Return the source that `data.path` names.

    Raises:
        Misuse: a URL that cannot be used; names the package that its kind needs.
    """
    if not is_url(path):
        return FolderSource(Path(path))
    scheme = urlsplit(path).scheme
    if scheme in ("http", "https"):
        return HttpSource(path.rstrip("/"), spec.timeout_s, spec.storage)
    return StoreSource(path.rstrip("/"), spec.storage)


@dataclass(frozen=True)
class FolderSource:
    """Files of a mounted file system, mostly a network's."""

    folder: Path

    @property
    def remedy(self) -> str:
        return folder_remedy(self.folder)

    def name(self, file: str) -> str:
        return str(self.folder / file)

    def chunks(self, file: str, start: int) -> tuple[int, Generator[bytes]]:
        return start, self._chunks(self.folder / file, start)

    def _chunks(self, path: Path, start: int) -> Generator[bytes]:
        try:
            with io.FileIO(path) as opened:
                opened.seek(start)
                while chunk := opened.read(CHUNK_BYTES):
                    yield chunk
        except FileNotFoundError:
            raise ShardGone(f"{path}: no such file") from None
        except PermissionError as error:
            raise Failure(f"{path}: {error.strerror}; check who may read it") from None
        except OSError as error:
            raise Dropped(f"cannot be read ({error.strerror})") from None


@dataclass(frozen=True)
class StoreSource:
    """Files of an object store through fsspec, in ranged requests."""

    base: str
    storage: Mapping[str, Any]
    remedy = _URL_REMEDY

    def name(self, file: str) -> str:
        return f"{self.base}/{file}"

    def chunks(self, file: str, start: int) -> tuple[int, Generator[bytes]]:
        return start, self._chunks(self.name(file), start)

    def _chunks(self, url: str, start: int) -> Generator[bytes]:
        store = _file_system(self.base, self.storage)
        try:
            end = store.size(url)
            while start < end:
                piece = store.cat_file(url, start=start, end=min(start + PIECE_BYTES, end))
                if not piece:
                    return
                start += len(piece)
                yield piece
        except FileNotFoundError:
            raise ShardGone(f"{url}: there is no such object") from None
        except PermissionError as error:
            raise _refused(url, str(error)) from None
        except Exception as error:  # each store's client has errors of its own
            raise Dropped(f"{type(error).__name__}: {error}") from None


@dataclass(frozen=True)
class HttpSource:
    """Files of a web server through fsspec, one streamed request for each try."""

    base: str
    timeout_s: float
    storage: Mapping[str, Any]
    remedy = _URL_REMEDY

    def name(self, file: str) -> str:
        return f"{self.base}/{file}"

    def chunks(self, file: str, start: int) -> tuple[int, Generator[bytes]]:
        url = self.name(file)
        headers = {"Accept-Encoding": "identity"}  # a compressed body has other ranges
        if start:
            headers["Range"] = f"bytes={start}-"
        web = _file_system(self.base, self.storage, self.timeout_s)
        with _http_errors(url):
            opened = web.open(url, block_size=0, size=1, headers=headers)
        return _first_byte(opened.r, start), self._chunks(url, opened)

    def _chunks(self, url: str, opened: Any) -> Generator[bytes]:
        with closing(opened), _http_errors(url):
            while chunk := opened.read(CHUNK_BYTES):
                yield chunk


def _file_system(base: str, storage: Mapping[str, Any], timeout_s: float | None = None) -> Any:
    """Return fsspec's file system for a URL, one for all threads of this process."""
    try:
        return _made(os.getpid(), urlsplit(base).scheme, json.dumps(dict(storage)), timeout_s)
    except ImportError as error:
        raise Misuse(f"field 'data.path' is '{base}': {error}") from None
    except (TypeError, ValueError) as error:
        raise _misfit(base, error) from None


@lru_cache(maxsize=8)
def _made(pid: int, scheme: str, storage: str, timeout_s: float | None) -> Any:
    """Make a file system; `pid` is there for forks, which need another."""
    import fsspec

    options = json.loads(storage)
    if timeout_s is not None:
        options = {"client_kwargs": _client(timeout_s), **options}
    return fsspec.filesystem(scheme, skip_instance_cache=True, **options)


def _client(timeout_s: float) -> dict[str, Any]:
    """Return how to connect: proxies and ~/.netrc count, and a whole file may take its time."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=timeout_s, sock_read=timeout_s)
    return {"timeout": timeout, "trust_env": True, "read_bufsize": CHUNK_BYTES}


def _first_byte(response: Any, start: int) -> int:
    """Return where the body of a response begins, asked from `start` on."""
    if response.status != 206:
        return 0
    said = response.headers.get("Content-Range", "")
    if not said.startswith(f"bytes {start}-"):
        response.close()
        raise Dropped(f"asked from byte {start}, the server answers with '{said}'", anew=True)
    return start


@contextmanager
def _http_errors(url: str) -> Iterator[None]:
    import aiohttp

    try:
        yield
    except FileNotFoundError:
        raise ShardGone(f"{url}: the server answers 404 (not found)") from None
    except aiohttp.ClientResponseError as error:
        told = f"the server answers {error.status} ({error.message})"
        if error.status in GONE:
            raise ShardGone(f"{url}: {told}") from None
        if error.status in REFUSED:
            raise _refused(url, told) from None
        raise Dropped(told, anew=error.status == 416) from None
    except TimeoutError as error:
        raise Dropped(f"nothing came for too long ({type(error).__name__})") from None
    except (aiohttp.ClientError, OSError, EOFError) as error:
        raise Dropped(f"{type(error).__name__}: {error}") from None
    except TypeError as error:
        raise _misfit(url, error) from None


def _misfit(url: str, error: Exception) -> Misuse:
    return Misuse(f"field 'data.shards.storage' does not fit to '{url}': {error}")


def _refused(url: str, told: str) -> Failure:
    return Failure(
        f"{url}: {told}: access is refused; put credentials into ~/.netrc or the environment of "
        "the job, or name another source"
    )
