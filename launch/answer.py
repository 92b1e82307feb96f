"""What one rank says at the roll call: a line of JSON, printed by a small program without torch.

    answer.py QUESTION      (a JSON object: see `Question`)

The first rank of each node also says what its node is like. The program runs by its path and only
needs Python itself, inside or outside of a container.
"""

import fcntl
import json
import os
import platform
import socket
import struct
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

CONNECT_S = 20.0
SERVER_S = 5.0
MARK = "roll-call "
PROBE_BYTES = 8 << 20
PACKAGES = ("torch", "deepspeed", "mlflow", "pillow")
_SIOCGIFADDR = 0x8915


@dataclass(frozen=True)
class Question:
    """What the ranks are asked: can they connect, see the files, write and reach the servers?"""

    address: str
    port: int
    folder: str
    data: str = ""
    """The folder of shards; empty where they come from a URL."""
    token: str = ""
    """A file beside the run's folder that all nodes must see; empty: not looked for."""
    servers: tuple[str, ...] = ()
    interface: str = ""
    """The site's NETWORK_INTERFACE."""


@dataclass(frozen=True)
class Node:
    """What a node is like for a training; empty strings where all is well."""

    versions: dict[str, str]
    shm_bytes: int
    memory_bytes: int
    has_memfd: bool
    write_mb_s: float
    rename_ms: float
    disk_error: str
    interface: str
    unreachable: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """What one rank found; an empty string where all is well."""

    rank: int
    host: str
    data: str = ""
    folder: str = ""
    address: str = ""
    network: str = ""
    node: dict | None = None


def look(rank: int, host: str, question: Question, is_first: bool = False) -> Answer:
    """Check what this rank can reach; the first rank of a node looks at the node as well."""
    folder = existing(Path(question.folder))
    node = None
    if is_first:
        servers = question.servers if rank == 0 else ()
        node = asdict(look_at_node(folder, question.address, question.token, servers))
    return Answer(
        rank,
        host,
        _see(Path(question.data)) if question.data else "",
        "" if os.access(folder, os.W_OK | os.X_OK) else f"may not write {folder}",
        _reach(question.address, question.port),
        _has(question.interface) if question.interface else "",
        node,
    )


def existing(folder: Path) -> Path:
    """Return the folder itself, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def look_at_node(folder: Path, address: str, token: str, servers: Sequence[str]) -> Node:
    """Measure this host: memory, the disk of `folder`, the way to `address`, the servers."""
    speed, rename_ms, error = _write(folder)
    if not error and token and not Path(token).exists():
        error = f"does not see {token}, which the first node wrote: not a shared file system"
    shm = os.statvfs("/dev/shm") if Path("/dev/shm").is_dir() else None
    return Node(
        versions={"python": platform.python_version(), **_installed()},
        shm_bytes=shm.f_bavail * shm.f_frsize if shm else 0,
        memory_bytes=_memory(),
        has_memfd=hasattr(os, "memfd_create"),
        write_mb_s=speed,
        rename_ms=rename_ms,
        disk_error=error,
        interface=_interface_to(address) if address else "",
        unreachable=tuple(text for server in servers if (text := _silent(server))),
    )


def _see(data: Path) -> str:
    manifest = data / "manifest.json"
    return "" if os.access(manifest, os.R_OK) else f"does not see {manifest}"


def _reach(address: str, port: int) -> str:
    try:
        socket.create_connection((address, port), timeout=CONNECT_S).close()
    except OSError as error:
        return (
            f"cannot connect to rank 0 at {address}, port {port}: {error}; "
            "see NETWORK_INTERFACE in slurm/site.env"
        )
    return ""


def _has(interface: str) -> str:
    names = [name for _, name in socket.if_nameindex()]
    if interface in names:
        return ""
    return (
        f"has no interface '{interface}', only {', '.join(names)}: change NETWORK_INTERFACE in "
        "slurm/site.env"
    )


def _write(folder: Path) -> tuple[float, float, str]:
    """Write, sync, rename and remove a file: (MB/s, ms of the rename, what went wrong)."""
    name = f".probe-{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
    first, second = folder / f"{name}.tmp", folder / name
    try:
        start = time.perf_counter()
        with first.open("wb") as file:
            file.write(os.urandom(1 << 16) * (PROBE_BYTES >> 16))
            file.flush()
            os.fsync(file.fileno())
        written = time.perf_counter()
        first.rename(second)
        renamed = time.perf_counter()
    except OSError as error:
        return 0.0, 0.0, f"cannot be written: {error.strerror or error}"
    finally:
        for path in (first, second):
            with suppress(OSError):
                path.unlink(missing_ok=True)
    speed = PROBE_BYTES / 1e6 / max(written - start, 1e-6)
    return round(speed, 1), round(1e3 * (renamed - written), 2), ""


def _installed() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _memory() -> int:
    """Return the bytes that processes may still take: of the host, or of this job's share."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvail"))
    if limit := int(os.environ.get("SLURM_MEM_PER_NODE", "0") or 0):
        free = min(free, limit << 20)
    return free


def _interface_to(address: str) -> str:
    """Return the interface over which this host reaches an address; empty where unknown."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # a datagram socket sends nothing by this
        own = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                asked = struct.pack("256s", name.encode()[:15])
                packed = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, asked)[20:24]
                if socket.inet_ntoa(packed) == own:
                    return name
    return ""


def _silent(server: str) -> str:
    """Return why a server cannot be connected to; empty where it can."""
    parts = urlsplit(server)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=SERVER_S).close()
    except OSError as error:
        return f"{server}: {error}"
    return ""


def _main(question: str) -> None:
    rank = int(os.environ.get("SLURM_PROCID", "0"))
    host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()  # nothing here imports ours
    is_first = os.environ.get("SLURM_LOCALID", "0") == "0"
    answer = look(rank, host, Question(**json.loads(question)), is_first)
    print(MARK + json.dumps(asdict(answer)), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
