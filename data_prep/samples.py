"""The samples of a shard, as its tar tells them: which key, where the image, which labels.

Used on tars to verify and on tars made by others. What a sample is follows webdataset: the key is
the name up to the first dot, and names without a stem or without a dot belong to no sample.
webdataset groups neighbours of one key and drops the halves of a sample whose members lie apart;
here they are put together, and the caller decides whether that will do.
"""

import json
import os
import re
from pathlib import Path
from typing import NamedTuple

from data_prep.catalogue import Note
from data_prep.tar import Member, printable, walk
from pipeline.data.index import IMAGE_SUFFIXES, split_name
from pipeline.spec import Misuse

Label = int | str
MAX_LABELS = 1000
"""Of one sample."""
_CODE_SUFFIXES = frozenset({"pyd", "pkl", "pickle", "pt", "pth"})
_LABEL_FIELDS = ("label", "labels", "cls")
_MAX_LABEL_BYTES = 1 << 20
_MAX_NAME = 256
_INDEX = re.compile(r"-?[0-9]{1,9}", re.ASCII)
_META = re.compile(r"__[^/]*__(/|$)")  # members of webdataset's own


class Sample(NamedTuple):
    """One sample: the image's place in the tar, and its labels."""

    key: str
    header: int
    offset: int
    size: int
    labels: tuple[Label, ...]


class Scan(NamedTuple):
    """What a tar holds; samples are in the order of their first members."""

    samples: list[Sample]
    broken: list[Note]
    """Samples without a usable image or label: `file` is the key."""
    apart: str
    """The first key whose members do not lie together; empty: there is none."""
    strangers: list[str]
    """Members that belong to no sample."""


class _Broken(ValueError):
    """A sample that cannot be used: short kind and full reason."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def scan(tar: Path, label_field: str = "") -> Scan:
    """Return the samples of a shard.

    Args:
        tar: the shard.
        label_field: the field of key.json that holds the label or labels. Empty: they are the list
            `labels` of key.json, else key.cls, else the field `label`, `labels` or `cls` of
            key.json.

    Raises:
        Misuse: names the tar and the member: truncated tar, a member that is no plain file or
            holds code, a key with two members of one suffix.
    """
    groups: dict[str, dict[str, Member]] = {}
    strangers: list[str] = []
    apart = last = ""
    for member in walk(tar):
        if member.is_folder:
            continue
        if member.problem:
            raise Misuse(f"{tar}: member '{member.name}' is refused: {member.problem}")
        key, suffix = split_name(member.name)
        if not suffix or not key or key.endswith("/") or _META.match(member.name):
            strangers.append(member.name)
            continue
        if key != last and key in groups:
            apart = apart or key
        _add(tar, groups.setdefault(key, {}), key, suffix, member)
        last = key
    return _read(tar, groups, label_field, apart, strangers)


def _add(tar: Path, group: dict[str, Member], key: str, suffix: str, member: Member) -> None:
    if not _CODE_SUFFIXES.isdisjoint(suffix.split(".")):
        raise Misuse(
            f"{tar}: member '{member.name}' would be run as code by webdataset's decoder; "
            "write the shard again without it"
        )
    if suffix in group:
        raise Misuse(f"{tar}: key '{key}' has two members .{suffix}; give samples unique keys")
    group[suffix] = member


def _read(
    tar: Path,
    groups: dict[str, dict[str, Member]],
    label_field: str,
    apart: str,
    strangers: list[str],
) -> Scan:
    found = Scan([], [], apart, strangers)
    handle = os.open(tar, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for key, members in groups.items():
            try:
                image = _image(members)
                labels = _labels(handle, key, members, label_field)
            except _Broken as error:
                reason = str(error) + _failure(handle, members)
                found.broken.append(Note(key, error.kind, reason))
                continue
            found.samples.append(Sample(key, image.header, image.offset, image.size, labels))
    finally:
        os.close(handle)
    return found


def _image(members: dict[str, Member]) -> Member:
    images = [member for suffix, member in members.items() if suffix in IMAGE_SUFFIXES]
    if len(images) == 1:
        return images[0]
    kinds = ", ".join(f".{suffix}" for suffix in IMAGE_SUFFIXES)
    found = ", ".join(f".{printable(suffix)}" for suffix in members)
    kind = "two images" if images else "no image"
    raise _Broken(kind, f"has members {found[:_MAX_NAME]}; it needs exactly one of {kinds}")


def _labels(
    handle: int, key: str, members: dict[str, Member], label_field: str
) -> tuple[Label, ...]:
    """Return the labels of a sample, at least one; each is an index or the name of a class."""
    values = _json(handle, members) if "json" in members else {}
    if label_field:
        found = _clean(values.get(label_field))
        wanted = f"{key}.json with a field '{label_field}'"
    else:
        several = values.get("labels")
        found = _clean(several if isinstance(several, list) else None)
        if not found and "cls" in members:
            found = _clean(_text(handle, members["cls"]))
        for field in _LABEL_FIELDS:
            found = found or _clean(values.get(field))
        wanted = f"{key}.cls, or {key}.json with a field {' or '.join(_LABEL_FIELDS)}"
    if not found:
        fields = ", ".join(sorted(map(printable, values)))[:_MAX_NAME]
        hint = f"; the fields of its json are: {fields}" if fields else ""
        raise _Broken("no label", f"has no label; it needs {wanted}{hint}")
    if len(found) > MAX_LABELS:
        raise _Broken("too many labels", f"has {len(found)} labels, over {MAX_LABELS}")
    return found


def _json(handle: int, members: dict[str, Member]) -> dict[str, object]:
    try:
        values = json.loads(_text(handle, members["json"]))
    except (ValueError, RecursionError) as error:
        if isinstance(error, _Broken):
            raise
        raise _Broken("bad json", f"its json is no JSON: {error}") from None
    return values if isinstance(values, dict) else {}


def _text(handle: int, member: Member) -> str:
    if member.size > _MAX_LABEL_BYTES:
        reason = f"'{member.name}' has {member.size} bytes, over {_MAX_LABEL_BYTES}: no label"
        raise _Broken("no label", reason)
    raw = os.pread(handle, member.size, member.offset)
    try:
        return raw.decode().strip()
    except UnicodeDecodeError:
        shown = raw[:8].hex(" ")
        raise _Broken("no label", f"'{member.name}' is no text: starts with {shown}") from None


def _clean(value: object) -> tuple[Label, ...]:
    """Keep class names and indices; a name that is a number is an index."""
    kept: dict[Label, None] = {}
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, bool) or not isinstance(one, int | str):
            continue
        text = str(one) if isinstance(one, int) and abs(one) < 1 << 31 else one
        if not isinstance(text, str) or not 0 < len(text) <= _MAX_NAME or not text.isprintable():
            continue
        kept[int(text) if _INDEX.fullmatch(text) else text] = None
    return tuple(kept)


def _failure(handle: int, members: dict[str, Member]) -> str:
    """Return what img2dataset noted of a download that failed."""
    try:
        values = _json(handle, members) if "json" in members else {}
    except _Broken:
        return ""
    if values.get("status") in (None, "success"):
        return ""
    told = f"{values['status']}: {values.get('error_message')}"
    return f" ({printable(told)[:_MAX_NAME]})"
