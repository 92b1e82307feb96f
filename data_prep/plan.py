"""build.json: from what and how a folder of shards is built, so that nothing else gets into it.

It holds paths and times, so it is no part of the data set; its field `digest` is of all the rest.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from data_prep.listing import is_hidden
from data_prep.options import TOOL, BuildSpec
from data_prep.sources import MAX_FOLDERS_DEEP, Source
from data_prep.tar import printable
from pipeline.data.manifest import FILE
from pipeline.run.files import read_json, write_json
from pipeline.spec import Misuse, canonical_json, differences

PLAN = "build.json"


class State(NamedTuple):
    """What a source looks like from outside: `text` changes when it does."""

    text: str
    num_bytes: int
    """Of all its files."""


def state_of(path: Path) -> State:
    """Return the state of a source from the sizes and times of its files; nothing is read.

    Raises:
        OSError: a folder cannot be listed.
    """
    status = path.stat()
    if not path.is_dir():
        return State(f"{status.st_size} bytes of {status.st_mtime_ns}", status.st_size)
    digest, num_bytes, num_files = hashlib.sha256(), 0, 0
    for name, size, time_ns in _files(path, "", ()):
        digest.update(f"{printable(name)}\0{size}\0{time_ns}\n".encode())
        num_bytes, num_files = num_bytes + size, num_files + 1
    return State(f"{num_files} files, {digest.hexdigest()[:32]}", num_bytes)


def make_plan(
    sources: Sequence[Source], spec: BuildSpec, states: Sequence[State]
) -> dict[str, object]:
    """Return what build.json is to say; without its digest."""
    return {
        "tool": TOOL,
        "sources": [str(source.path.resolve()) for source in sources],
        "inputs": [state.text for state in states],
        "options": spec.model_dump(mode="json"),
    }


def digest_of(plan: Mapping[str, object]) -> str:
    """Return the sha256 (hex) of a plan."""
    return hashlib.sha256(canonical_json(dict(plan)).encode()).hexdigest()


def begin(out: Path, plan: dict[str, object]) -> None:
    """Write build.json, if OUT was begun from the same or holds no shard yet.

    Raises:
        Misuse: OUT holds shards of another build; the message says what differs.
    """
    if not check_same(out, plan):
        write_json(out / PLAN, {"digest": digest_of(plan), **plan})


def check_same(out: Path, plan: dict[str, object]) -> bool:
    """Tell whether OUT was begun from the same plan; false where it may still be begun.

    Raises:
        Misuse: OUT holds shards of another build; the message says what differs.
    """
    begun = read_plan(out)
    if begun != plan and ((out / FILE).exists() or any(out.glob("*/shard-*.tar"))):
        _refuse(out, begun or {}, plan)
    return begun == plan


def check_begun(out: Path, plan: dict[str, object]) -> None:
    """Refuse a stage of a build that was begun from something else, or not at all.

    A folder's files are not looked through again for each element: its state is left out of `plan`.
    """
    begun = read_plan(out)
    if begun is None:
        raise Misuse(f"{out / PLAN}: missing; run stage list first")
    inputs, now = begun["inputs"], plan["inputs"]
    assert isinstance(inputs, list) and isinstance(now, list)
    same = [old if new == "" else new for old, new in zip(inputs, now, strict=False)]
    if begun != {**plan, "inputs": same}:
        _refuse(out, begun, {**plan, "inputs": same})


def read_plan(out: Path) -> dict[str, object] | None:
    """Return the plan of an output folder without its digest; None where there is none whole."""
    saved = read_json(out / PLAN)
    if not isinstance(saved, dict) or saved.pop("digest", None) != digest_of(saved):
        return None
    return saved


def _refuse(out: Path, begun: dict[str, object], plan: dict[str, object]) -> None:
    what = "\n  ".join(differences(begun, plan))
    raise Misuse(
        f"{out / PLAN}: this folder was begun with other inputs or options:\n  {what}\n"
        "use the same ones, or choose another OUT (or remove this one)"
    )


def _files(
    root: Path, folder: str, above: tuple[tuple[int, int], ...]
) -> Iterator[tuple[str, int, int]]:
    """Yield (path below root, bytes, time) of all files, sorted; a folder inside itself ends."""
    where = root / folder
    status = where.stat()
    identity = status.st_dev, status.st_ino
    if identity in above or len(above) > MAX_FOLDERS_DEEP:
        return
    with os.scandir(where) as entries:
        found = sorted((e for e in entries if not is_hidden(e.name)), key=lambda e: e.name)
    for entry in found:
        name = f"{folder}/{entry.name}" if folder else entry.name
        try:
            if entry.is_dir():
                yield from _files(root, name, (*above, identity))
            else:
                status = entry.stat()
                yield name, status.st_size, status.st_mtime_ns
        except OSError:  # a link to nowhere, or not ours to read: the listing says so by name
            yield name, 0, 0
