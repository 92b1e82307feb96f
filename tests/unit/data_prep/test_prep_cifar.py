"""CIFAR-10 and -100: images are slices of the batches, whichever form the archive has."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from data_prep.catalogue import Reader
from data_prep.layouts import LAYOUTS
from data_prep.population import LabelChoice, Placed, write_population
from data_prep.sources import Source, write_catalogue
from pipeline.spec import Misuse
from tests.unit.data_prep.official_archives import OPTIONS, Files, python_2, unpack, write

ROWS = 3
CLASSES = ("airplane", "automobile", "bird", "cat")
FINE = ("apple", "aquarium_fish", "baby")
RNG = np.random.default_rng(0)
BATCHES = {
    name: RNG.integers(0, 256, (ROWS, 3072), np.uint8)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
}
LABELS = {name: [number % 4, 3, 0] for number, name in enumerate(BATCHES)}


def _names(name: str) -> list[str]:
    return [f"{name}_s_{row:06d}.png" for row in range(ROWS)]


def _batch(name: str, **other: object) -> dict[str, object]:
    number = name.rpartition("_")[2]
    fields: dict[str, object] = {
        "batch_label": f"training batch {number} of 5",
        "labels": LABELS[name],
        "data": BATCHES[name],
        "filenames": _names("jeep"),
    }
    return {**fields, **other}


def cifar10_python() -> Files:
    files = {f"cifar-10-batches-py/{name}": python_2(_batch(name)) for name in BATCHES}
    meta = {"num_cases_per_batch": ROWS, "label_names": list(CLASSES), "num_vis": 3072}
    files["cifar-10-batches-py/batches.meta"] = python_2(meta)
    files["cifar-10-batches-py/readme.html"] = b"<meta HTTP-EQUIV=REFRESH>"
    return files


def _records(pixels: np.ndarray, *labels: list[int]) -> bytes:
    columns = [np.array(column, np.uint8)[:, None] for column in labels]
    return np.hstack([*columns, pixels]).tobytes()


def cifar10_binary() -> Files:
    folder = "cifar-10-batches-bin"
    files = {f"{folder}/{name}.bin": _records(BATCHES[name], LABELS[name]) for name in BATCHES}
    files[f"{folder}/batches.meta.txt"] = "\n".join([*CLASSES, "", ""]).encode()
    files[f"{folder}/readme.html"] = b"<meta HTTP-EQUIV=REFRESH>"
    return files


def cifar100_python() -> Files:
    files: Files = {"cifar-100-python/file.txt~": b""}
    for name, source in (("train", "data_batch_1"), ("test", "test_batch")):
        fields = _batch(source, fine_labels=[2, 0, 1], coarse_labels=[9, 9, 8])
        del fields["labels"]
        files[f"cifar-100-python/{name}"] = python_2(fields)
    meta = {"fine_label_names": list(FINE), "coarse_label_names": ["fruit", "fish"]}
    files["cifar-100-python/meta"] = python_2(meta)
    return files


def cifar100_binary() -> Files:
    files: Files = {"cifar-100-binary/fine_label_names.txt": "\n".join(FINE).encode() + b"\n"}
    files["cifar-100-binary/coarse_label_names.txt"] = b"fruit\nfish\n"
    for name, source in (("train", "data_batch_1"), ("test", "test_batch")):
        data = _records(BATCHES[source], [9, 9, 8], [2, 0, 1])
        files[f"cifar-100-binary/{name}.bin"] = data
    return files


ARCHIVES = {
    "cifar-10-python.tar.gz": ("cifar10", cifar10_python),
    "cifar-10-binary.tar.gz": ("cifar10", cifar10_binary),
    "cifar-100-python.tar.gz": ("cifar100", cifar100_python),
    "cifar-100-binary.tar.gz": ("cifar100", cifar100_binary),
}


def _pack(path: Path, files: Files) -> Path:
    return write(path.parent, {path.name: files}) / path.name


def _unpack(folder: Path, files: Files) -> Path:
    return unpack(folder, {"": files})


def _place(source: Path, layout: str, work: Path) -> tuple[Placed, Reader]:
    """Place a source, and read as the later stages do: from what the population names."""
    catalogue = write_catalogue([Source(source)], work / "catalogue")
    placed = LAYOUTS[layout](catalogue, Reader(catalogue.containers), OPTIONS)
    return placed, Reader(catalogue.containers)


def _expected(layout: str) -> list[tuple[str, str, bytes]]:
    if layout == "cifar10":
        rows = [
            ("eval" if name == "test_batch" else "train", CLASSES[label], pixels.tobytes())
            for name in BATCHES
            for label, pixels in zip(LABELS[name], BATCHES[name], strict=True)
        ]
    else:
        rows = [
            (split, FINE[label], pixels.tobytes())
            for split, name in (("train", "data_batch_1"), ("eval", "test_batch"))
            for label, pixels in zip([2, 0, 1], BATCHES[name], strict=True)
        ]
    return rows


def test_the_builder_writes_true_pickles() -> None:
    true = pickle.loads(python_2(_batch("data_batch_1")), encoding="latin1")
    assert (true["data"] == BATCHES["data_batch_1"]).all()
    assert true["labels"] == LABELS["data_batch_1"] and true["filenames"] == _names("jeep")


@pytest.mark.parametrize("archive", ARCHIVES)
@pytest.mark.parametrize("form", ["archive", "plain tar", "beside others", "unpacked", "inside"])
def test_pixels_splits_and_classes(archive: str, form: str, tmp_path: Path) -> None:
    layout, make = ARCHIVES[archive]
    files = make()
    if form == "archive":
        source = _pack(tmp_path / archive, files)
    elif form == "plain tar":  # what some browsers make of a .tar.gz
        source = _pack(tmp_path / archive.removesuffix(".gz"), files)
    elif form == "beside others":
        source = _pack(tmp_path / "source" / archive, files).parent
        (source / "notes.txt").write_text("x")
    else:
        source = _unpack(tmp_path / "source", files)
        source = source / next(iter(files)).partition("/")[0] if form == "inside" else source
    placed, reader = _place(source, layout, tmp_path)
    items = list(placed.items)
    found = [(item.split, item.cls, reader.read(item.place)) for item in items]
    assert found == _expected(layout)
    assert placed.classes == (CLASSES if layout == "cifar10" else FINE)
    assert {item.pixels for item in items} == {"planes32"}
    assert len({item.place.name for item in items}) == len(items)


def test_names_are_the_images_own(tmp_path: Path) -> None:
    source = _pack(tmp_path / "cifar-10-python.tar.gz", cifar10_python())
    names = [item.place.name for item in _place(source, "cifar10", tmp_path)[0].items]
    assert names[0] == "data_batch_1/jeep_s_000000.png"
    assert names[-1] == "test_batch/jeep_s_000002.png"
    source = _pack(tmp_path / "cifar-10-binary.tar.gz", cifar10_binary())
    names = [item.place.name for item in _place(source, "cifar10", tmp_path / "2")[0].items]
    assert names[0] == "data_batch_1.bin/00000.png"


def test_odd_and_doubled_names_become_numbers(tmp_path: Path) -> None:
    files = cifar10_python()
    odd = ["../../etc/passwd", "jeep.png", "jeep.png"]
    batch = _batch("data_batch_1", filenames=odd)
    files["cifar-10-batches-py/data_batch_1"] = python_2(batch)
    odd = ["00001.png", "\x1b[2J", "00002.png"]
    batch = _batch("data_batch_2", filenames=odd)
    files["cifar-10-batches-py/data_batch_2"] = python_2(batch)
    source = _pack(tmp_path / "cifar-10-python.tar.gz", files)
    names = [item.place.name for item in _place(source, "cifar10", tmp_path)[0].items]
    assert names[:6] == [
        "data_batch_1/00000.png",
        "data_batch_1/jeep.png",
        "data_batch_1/00002.png",
        "data_batch_2/00001.png",
        "data_batch_2/00001-00001.png",
        "data_batch_2/00002.png",
    ]


def test_python_batches_of_today(tmp_path: Path) -> None:
    files = {
        name: pickle.dumps(_batch(name.rpartition("/")[2]), 4) if "_batch" in name else data
        for name, data in cifar10_python().items()
    }
    source = _pack(tmp_path / "cifar-10-python.tar.gz", files)
    placed, reader = _place(source, "cifar10", tmp_path)
    assert [reader.read(item.place) for item in placed.items] == [
        row[2] for row in _expected("cifar10")
    ]


def test_a_population_can_be_read_again(tmp_path: Path) -> None:
    source = _unpack(tmp_path / "source", cifar10_python())
    catalogue = write_catalogue([Source(source)], tmp_path / "work")
    placed = LAYOUTS["cifar10"](catalogue, Reader(catalogue.containers), OPTIONS)
    choice = LabelChoice(None, (), {})
    population = write_population(tmp_path / "population", placed, catalogue.containers, choice)
    reader = Reader(population.containers)
    stored = [reader.read(population.place(row)) for row in range(len(population))]
    assert stored == [row[2] for row in _expected("cifar10")]
    assert population.splits == ["train", "eval"] and population.classes == list(CLASSES)


FIRST = "cifar-10-batches-py/data_batch_1"
BIN = "cifar-10-batches-bin/data_batch_3.bin"
META = "cifar-10-batches-py/batches.meta"
PIXELS = BATCHES["data_batch_1"]
BAD: dict[str, tuple[str, str, bytes | None, str]] = {
    "a batch less": ("cifar-10-python.tar.gz", FIRST, None, "no file data_batch_1 .*it needs cif"),
    "no names": ("cifar-10-python.tar.gz", META, None, "no file batches.meta"),
    "a label too high": (
        "cifar-10-python.tar.gz", FIRST, python_2(_batch("data_batch_1", labels=[0, 4, 1])),
        "image 1 has the label 4, expected 0 to 3",
    ),
    "a label below zero": (
        "cifar-10-python.tar.gz", FIRST, pickle.dumps(_batch("data_batch_1", labels=[0, 1, -1]), 3),
        "image 2 has the label -1",
    ),
    "labels less": (
        "cifar-10-python.tar.gz", FIRST, python_2(_batch("data_batch_1", labels=[0, 1])),
        "3 images and 2 labels",
    ),
    "names less": (
        "cifar-10-python.tar.gz", FIRST, python_2(_batch("data_batch_1", filenames=["a.png"])),
        "3 images and 1 file names",
    ),
    "images of another size": (
        "cifar-10-python.tar.gz", FIRST,
        python_2(_batch("data_batch_1", data=PIXELS[:, :768].copy())), r"shape \(3, 768\)",
    ),
    "images less than the set says": (
        "cifar-10-python.tar.gz", FIRST,
        python_2(_batch("data_batch_1", data=PIXELS[:2], labels=[0, 1], filenames=["a", "b"])),
        "it has 2 images, the set's own file says 3",
    ),
    "no image": (
        "cifar-10-python.tar.gz", FIRST,
        python_2(_batch("data_batch_1", data=PIXELS[:0], labels=[], filenames=[])), "no image",
    ),
    "labels of CIFAR-100": (
        "cifar-10-python.tar.gz", FIRST,
        python_2({"data": PIXELS, "fine_labels": [0, 1, 2]}), "no field 'labels', only data, fine",
    ),
    "a name twice": (
        "cifar-10-python.tar.gz", META, python_2({"label_names": ["cat", "cat"]}),
        "'cat' stands twice",
    ),
    "no names at all": (
        "cifar-10-python.tar.gz", META, python_2({"label_names": []}), "names no class",
    ),
    "a command": (
        "cifar-10-python.tar.gz", FIRST, b"\x80\x02cos\nsystem\nU\x04true\x85R.",
        "names 'os.system', .* nothing in it was run",
    ),
    "a cut batch": (
        "cifar-10-binary.tar.gz", BIN, bytes(3073 * 2 + 100), "6,246 bytes are no multiple of 3,07",
    ),
    "an empty batch": ("cifar-10-binary.tar.gz", BIN, b"", "it has no image"),
    "a wrong label": (
        "cifar-10-binary.tar.gz", BIN, b"\x04" + bytes(3072), "image 0 has the label 4",
    ),
    "no eval": ("cifar-100-binary.tar.gz", "cifar-100-binary/test.bin", None, "no file cifar-100-"),
    "a fine label too high": (
        "cifar-100-binary.tar.gz", "cifar-100-binary/test.bin", b"\x00\x03" + bytes(3072),
        "test.bin: image 0 has the label 3",
    ),
    "a coarse batch": (
        "cifar-100-python.tar.gz", "cifar-100-python/train",
        python_2({"data": PIXELS, "coarse_labels": [0, 1, 2]}), "no field 'fine_labels'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_does_not_fit_is_refused(what: str, tmp_path: Path) -> None:
    archive, name, data, problem = BAD[what]
    layout, make = ARCHIVES[archive]
    files = make()
    del files[name]
    if data is not None:
        files[name] = data
    with pytest.raises(Misuse, match=problem):
        _place(_pack(tmp_path / archive, files), layout, tmp_path)


def test_the_other_cifar_is_refused(tmp_path: Path) -> None:
    source = _pack(tmp_path / "source" / "cifar-100-python.tar.gz", cifar100_python()).parent
    with pytest.raises(Misuse, match="has cifar-100-python.tar.gz; it needs cifar-10-python"):
        _place(source, "cifar10", tmp_path)


def test_both_cifars_may_lie_together(tmp_path: Path) -> None:
    for archive, (_, make) in ARCHIVES.items():
        if "python" in archive:
            _pack(tmp_path / "source" / archive, make())
    for layout in ("cifar10", "cifar100"):
        placed, reader = _place(tmp_path / "source", layout, tmp_path / layout)
        assert [reader.read(item.place) for item in placed.items] == [
            row[2] for row in _expected(layout)
        ]


def test_two_different_copies_are_ambiguous(tmp_path: Path) -> None:
    source = _unpack(tmp_path / "source", cifar10_binary())
    _unpack(source / "copy", cifar10_binary())
    assert len(list(_place(source, "cifar10", tmp_path / "1")[0].items)) == 6 * ROWS
    (source / "copy" / BIN).write_bytes(bytes(3073))
    with pytest.raises(Misuse, match=r"data_batch_3\.bin stands twice"):
        _place(source, "cifar10", tmp_path / "2")
