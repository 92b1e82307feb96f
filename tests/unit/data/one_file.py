"""One file on a faulty server, and how the tests bring it."""

import hashlib
from pathlib import Path

from pipeline.data.fetch import Expected, fetch_file
from pipeline.data.places import PlacesSpec
from pipeline.data.remote import source_of
from tests.unit.data.faulty_server import FaultyServer

SIZE = 3_000_000
FILE = "train/a.tar"
FAST = PlacesSpec(retries=3, timeout_s=5)


def expected(content: bytes) -> Expected:
    """Return what is known of the file beforehand."""
    return Expected(len(content), hashlib.sha256(content).hexdigest(), len(content))


def bring(server: FaultyServer, target: Path, content: bytes, spec: PlacesSpec = FAST) -> None:
    """Bring the file."""
    fetch_file(source_of(server.url, spec), FILE, target, expected(content), spec)


def starts(server: FaultyServer) -> list[int]:
    """Return the first byte of every request."""
    return [start for _, start in server.asked]


def leftovers(target: Path) -> list[str]:
    """Return what lies beside the file, and it."""
    return sorted(path.name for path in target.parent.iterdir())
