"""`index`: give webdataset tars made by others an index and a manifest, and leave them as they are.

Images are key.jpg, key.jpeg, key.png or key.webp; labels key.cls (an index or a class name) or
key.json with a field labels, label or cls. Headers are read, not pixels: `verify --decode` does.
"""

import io
import os
import warnings
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np
from PIL import Image

from data_prep.clean import FORMATS, MAX_IMAGE_BYTES, MAX_SIDE_PX
from data_prep.failure import naming_full_disk
from data_prep.options import TOOL
from data_prep.pool import Progress, run
from data_prep.samples import Label, Sample, scan
from data_prep.write import index_entries, sha256_of, write_index
from pipeline.data.labels import LabelSpace
from pipeline.data.manifest import FILE, Holdout, Manifest, Split, save_manifest
from pipeline.spec import Misuse


class _Scanned(NamedTuple):
    tar: Path
    labels: list[tuple[Label, ...]]
    entries: np.ndarray
    sha256: str


def index_tars(
    folder: Path, globs: dict[str, str], classes: tuple[str, ...], name: str, workers: int
) -> Manifest:
    """Write `X.idx.npy` and `X.lab.npy` beside each tar, then the manifest.

    Args:
        folder: where the tars lie.
        globs: split -> pattern of paths below `folder`; empty: subfolders are splits, tars at
            the top are train.
        classes: names in index order; empty: taken from the labels themselves.
        name: of the data set.
        workers: processes.

    Raises:
        Misuse: no tars, a manifest is there already, or a tar breaks the rules of `samples.scan`.
        Failed: the disk is full or a worker died.
    """
    splits = _find(folder, globs)
    tars = [folder / file for files in splits.values() for file in files]
    scanned: dict[Path, _Scanned] = {}
    with Progress("index", "images") as progress:
        for found in run(_scan, tars, workers):
            scanned[found.tar] = found
            progress.add(len(found.labels))
    space = _label_space(list(scanned.values()), classes, name)
    with naming_full_disk(folder, 40 * sum(len(found.labels) for found in scanned.values())):
        written = {
            split: _write_split(folder, [scanned[folder / file] for file in files], space)
            for split, files in splits.items()
        }
        values = {"name": name, "tool": TOOL, "holdout": Holdout(rule="unknown")}
        values |= {"labels": space, "splits": written}
        manifest = Manifest.parse(values, str(folder))
        save_manifest(folder, manifest)
    return manifest


def _write_split(folder: Path, tars: list[_Scanned], space: LabelSpace) -> Split:
    where: dict[Label, int] = {label: number for number, label in enumerate(space.classes)}
    counts = np.zeros(len(space), np.int64)
    shards = []
    for found in tars:
        labels = [_indices(found.tar, its, where) for its in found.labels]
        np.add.at(counts, [label for its in labels for label in its], 1)
        file = found.tar.relative_to(folder).as_posix()
        shards.append(write_index(folder, file, found.entries, labels, found.sha256))
    return Split(shards=tuple(shards), class_counts=tuple(counts.tolist()))


def _find(folder: Path, globs: dict[str, str]) -> dict[str, list[str]]:
    """Return the tars of each split, sorted."""
    if not folder.is_dir():
        raise Misuse(f"{folder}: no such folder")
    if (folder / FILE).exists():
        raise Misuse(f"{folder / FILE}: is there already; remove it to index these tars again")
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.tar"))
    splits: dict[str, list[str]] = {}
    for file in files:
        top, slash, _ = file.partition("/")
        names = [split for split, glob in globs.items() if fnmatch(file, glob)]
        if len(names) > 1:
            raise Misuse(f"--split: {file} matches the patterns of {' and '.join(names)}")
        if not globs:
            names = [top if slash else "train"]
        for split in names:
            splits.setdefault(split, []).append(file)
    for split, glob in globs.items():
        if split not in splits:
            raise Misuse(f"--split: no tar below {folder} matches {split}={glob}")
    if not splits:
        raise Misuse(f"{folder}: no tar in it; give the folder of webdataset shards")
    return splits


def _scan(tar: Path) -> _Scanned:
    samples = scan(tar)
    if not samples:
        raise Misuse(f"{tar}: holds no sample; remove it")
    crc32c = np.zeros(len(samples), np.uint32)
    sizes = np.zeros((len(samples), 2), np.uint16)
    handle = os.open(tar, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for row, sample in enumerate(samples):
            crc32c[row], sizes[row] = _measure(tar, handle, sample)
    finally:
        os.close(handle)
    labels = [sample.labels for sample in samples]
    entries = index_entries(samples, [len(its) for its in labels], crc32c, sizes)
    return _Scanned(tar, labels, entries, sha256_of(tar))


def _measure(tar: Path, handle: int, sample: Sample) -> tuple[int, tuple[int, int]]:
    """Return crc32c and size in pixels of one image."""
    try:
        if sample.size > MAX_IMAGE_BYTES:
            raise ValueError(f"{sample.size} bytes are too many for one image")
        data = os.pread(handle, sample.size, sample.offset)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if max(image.size) > MAX_SIDE_PX:
                    raise ValueError(f"{image.size} pixels are too many")
                return google_crc32c.value(data), image.size
    except Exception as error:  # whatever a parser raises on hostile bytes
        raise Misuse(
            f"{tar}: key '{sample.key}': its image cannot be used ({error}); write the shard "
            "again without it"
        ) from None


def _label_space(scanned: list[_Scanned], classes: tuple[str, ...], name: str) -> LabelSpace:
    if not classes:
        found = {label for one in scanned for its in one.labels for label in its}
        names = sorted(label for label in found if isinstance(label, str))
        numbers = [label for label in found if isinstance(label, int)]
        if names and numbers:
            raise Misuse(
                f"labels are names ('{names[0]}') and numbers ({numbers[0]}) at once; give the "
                "class list with --classes-file"
            )
        classes = tuple(names) or tuple(str(number) for number in range(max(numbers) + 1))
    return LabelSpace.parse({"name": name, "classes": classes}, "label space")


def _indices(tar: Path, labels: tuple[Label, ...], where: dict[Label, int]) -> tuple[int, ...]:
    indices = tuple(label if isinstance(label, int) else where.get(label, -1) for label in labels)
    if min(indices) < 0 or max(indices) >= len(where):
        raise Misuse(
            f"{tar}: label {labels} is not among the {len(where)} classes; correct --classes-file"
        )
    return indices
