"""Too little room on the disks, said before the work starts and not hours later.

What is sure to be needed is refused where it does not fit. What may be needed at most (resized
images, some classes only) is said, and the work goes on: it may well take a tenth.
"""

import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from data_prep.failure import Failed
from data_prep.options import BuildSpec
from data_prep.plan import State
from data_prep.sources import SPOOLS, Source, gzips_on_top
from data_prep.spool import room_for

_SAMPLE_BYTES = 512 + 1024 + 34 + 4
"""Of a sample beside its image: tar headers, label, index."""


class _Need(NamedTuple):
    folder: Path
    num_bytes: int
    what: str
    is_sure: bool
    """Else it is an upper bound."""


def check_sources_room(
    out: Path, work: Path, spec: BuildSpec, sources: Sequence[Source], states: Sequence[State]
) -> None:
    """Refuse before the sources are read, where they alone say that the disks are too small.

    What is inside a gzip counts twice, as spools and as shards: both are there when shards are
    written. Folders may hold other things, and a choice of images may need much less than all.

    Raises:
        Failed: names what is needed, what there is, and the remedy.
        Damaged: the beginning of a gzip cannot be inflated.
    """
    num_bytes = spools = 0
    for source, state in zip(sources, states, strict=True):
        gzips = [room_for(gzip, work / SPOOLS, spec.seed) for gzip in gzips_on_top(source)]
        is_plain = source.path.is_file() and not gzips
        num_bytes += state.num_bytes if is_plain else sum(inside for inside, _ in gzips)
        spools += sum(needed for _, needed in gzips)
    is_sure = not (spec.classes or spec.label_space or spec.splits)
    is_sure &= all(source.path.is_file() for source in sources)
    needs = [_Need(work, spools, "for what is inside the gzips", True)]
    _compare(out, work, needs + _needs(out, work, spec, num_bytes, 0, is_sure))


def check_room(out: Path, work: Path, spec: BuildSpec, num_bytes: int, num_images: int) -> None:
    """Refuse where the images, `num_bytes` in the sources, do not fit as shards.

    Raises:
        Failed: names what is needed, what there is, and the remedy.
    """
    _compare(out, work, _needs(out, work, spec, num_bytes, num_images, True))


def _needs(
    out: Path, work: Path, spec: BuildSpec, num_bytes: int, num_images: int, is_sure: bool
) -> list[_Need]:
    """Return what images take as shards, and until these are written, beyond what is there."""
    kind = spec.transcode.kind
    shards = num_bytes + _SAMPLE_BYTES * num_images - _bytes_of(out.glob("*/shard-*.tar"))
    all_stored = is_sure and kind != "resize" and spec.per_class is None
    needs = [_Need(out, max(shards, 0), "for the shards", all_stored)]
    if kind != "none":
        encoded = num_bytes - _bytes_of((work / "check").glob("*.bin"))
        what = "for the images as they are encoded"
        needs.append(_Need(work, max(encoded, 0), what, is_sure and kind == "lossless"))
    return needs


def _compare(out: Path, work: Path, needs: Sequence[_Need]) -> None:
    for device, folder in {_device(each): each for each in (work, out)}.items():
        free = shutil.disk_usage(_there(folder)).free
        here = [need for need in needs if need.num_bytes and _device(need.folder) == device]
        sure = [need for need in here if need.is_sure]
        if _sum(sure) > free:
            raise Failed(
                f"{folder}: about {_sum(sure) / 1e9:.3f} GB more are needed there, "
                f"{free / 1e9:.3f} GB are free; make room, choose another OUT, or put what is "
                f"not for long on another disk with --scratch ({_told(sure)})"
            )
        if _sum(here) > free:
            print(
                f"{folder}: up to {_sum(here) / 1e9:.3f} GB more are needed there, "
                f"{free / 1e9:.3f} GB are free; should the disk fill up, what is finished is "
                f"kept ({_told(here)})",
                file=sys.stderr,
            )


def _sum(needs: Iterable[_Need]) -> int:
    return sum(need.num_bytes for need in needs)


def _told(needs: Sequence[_Need]) -> str:
    return ", ".join(f"{need.num_bytes / 1e9:.3f} GB {need.what}" for need in needs)


def _bytes_of(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _device(folder: Path) -> int:
    return _there(folder).stat().st_dev


def _there(folder: Path) -> Path:
    """Return the folder, or the first above it that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())
