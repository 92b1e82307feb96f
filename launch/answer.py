"""What one rank says at the roll call: a line of JSON, printed by a small program without torch.

    answer.py ADDRESS PORT DATA RUN_FOLDER

DATA is empty where the shards come from a URL. The program runs by its path and only needs Python
itself, inside or outside of a container.
"""

import json
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

CONNECT_S = 20.0
MARK = "roll-call "


@dataclass(frozen=True)
class Answer:
    """What one rank found; an empty string where all is well."""

    rank: int
    host: str
    data: str = ""
    folder: str = ""
    address: str = ""


def look(rank: int, host: str, address: str, port: int, data: Path | None, folder: Path) -> Answer:
    """Check what this rank can reach; `data` is None where there is no folder of shards."""
    return Answer(rank, host, _see(data) if data else "", _write(folder), _reach(address, port))


def _see(data: Path) -> str:
    manifest = data / "manifest.json"
    return "" if os.access(manifest, os.R_OK) else f"does not see {manifest}"


def _write(folder: Path) -> str:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return "" if os.access(existing, os.W_OK | os.X_OK) else f"may not write {existing}"


def _reach(address: str, port: int) -> str:
    try:
        socket.create_connection((address, port), timeout=CONNECT_S).close()
    except OSError as error:
        return (
            f"cannot connect to rank 0 at {address}, port {port}: {error}; "
            "see NETWORK_INTERFACE in slurm/site.env"
        )
    return ""


def _main(address: str, port: str, data: str, folder: str) -> None:
    rank = int(os.environ.get("SLURM_PROCID", "0"))
    host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    answer = look(rank, host, address, int(port), Path(data) if data else None, Path(folder))
    print(MARK + json.dumps(vars(answer)), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
