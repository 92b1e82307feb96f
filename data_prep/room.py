"""Too little room on the disks, said before the work starts and not hours later."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_prep.failure import Failed
from data_prep.options import BuildSpec
from data_prep.plan import State
from data_prep.sources import Source

_SAMPLE_BYTES = 512 + 1024 + 34 + 4
"""Of a sample beside its image: tar headers, label, index."""


def check_sources_room(
    out: Path, work: Path, spec: BuildSpec, sources: Sequence[Source], states: Sequence[State]
) -> None:
    """Refuse before anything is read, where the archives alone say that the shards do not fit.

    Folders may hold other things, and a choice of classes may need much less: then only the
    listing knows.

    Raises:
        Failed: names what is needed, what there is, and the remedy.
    """
    if spec.classes or not all(source.path.is_file() for source in sources):
        return
    check_room(out, work, spec, sum(state.num_bytes for state in states), 0)


def check_room(out: Path, work: Path, spec: BuildSpec, num_bytes: int, num_images: int) -> None:
    """Refuse where the images, `num_bytes` in the sources, do not fit as shards.

    Resized images and a number per class need less, nobody knows how much: they are not counted,
    and a full disk is named when it comes.

    Raises:
        Failed: names what is needed, what there is, and the remedy.
    """
    kind = spec.transcode.kind
    needs: dict[int, int] = {}
    if kind != "resize" and spec.per_class is None:
        shards = num_bytes + _SAMPLE_BYTES * num_images - _bytes_of(out.glob("*/shard-*.tar"))
        needs[_device(out)] = max(shards, 0)
    if kind == "lossless":
        spooled = num_bytes - _bytes_of((work / "check").glob("*.bin"))
        needs[_device(work)] = needs.get(_device(work), 0) + max(spooled, 0)
    for folder in (out, work):
        needed, free = needs.get(_device(folder), 0), shutil.disk_usage(_there(folder)).free
        if needed > free:
            raise Failed(
                f"{folder}: about {needed / 1e9:.3f} GB more are needed there, "
                f"{free / 1e9:.3f} GB are free; make room, choose another OUT, or put what is "
                "not for long on another disk with --scratch"
            )


def _bytes_of(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _device(folder: Path) -> int:
    return _there(folder).stat().st_dev


def _there(folder: Path) -> Path:
    """Return the folder, or the first above it that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())
