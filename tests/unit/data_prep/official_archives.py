"""Small archives of exactly the layouts in which the transfer sets are handed out."""

import copy
import io
import struct
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import scipy.io

from data_prep.catalogue import Reader
from data_prep.layouts import LAYOUTS, LayoutOptions
from data_prep.population import Item, Placed
from data_prep.sources import Source, write_catalogue

Files = dict[str, bytes]
Archives = dict[str, Files | bytes]
"""Archive -> its members, or a file that lies beside the archives."""
OPTIONS = LayoutOptions(splits=None, eval_labels=None, eval_prefix="", classes=(), label_space="")


def write(folder: Path, archives: Archives) -> Path:
    """Write archives, and what lies beside them, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, files in archives.items():
        if isinstance(files, bytes):
            (folder / name).write_bytes(files)
            continue
        with tarfile.open(folder / name, "w:gz" if name.endswith("gz") else "w") as tar:
            for path, data in files.items():
                member = tarfile.TarInfo(path)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return folder


def unpack(folder: Path, archives: Mapping[str, Files | bytes]) -> Path:
    """Write the members of all archives into a folder."""
    for name, files in archives.items():
        members = {name: files} if isinstance(files, bytes) else files
        for path, data in members.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
    return folder


class Found:
    """What a layout made of a source."""

    def __init__(self, source: Path, layout: str, options: LayoutOptions = OPTIONS) -> None:
        work = source.parent / f"work-{source.name}"
        self.catalogue = write_catalogue([Source(source)], work)
        self.reader = Reader(self.catalogue.containers)
        self.placed: Placed = LAYOUTS[layout](self.catalogue, self.reader, options)
        self.items: list[Item] = list(self.placed.items)
        self.work = work

    def rows(self) -> list[tuple[str, str, bytes]]:
        """Return split, class and bytes of every image."""
        return [(item.split, item.cls, self.reader.read(item.place)) for item in self.items]


def change(archives: Archives, path: str, data: bytes | None) -> Archives:
    """Return the archives with one file replaced, or left out."""
    changed = copy.deepcopy(archives)
    for name, files in archives.items():
        inner = changed[name]
        if name == path:
            changed.pop(name)
            if data is not None:
                changed[name] = data
        elif isinstance(files, dict) and isinstance(inner, dict) and path in files:
            inner.pop(path)
            if data is not None:
                inner[path] = data
    assert changed != archives, path
    return changed


def python_2(fields: Mapping[str, object]) -> bytes:
    """Pickle a dictionary as cPickle of Python 2 did for CIFAR: protocol 2, byte strings."""
    memo = iter(range(1, 256))

    def put() -> bytes:
        return b"q" + bytes([next(memo)])

    def text(value: str) -> bytes:
        return b"U" + bytes([len(value)]) + value.encode() + put()

    def array(value: np.ndarray) -> bytes:
        rows, columns = value.shape
        shape = b"".join(b"M" + struct.pack("<H", count) for count in (rows, columns)) + b"\x86"
        kind = b"cnumpy\ndtype\n" + put() + b"U\x02u1K\x00K\x01\x87R" + put()
        kind += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        start = b"cnumpy.core.multiarray\n_reconstruct\n" + put() + b"cnumpy\nndarray\n" + put()
        start += b"K\x00\x85U\x01b\x87R" + put() + b"(K\x01" + shape
        return start + kind + b"\x89T" + struct.pack("<i", value.size) + value.tobytes() + b"tb"

    def value_of(value: object) -> bytes:
        if isinstance(value, str):
            return text(value)
        if isinstance(value, int):
            return b"M" + struct.pack("<H", value)
        if isinstance(value, np.ndarray):
            return array(value)
        assert isinstance(value, list)
        return b"]" + put() + b"(" + b"".join(map(value_of, value)) + b"e"

    items = b"".join(text(key) + value_of(value) for key, value in fields.items())
    return b"\x80\x02}" + put() + b"(" + items + b"u."


def mat(**variables: object) -> bytes:
    """Return a .mat file."""
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, variables)
    return buffer.getvalue()


def images_of(*paths: str) -> Files:
    """Return files whose bytes tell their path."""
    return {path: f"pixels of {path}".encode() for path in paths}


def lines_of(*lines: str) -> bytes:
    """Return a text file."""
    return "".join(f"{line}\n" for line in lines).encode()


def flowers() -> Archives:
    """Oxford Flowers-102, six images."""
    return {
        "102flowers.tgz": images_of(*(f"jpg/image_{number:05d}.jpg" for number in range(1, 7))),
        "imagelabels.mat": mat(labels=np.array([[77, 77, 1, 102, 1, 2]], np.uint8)),
        "setid.mat": mat(
            trnid=np.array([[3, 1]], np.uint16),
            valid=np.array([[2]], np.uint16),
            tstid=np.array([[4, 6, 5]], np.uint16),
        ),
    }


def pets() -> Archives:
    """Oxford-IIIT Pets, three breeds."""
    images = images_of("images/Abyssinian_100.jpg", "images/american_bulldog_1.jpg")
    images |= images_of(
        "images/american_bulldog_2.jpg", "images/Birman_7.jpg", "images/Birman_8.jpg"
    )
    return {
        "images.tar.gz": {**images, "images/Abyssinian_100.mat": b"MATLAB", "images/._x.jpg": b""},
        "annotations.tar.gz": {
            "annotations/README": b"Oxford-IIIT Pet Dataset",
            "annotations/list.txt": lines_of("#Image CLASS-ID SPECIES BREED ID", "#ID: 1:37"),
            "annotations/trainval.txt": lines_of(
                "Abyssinian_100 1 1 1", "american_bulldog_1 2 2 1", "Birman_7 3 1 2"
            ),
            "annotations/test.txt": lines_of("american_bulldog_2 2 2 1", "Birman_8 3 1 2"),
            "annotations/trimaps/Abyssinian_100.png": b"PNG",
            "annotations/trimaps/._Abyssinian_100.png": b"Mac OS X",
            "annotations/xmls/Abyssinian_100.xml": b"<annotation>",
        },
    }


CAR_NAMES = np.array([["AM General Hummer SUV 2000", "Acura RL Sedan 2012"]], object)


def annotations_of(*rows: tuple[object, ...], names: tuple[str, ...]) -> bytes:
    """Return a .mat file with a struct array `annotations`."""
    dtype = [(name, object) for name in names]
    return mat(annotations=np.array([list(rows)], dtype))


def cars() -> Archives:
    """Stanford Cars in its form of two archives of images."""
    box = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
    test = ((30, 52, 246, 147, 2, "00001.jpg"), (1, 2, 3, 4, 1, "00002.jpg"))
    train = ((39, 116, 569, 375, 1, "00001.jpg"), (36, 116, 868, 587, 2, "00002.jpg"))
    return {
        "cars_train.tgz": images_of("cars_train/00001.jpg", "cars_train/00002.jpg"),
        "cars_test.tgz": images_of("cars_test/00001.jpg", "cars_test/00002.jpg"),
        "car_devkit.tgz": {
            "devkit/cars_meta.mat": mat(class_names=CAR_NAMES),
            "devkit/cars_train_annos.mat": annotations_of(*train, names=(*box, "class", "fname")),
            "devkit/cars_test_annos.mat": annotations_of(
                *((*row[:4], row[5]) for row in test), names=(*box, "fname")
            ),
            "devkit/README.txt": b"This file gives documentation",
            "devkit/train_perfect_preds.txt": lines_of("1", "2"),
        },
        "cars_test_annos_withlabels.mat": annotations_of(*test, names=(*box, "class", "fname")),
    }


def cars_whole() -> Archives:
    """Stanford Cars in its form of one archive of images."""
    names = ("relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test")
    rows = [(f"car_ims/{n:06d}.jpg", 1, 2, 3, 4, n % 2 + 1, int(n > 2)) for n in (1, 2, 3)]
    annotations = np.array([rows], [(name, object) for name in names])
    return {
        "car_ims.tgz": images_of(*(f"car_ims/{number:06d}.jpg" for number in (1, 2, 3))),
        "cars_annos.mat": mat(annotations=annotations, class_names=CAR_NAMES),
    }


def aircraft() -> Archives:
    """FGVC-Aircraft, three variants."""
    base = "fgvc-aircraft-2013b/data"
    images = [f"{base}/images/{number}.jpg" for number in ("1025794", "0034309", "34", "0056978")]
    return {
        "fgvc-aircraft-2013b.tar.gz": {
            "fgvc-aircraft-2013b/README": b"FGVC-Aircraft",
            **images_of(*images),
            f"{base}/variants.txt": lines_of("707-320", "Cessna 172", "F-16A/B"),
            f"{base}/families.txt": lines_of("Boeing 707"),
            f"{base}/images_box.txt": lines_of("1025794 3 144 998 431"),
            f"{base}/images_train.txt": lines_of("1025794"),
            f"{base}/images_variant_train.txt": lines_of("1025794 707-320"),
            f"{base}/images_variant_val.txt": lines_of("0034309 Cessna 172"),
            f"{base}/images_variant_trainval.txt": lines_of(
                "1025794 707-320", "0034309 Cessna 172"
            ),
            f"{base}/images_variant_test.txt": lines_of("34 F-16A/B", "0056978 Cessna 172"),
        }
    }


def food() -> Archives:
    """Food-101, two classes."""
    images = ("apple_pie/1005649", "apple_pie/1011328", "waffles/7", "waffles/8")
    return {
        "food-101.tar.gz": {
            **images_of(*(f"food-101/images/{image}.jpg" for image in images)),
            "food-101/meta/classes.txt": lines_of("apple_pie", "waffles"),
            "food-101/meta/labels.txt": lines_of("Apple pie", "Waffles"),
            "food-101/meta/train.txt": lines_of("apple_pie/1005649", "waffles/7"),
            "food-101/meta/test.txt": lines_of("apple_pie/1011328", "waffles/8"),
            "food-101/meta/train.json": b'{"apple_pie": ["apple_pie/1005649"]}',
            "food-101/license_agreement.txt": b"- The Food-101 data set",
            "food-101/README.txt": b"",
        }
    }


def birdsnap() -> Archives:
    """Birdsnap, two species, and its images as somebody packed them after downloading."""
    head = "url\tmd5\tpath\tspecies_id\tbb_x1\tbb_y1\tbb_x2\tbb_y2\tback_x\tback_y"
    rows = (("Acadian_Flycatcher/1.jpg", 1), ("Acadian_Flycatcher/2.jpg", 1), ("Brant/3.jpg", 2))
    lines = [
        f"http://x/{path}\t90f2\t{path}\t{number}\t1\t2\t3\t4\tnull\tnull" for path, number in rows
    ]
    return {
        "birdsnap.tgz": {
            "birdsnap/species.txt": lines_of(
                "id\tcommon\tscientific\tdir",
                "1\tAcadian Flycatcher\tEmpidonax virescens\tAcadian_Flycatcher",
                "2\tBrant\tBranta bernicla\tBrant",
            ),
            "birdsnap/images.txt": lines_of(head, *lines),
            "birdsnap/test_images.txt": lines_of("path", "Acadian_Flycatcher/2.jpg"),
            "birdsnap/get_birdsnap.py": b"import urllib2",
            "birdsnap/readme.txt": b"Birdsnap Dataset v 1.1.",
        },
        "download.tar": images_of(*(f"download/images/{path}" for path, _ in rows)),
    }


SETS: dict[str, tuple[str, Callable[[], Archives]]] = {
    "flowers": ("flowers102", flowers),
    "pets": ("pets", pets),
    "cars": ("cars", cars),
    "cars_whole": ("cars", cars_whole),
    "aircraft": ("aircraft", aircraft),
    "food": ("food101", food),
    "birdsnap": ("birdsnap", birdsnap),
}
"""Name -> the layout that reads it, its builder."""
