"""Small archives of exactly the layouts in which ImageNet is handed out."""

import gzip
import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data_prep.catalogue import Reader
from data_prep.layouts import LAYOUTS, LayoutOptions
from data_prep.sources import Source, write_catalogue
from tests.unit.data_prep.official_archives import mat

Files = dict[str, bytes]
TENCH, FISH, SHARK = "n01440764", "n01443537", "n01484850"
TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT_TAR = "ILSVRC2012_devkit_t12.tar.gz"
TRUTH = "ILSVRC2012_validation_ground_truth.txt"
SYNSETS = "imagenet_2012_validation_synset_labels.txt"
IDS = {SHARK: 1, TENCH: 2, FISH: 999}
"""As in the devkit, whose ids are not in the order of the synsets."""
VAL = (FISH, TENCH, FISH, SHARK)


def tar(files: Mapping[str, bytes]) -> bytes:
    """Return a tar of {name: content}."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def class_tars(counts: Mapping[str, int], folder: str = "") -> Files:
    """Return {CLASS.tar: a tar of so many images}, numbered downwards."""
    return {
        f"{folder}{synset}.tar": tar(
            {f"{synset}_{n}.JPEG": f"{synset} {n}".encode() for n in range(count, 0, -1)}
        )
        for synset, count in counts.items()
    }


def train_tar(synsets: Sequence[str] = (TENCH, FISH, SHARK)) -> bytes:
    """Return a train tar with two images a class."""
    return tar(class_tars(dict.fromkeys(synsets, 2)))


def val_file(number: int) -> str:
    """Return the name of a validation image."""
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def val_tar(count: int = len(VAL)) -> bytes:
    """Return a validation tar, in another order than that of the names."""
    return tar({val_file(n): f"val {n}".encode() for n in range(count, 0, -1)})


def meta(ids: Mapping[str, int] = IDS) -> bytes:
    """Return meta.mat: a struct array of synsets, with inner nodes of WordNet behind them."""
    rows = [*((number, name, "words", 0) for name, number in ids.items())]
    rows.append((1001, "n00001740", "entity", 3))
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    return mat(synsets=np.array(rows, dtype=fields).reshape(-1, 1))


def truth_lines(*values: object) -> bytes:
    """Return one value a line."""
    return "".join(f"{value}\n" for value in values).encode()


def devkit(truth: bytes | None = None, meta_mat: bytes | None = None) -> bytes:
    """Return the devkit with the files that matter and one that does not."""
    folder = "ILSVRC2012_devkit_t12"
    files = {
        f"{folder}/readme.txt": b"ImageNet",
        f"{folder}/data/meta.mat": meta() if meta_mat is None else meta_mat,
        f"{folder}/data/{TRUTH}": truth or truth_lines(*(IDS[synset] for synset in VAL)),
    }
    return gzip.compress(tar(files), mtime=0)


def ilsvrc() -> Files:
    """Return the archives of ImageNet-1k: three classes, four validation images."""
    return {TRAIN_TAR: train_tar(), VAL_TAR: val_tar(), DEVKIT_TAR: devkit()}


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files below a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


class Found:
    """What a layout made of a source: (split, class, bytes) of each image, by name."""

    def __init__(self, source: Path, layout: str, **options: object) -> None:
        self.catalogue = write_catalogue([Source(source)], source.parent / f"work-{source.name}")
        reader = Reader(self.catalogue.containers)
        given = LayoutOptions(**options)  # type: ignore[arg-type]
        self.placed = LAYOUTS[layout](self.catalogue, reader, given)
        self.items = {
            item.place.name: (item.split, item.cls, reader.read(item.place).decode())
            for item in self.placed.items
        }
        reader.close()

    def of(self, split: str) -> list[tuple[str, str]]:
        """Return class and bytes of the images of a split, sorted."""
        return sorted(item[1:] for item in self.items.values() if item[0] == split)

    def refused(self) -> dict[str, str]:
        """Return the reason for each file that was refused."""
        return {note.file: note.reason for note in self.placed.refused}

    def names(self, split: str, synset: str) -> list[str]:
        """Return the names of the images of one class in a split."""
        return [name for name, item in self.items.items() if item[:2] == (split, synset)]
