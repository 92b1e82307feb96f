"""`labels`: the published label spaces, and what of one is found in another.

A head moves from one label space to another by synset; this tells beforehand what gets lost.
"""

from collections.abc import Sequence
from pathlib import Path

from data_prep.layouts.folders import read_classes
from data_prep.tar import printable
from pipeline.data.labels import PUBLISHED, LabelSpace, convert, name_of, published
from pipeline.data.manifest import FILE, load_manifest
from pipeline.spec import Misuse

_MAX_NAMED = 50
"""So many classes are named before the rest is only counted."""
_DIGEST_CHARS = 12


def run_labels(a: str | None = None, b: str | None = None) -> str:
    """List the published label spaces, compare `a` with each of them, or `a` with `b`.

    Args:
        a: a published name, a folder of shards, or a text file with a class a line in index order.
        b: likewise.

    Raises:
        Misuse: it is none of these.
    """
    if a is None:
        return "\n".join(_describe(published(name)) for name in PUBLISHED)
    space = open_space(a)
    if b is None:
        others = [published(name) for name in PUBLISHED]
        return "\n".join([_describe(space), *(_count(space, other) for other in others)])
    return _compare(space, open_space(b))


def open_space(text: str) -> LabelSpace:
    """Return the label space that a published name, a folder of shards or a file stands for.

    Raises:
        Misuse: it is none of these, or cannot be read.
    """
    path = Path(text)
    if text in PUBLISHED:
        return published(text)
    if path.is_dir():
        return load_manifest(path).labels
    if path.name == FILE and path.is_file():
        return load_manifest(path.parent).labels
    if path.exists():
        classes = read_classes(path)
        name = name_of(classes) or printable(path.name)
        return LabelSpace.parse({"name": name, "classes": classes}, str(path))
    raise Misuse(
        f"{text}: no published label space, folder of shards or file of classes; published are: "
        f"{', '.join(PUBLISHED)}"
    )


def _describe(space: LabelSpace) -> str:
    first, last = printable(space.classes[0]), printable(space.classes[-1])
    digest = space.digest()[:_DIGEST_CHARS]
    return f"{space.name}: {len(space):,} classes, {first} to {last}, sha256 {digest}"


def _count(space: LabelSpace, other: LabelSpace) -> str:
    if space.classes == other.classes:
        return f"  equals {other.name}"
    conversion = convert(space, other)
    found = len(space) - len(conversion.missing)
    order = ", at the same indices" if _keeps_indices(conversion.positions) else ""
    return f"  {found:,} of {len(space):,} classes are in {other.name} ({len(other):,}){order}"


def _compare(space: LabelSpace, other: LabelSpace) -> str:
    conversion = convert(space, other)
    lines = [_describe(space), _describe(other), _count(space, other)]
    for names, where, lacks in (
        (conversion.missing, space, other),
        (conversion.extra, other, space),
    ):
        if names:
            some = _enumerate(names)
            lines.append(f"  {len(names):,} of {where.name} are missing in {lacks.name}: {some}")
    return "\n".join(lines)


def _keeps_indices(positions: Sequence[int]) -> bool:
    return all(index == position for index, position in enumerate(positions))


def _enumerate(names: Sequence[str]) -> str:
    more = len(names) - _MAX_NAMED
    shown = ", ".join(map(printable, names[:_MAX_NAMED]))
    return f"{shown} and {more:,} more" if more > 0 else shown
