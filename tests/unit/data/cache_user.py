"""A process that reads samples through a cache: `python -m tests.unit.data.cache_user JSON`.

It prints one line per thing done, so that tests can follow it, stop it or kill it.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline.data import fetch
from pipeline.data.places import PlacesSpec
from pipeline.data.reader import ShardReader
from pipeline.data.sources import open_index, open_manifest
from pipeline.spec import Failure, Misuse

REPO = Path(__file__).resolve().parents[3]


def start(path: str, ids: list[int], stay: bool = False, **shards: Any) -> "subprocess.Popen[str]":
    """Start a process that reads samples `ids` of `path`; with `stay` it holds the last one."""
    task = json.dumps({"path": path, "ids": ids, "stay": stay, "shards": shards})
    return subprocess.Popen(
        [sys.executable, "-m", "tests.unit.data.cache_user", task],
        cwd=REPO,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def main(task: dict[str, Any]) -> None:
    fetch.BACKOFF_S = 0.01
    spec = PlacesSpec.parse(task["shards"], "task")
    try:
        index = open_index(task["path"], spec, open_manifest(task["path"], spec), "train")
        reader = ShardReader(index)
        print("open", flush=True)
        digest = hashlib.sha256()
        for sample_id in task["ids"]:
            digest.update(reader.read(sample_id))
        print(digest.hexdigest(), flush=True)
        if task["stay"]:
            sys.stdin.read()
    except (Failure, Misuse) as error:
        print(f"{type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
