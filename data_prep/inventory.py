"""The files of a data set: those that the manifest names, whole; those that it allows; no others.

In a folder of tars made by others only tars and index files are looked at: what else lies there
(parquet, readme) belongs to whoever made them.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from data_prep.plan import PLAN, digest_of
from data_prep.tar import printable
from data_prep.write import sha256_of
from pipeline.data.manifest import FILE, INFO, REJECTS, Manifest

PAGE = "show.html"
"""Where `show --html` writes if nothing else is said."""
_WORK = ".build"
_OURS = (".tar", ".idx.npy", ".lab.npy")


def check_files(folder: Path, manifest: Manifest) -> list[str]:
    """Return what is wrong with the files beside the shards, and which files are foreign."""
    problems = [
        *_check_digest(folder / REJECTS, manifest.rejects_sha256),
        *_check_digest(folder / INFO, manifest.info_sha256),
        *_check_plan(folder / PLAN),
    ]
    known = {FILE, PLAN, PAGE}
    known |= {REJECTS} if manifest.rejects_sha256 else set()
    known |= {INFO} if manifest.info_sha256 else set()
    for split in manifest.splits.values():
        for shard in split.shards:
            known |= {shard.file, shard.index_file, shard.labels_file}
    for file in sorted(_files(folder)):
        if file in known or (not manifest.layout and not file.endswith(_OURS)):
            continue
        problems.append(
            f"{folder / printable(file)}: is not in the manifest; move it away, or build the set "
            "again"
        )
    if (folder / _WORK).exists():
        problems.append(
            f"{folder / _WORK}: left by a build that did not end; run the same `build` again, or "
            "remove it"
        )
    return problems


def rejected_names(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the keys that `index` rejected, by tar; nothing where the list cannot be read."""
    found: dict[str, list[str]] = {}
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                file = str(json.loads(line)["file"])
                tar, _, key = file.partition(".tar/")
                found.setdefault(f"{tar}.tar", []).append(key)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return {tar: tuple(keys) for tar, keys in found.items()}


def _check_digest(path: Path, sha256: str) -> list[str]:
    if not sha256:
        return []
    if not path.is_file():
        return [f"{path}: is missing; build the set again"]
    if sha256_of(path) != sha256:
        return [f"{path}: sha256 differs from the manifest's; build the set again"]
    return []


def _check_plan(path: Path) -> list[str]:
    """Check build.json, which tells where a build stood and so is not in the manifest."""
    if not path.exists():
        return []
    damaged = [f"{path}: was changed or damaged since the build; build the set again, or remove it"]
    try:
        raw = path.read_bytes()
        values = json.loads(raw)
        if not isinstance(values, dict) or raw != (json.dumps(values, indent=2) + "\n").encode():
            return damaged
        digest = values.pop("digest", None)
        return [] if digest == digest_of(values) else damaged
    except (OSError, ValueError, RecursionError):
        return damaged


def _files(folder: Path) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        if parent == str(folder) and _WORK in folders:
            folders.remove(_WORK)
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        for name in files + links:  # a link to a folder is not walked into
            yield (Path(parent) / name).relative_to(folder).as_posix()
