"""Split and class of an image follow from its path, by one rule for trees and tars."""

from pathlib import Path

import pytest

from data_prep.classes import check_classes, place, read_classes, read_labels, read_names, select
from data_prep.sources import Listing, Place
from pipeline.spec import Misuse


def _listing(root: Path, *names: str, folders: tuple[str, ...] = ()) -> Listing:
    return Listing(
        root=root,
        places=[Place(name, "", 0, 1) for name in names],
        folders=set(folders),
    )


def _as_tar(tmp_path: Path, *names: str) -> Listing:
    (tmp_path / "x.tar").touch()
    return _listing(tmp_path / "x.tar", *names)


def _both(
    listing: Listing, split_of: dict[str, str] | None = None
) -> list[tuple[str | None, str | None]]:
    placed = place(listing, split_of)
    return list(zip(placed.splits, placed.classes, strict=True))


def test_class_is_the_first_folder(tmp_path: Path) -> None:
    found = _both(_listing(tmp_path, "cat/1.jpg", "dog/puppies/2.jpg"))
    assert found == [("train", "cat"), ("train", "dog")]


@pytest.mark.parametrize("name", ["val", "test", "validation", "eval"])
def test_split_folders_are_found_by_name(tmp_path: Path, name: str) -> None:
    found = _both(_listing(tmp_path, "train/cat/1.jpg", f"{name}/cat/2.jpg", "README.txt"))
    assert found == [("train", "cat"), ("eval", "cat"), (None, None)]


def test_a_folder_around_everything_is_ignored_in_a_tar(tmp_path: Path) -> None:
    found = _both(_as_tar(tmp_path, "all/cat/1.jpg", "all/dog/2.jpg", "all/README"))
    assert found[:2] == [("train", "cat"), ("train", "dog")]
    found = _both(_as_tar(tmp_path, "cifar/train/cat/1.jpg", "cifar/test/cat/2.jpg"))
    assert found == [("train", "cat"), ("eval", "cat")]


def test_flat_files_go_by_their_wordnet_id(tmp_path: Path) -> None:
    listing = _as_tar(tmp_path, "n01440764_tench.JPEG", "tench.JPEG", "n0144_x.JPEG")
    placed = place(listing, None)
    assert placed.classes == ["n01440764", None, None]
    assert [file for file, _, _ in placed.refused] == ["tench.JPEG", "n0144_x.JPEG"]
    assert "lies in no class folder" in placed.refused[0][2]


def test_tars_of_a_class_count_as_folders(tmp_path: Path) -> None:
    found = _both(_as_tar(tmp_path, "n01440764.tar/n01440764_1.JPEG", "n02.tar/a.JPEG"))
    assert found == [("train", "n01440764"), ("train", "n02")]


def test_ambiguous_folders_ask_for_split(tmp_path: Path) -> None:
    listing = _listing(tmp_path, "train/a/1.jpg", "val/a/2.jpg", "devkit/a/3.txt")
    with pytest.raises(Misuse, match=r"may be splits or classes; say which with --split train=tr"):
        place(listing, None)
    assert _both(listing, {"train": "train", "val": "eval"}) == [
        ("train", "a"),
        ("eval", "a"),
        (None, None),
    ]
    assert _both(listing, {}) == [("train", "train"), ("train", "val"), ("train", "devkit")]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    found = _both(_listing(tmp_path, "train/1.jpg", "boat/2.jpg"))
    assert found == [("train", "train"), ("train", "boat")]


def test_a_split_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match=r"no folder 'training' in the source; there are: a, b"):
        place(_listing(tmp_path, "a/1.jpg", "b/2.jpg"), {"training": "train"})


def test_empty_class_folders_are_seen(tmp_path: Path) -> None:
    listing = _listing(tmp_path, "train/a/1.jpg", folders=("train", "train/a", "train/b"))
    assert place(listing, {"train": "train"}).folders == {"a": "train/a", "b": "train/b"}


def test_labels_from_a_file(tmp_path: Path) -> None:
    csv = tmp_path / "LOC_val_solution.csv"
    csv.write_text("ImageId,PredictionString\nval_1,n01440764 85 1 499 272 \nval_2,n02 1 1 2 2\n")
    labels = read_labels(csv)
    assert (labels["val_1"], labels["val_2"]) == ("n01440764", "n02")
    placed = place(_as_tar(tmp_path, "val_1.JPEG", "val_3.JPEG"), {}, labels)
    assert placed.classes == ["n01440764", None]
    assert placed.refused == [("val_3.JPEG", "no class", "its name is not in the file of labels")]


def test_files_of_names_and_classes(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("n01440764 tench, Tinca tinca\n\nn01443537\tgoldfish\n")
    assert read_names(path) == {"n01440764": "tench, Tinca tinca", "n01443537": "goldfish"}
    path.write_text("cat\npolar bear\n")
    assert read_classes(path) == ("cat", "polar bear")
    with pytest.raises(Misuse, match=r"line 1 is 'cat'; expected `file class`"):
        read_labels(path)
    with pytest.raises(Misuse, match=r"none\.txt: cannot be read as text"):
        read_names(tmp_path / "none.txt")


def test_only_chosen_classes_are_kept(tmp_path: Path) -> None:
    listing = _listing(tmp_path, "cat/1.jpg", "dog/2.jpg", "fox/3.jpg", "4.jpg")
    placed = place(listing, None)
    with pytest.raises(Misuse, match=r"--classes: the source has no class 'dogs'; similar: dog"):
        check_classes(placed, ("cat", "dogs"))
    select(listing, placed, ("fox", "cat"))
    assert [item.name for item in listing.places] == ["cat/1.jpg", "fox/3.jpg"]
    assert placed.classes == ["cat", "fox"]
