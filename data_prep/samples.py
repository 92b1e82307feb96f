"""The samples of a shard, as its tar tells them: which key, where the image, which labels.

Used on tars just written, on tars to verify and on tars made by others. webdataset groups
neighbours of one key and drops the halves of a sample whose members lie apart; here that is an
error, like a key that stands twice and like members that webdataset would run as code.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple

from data_prep.archive import Member, walk
from pipeline.data.index import IMAGE_SUFFIXES, split_name
from pipeline.spec import Misuse

Label = int | str
_CODE_SUFFIXES = frozenset({"pyd", "pkl", "pickle", "pt", "pth"})
_LABEL_SUFFIXES = ("cls", "json")
_LABEL_FIELDS = ("labels", "label", "cls")
_MAX_LABEL_BYTES = 1 << 20


class Sample(NamedTuple):
    """One sample: the image's place in the tar, and the raw label members."""

    key: str
    header: int
    offset: int
    size: int
    labels: tuple[Label, ...]


def scan(tar: Path) -> list[Sample]:
    """Return the samples of a shard, in order.

    Raises:
        Misuse: names the tar and the key: truncated tar, interleaved or double key, a member that
            is no plain file or holds code, no image, two images, no label.
    """
    groups: list[tuple[str, dict[str, Member]]] = []
    for member in walk(tar):
        if member.is_folder:
            continue
        if member.problem:
            raise Misuse(f"{tar}: member '{member.name}' is refused: {member.problem}")
        key, suffix = split_name(member.name)
        if suffix.rpartition(".")[2] in _CODE_SUFFIXES:
            raise Misuse(
                f"{tar}: member '{member.name}' would be run as code by webdataset's decoder; "
                "write the shard again without it"
            )
        if not groups or groups[-1][0] != key:
            groups.append((key, {}))
        if suffix in groups[-1][1]:
            raise Misuse(f"{tar}: key '{key}' has two members .{suffix}; give samples unique keys")
        groups[-1][1][suffix] = member
    _check_unique(tar, [key for key, _ in groups])
    handle = os.open(tar, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return [_sample(tar, handle, key, members) for key, members in groups]
    finally:
        os.close(handle)


def _check_unique(tar: Path, keys: list[str]) -> None:
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise Misuse(
                f"{tar}: key '{key}' comes again after other keys (interleaved or double); sort "
                "the members by name and give samples unique keys, then write the tar again"
            )
        seen.add(key)


def _sample(tar: Path, handle: int, key: str, members: dict[str, Member]) -> Sample:
    images = [member for suffix, member in members.items() if suffix in IMAGE_SUFFIXES]
    if len(images) != 1:
        kinds = ", ".join(f".{suffix}" for suffix in IMAGE_SUFFIXES)
        found = ", ".join(f".{suffix}" for suffix in members)
        raise Misuse(f"{tar}: key '{key}' has members {found}; it needs exactly one of {kinds}")
    image = images[0]
    return Sample(key, image.header, image.offset, image.size, _labels(tar, handle, key, members))


def _labels(tar: Path, handle: int, key: str, members: dict[str, Member]) -> tuple[Label, ...]:
    """Return the labels; key.json's list goes before key.cls."""
    raw = {
        suffix: os.pread(
            handle, min(members[suffix].size, _MAX_LABEL_BYTES), members[suffix].offset
        )
        for suffix in _LABEL_SUFFIXES
        if suffix in members
    }
    found: tuple[Label, ...] = ()
    if "json" in raw:
        found = _from_json(tar, key, raw["json"])
    if not found and "cls" in raw:
        found = _clean((raw["cls"].decode("utf-8", "replace").strip(),))
    if not found:
        raise Misuse(
            f"{tar}: key '{key}' has no label; it needs {key}.cls, or {key}.json with a field "
            f"{' or '.join(_LABEL_FIELDS)}"
        )
    return found


def _from_json(tar: Path, key: str, raw: bytes) -> tuple[Label, ...]:
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Misuse(f"{tar}: {key}.json is not JSON: {error}") from None
    for field in _LABEL_FIELDS:
        value = values.get(field) if isinstance(values, dict) else None
        if isinstance(value, int | str | list):
            return _clean(value if isinstance(value, list) else [value])
    return ()


def _clean(values: list[object] | tuple[object, ...]) -> tuple[Label, ...]:
    """Keep class names and indices; a name that is a number is an index."""
    kept = [v for v in values if isinstance(v, int | str) and not isinstance(v, bool) and v != ""]
    return tuple(int(v) if str(v).isdecimal() else v for v in kept)
