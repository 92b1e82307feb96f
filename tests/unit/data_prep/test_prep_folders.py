"""Split and class of an image follow from its path, by one rule for trees and tars."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from data_prep.catalogue import Catalogue, CatalogueWriter, Reader
from data_prep.layouts import LAYOUTS, LayoutOptions
from data_prep.layouts.folders import read_classes, read_labels, read_names
from data_prep.population import Placed
from pipeline.spec import Misuse

PREFIX = "eval/"


def list_names(
    tmp_path: Path,
    names: Sequence[str],
    held: Sequence[str] = (),
    folders: Sequence[str] = (),
    in_tar: bool = False,
) -> Catalogue:
    """A catalogue of these names: of a folder or a tar, and of a tar as eval source."""
    train, val = tmp_path / ("x.tar" if in_tar else "."), tmp_path / "val.tar"
    for tar in (train, val) if in_tar else (val,):
        tar.touch()
    with CatalogueWriter(tmp_path / "catalogue") as writer:
        for path, prefix, of in ((train, "", names), (val, PREFIX, held)):
            number = writer.container(path, prefix)
            for name in of:
                writer.add(prefix + name, 0, 1, number)
        writer.folders = set(folders)
        writer.finish("none")
    return Catalogue(tmp_path / "catalogue")


def place(catalogue: Catalogue, **options: object) -> Placed:
    return LAYOUTS["folders"](
        catalogue,
        Reader(catalogue.containers),
        LayoutOptions(**options),  # type: ignore[arg-type]
    )


def both(catalogue: Catalogue, **options: object) -> list[tuple[str, str]]:
    """Split and class of each image."""
    return [(item.split, item.cls) for item in place(catalogue, **options).items]


def test_class_is_the_first_folder(tmp_path: Path) -> None:
    catalogue = list_names(tmp_path, ["cat/1.jpg", "dog/puppies/2.jpg", "cat/3.jpg"])
    assert both(catalogue) == [("train", "cat"), ("train", "dog"), ("train", "cat")]


@pytest.mark.parametrize("name", ["val", "test", "validation", "eval"])
def test_split_folders_are_found_by_name(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["README.txt", f"{name}/cat/2.jpg", "train/cat/1.jpg"]
    assert both(list_names(tmp_path, names)) == [("eval", "cat"), ("train", "cat")]
    told = capsys.readouterr().err
    assert told.startswith("1 files lie outside the split folders")


def test_a_folder_around_everything_is_ignored_in_a_tar(tmp_path: Path) -> None:
    names = ["all/cat/1.jpg", "all/dog/2.jpg"]
    assert both(list_names(tmp_path, names, in_tar=True)) == [("train", "cat"), ("train", "dog")]
    assert both(list_names(tmp_path, names)) == [("train", "all")] * 2
    names = ["cifar/train/cat/1.jpg", "cifar/test/cat/2.jpg"]
    found = both(list_names(tmp_path, names, in_tar=True))
    assert found == [("train", "cat"), ("eval", "cat")]


def test_an_archive_in_a_folder_is_ignored_like_the_folder_around_its_classes(
    tmp_path: Path,
) -> None:
    wrapped = ["pets.tgz/pets/cat/1.jpg", "pets.tgz/pets/dog/2.jpg"]
    plain = ["pets.tgz/cat/kittens/1.jpg"]
    for names, classes in ((wrapped, ["cat", "dog"]), (plain, ["kittens"])):
        found = both(list_names(tmp_path, names, in_tar=True))
        assert [cls for _, cls in found] == classes


def test_a_class_tar_alone_stays_a_class(tmp_path: Path) -> None:
    names = ["n01440764.tar/odd/1.JPEG", "n01440764.tar/2.JPEG"]
    assert both(list_names(tmp_path, names, in_tar=True)) == [("train", "n01440764")] * 2


def test_flat_files_go_by_their_wordnet_id(tmp_path: Path) -> None:
    names = ["n01440764_tench.JPEG", "tench.JPEG", "n0144_x.JPEG"]
    placed = place(list_names(tmp_path, names, in_tar=True))
    assert [item.cls for item in placed.items] == ["n01440764"]
    assert [note.file for note in placed.refused] == ["tench.JPEG", "n0144_x.JPEG"]
    assert "lies in no class folder" in placed.refused[0].reason


@pytest.mark.parametrize("ending", [".tar", ".tgz", ".TAR", ".tar.gz"])
def test_tars_of_a_class_count_as_folders(tmp_path: Path, ending: str) -> None:
    names = [f"n01440764{ending}/n01440764_1.JPEG", f"n02{ending}/a.JPEG"]
    found = both(list_names(tmp_path, names, in_tar=True))
    assert found == [("train", "n01440764"), ("train", "n02")]
    names = [f"train{ending}/cat{ending}/1.jpg", f"val{ending}/cat{ending}/2.jpg"]
    assert both(list_names(tmp_path, names)) == [("train", "cat"), ("eval", "cat")]


def test_ambiguous_folders_ask_for_split(tmp_path: Path) -> None:
    catalogue = list_names(tmp_path, ["train/a/1.jpg", "val/a/2.jpg", "devkit/a/3.txt"])
    with pytest.raises(Misuse, match=r"may be splits or classes; say which with --split train=tr"):
        place(catalogue)
    splits = {"train": "train", "val": "minival"}
    assert both(catalogue, splits=splits) == [("train", "a"), ("minival", "a")]
    classes = [cls for _, cls in both(catalogue, splits={})]
    assert classes == ["train", "val", "devkit"]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    found = both(list_names(tmp_path, ["train/1.jpg", "boat/2.jpg"]))
    assert found == [("train", "train"), ("train", "boat")]


def test_a_split_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    catalogue = list_names(tmp_path, ["a/1.jpg", "b/2.jpg"])
    with pytest.raises(Misuse, match=r"no folder 'training' in the source; there are: a, b"):
        place(catalogue, splits={"training": "train"})


def test_empty_class_folders_of_train_are_seen(tmp_path: Path) -> None:
    folders = ("train", "train/a", "train/b", "train/b/in", "eval", "eval/c")
    names = ["train/a/1.jpg", "eval/a/2.jpg"]
    assert place(list_names(tmp_path, names, folders=folders)).folders == {"a", "b"}


@pytest.mark.parametrize(
    ("held", "labels"),
    [
        (["val_1.JPEG", "val_2.JPEG"], {"val_1": "cat", "val_2": "dog"}),
        (["cat/1.jpg", "dog/2.jpg"], None),
        (["val/cat/1.jpg", "val/dog/2.jpg"], None),
        (["cat.tar/1.jpg", "dog.tar/2.jpg"], None),
    ],
)
def test_an_eval_source_is_all_eval(
    tmp_path: Path, held: list[str], labels: dict[str, str] | None
) -> None:
    folders = ("cat", "dog", "fox", "eval/cat", "eval/ape")
    catalogue = list_names(tmp_path, ["cat/1.jpg", "dog/2.jpg"], held, folders)
    placed = place(catalogue, eval_prefix=PREFIX, eval_labels=labels)
    found = [(item.place.name, item.split, item.cls) for item in placed.items]
    assert found[:2] == [("cat/1.jpg", "train", "cat"), ("dog/2.jpg", "train", "dog")]
    assert found[2:] == [
        (PREFIX + held[0], "eval", "cat"),
        (PREFIX + held[1], "eval", "dog"),
    ]
    assert placed.folders == {"cat", "dog", "fox"}


def test_what_no_label_names_is_refused_by_name(tmp_path: Path) -> None:
    catalogue = list_names(tmp_path, ["cat/1.jpg"], ["val_1.JPEG", "val_3.JPEG"])
    placed = place(catalogue, eval_prefix=PREFIX, eval_labels={"val_1": "cat", "val_2": "cat"})
    assert [item.split for item in placed.items] == ["train", "eval"]
    name, kind, reason = placed.refused[0]
    assert (name, kind) == ("eval/val_3.JPEG", "no class")
    assert reason == "its name is not in the file of labels"


def test_a_flat_tar_without_labels_is_refused_before_work(tmp_path: Path) -> None:
    val = ["ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG"]
    with pytest.raises(Misuse, match=r"none of the 2 files of the source has a class.*--eval-so"):
        place(list_names(tmp_path, val, in_tar=True))
    catalogue = list_names(tmp_path, ["cat/1.jpg"], val)
    with pytest.raises(Misuse, match=r"--eval-source: its 2 files lie in no class folder"):
        place(catalogue, eval_prefix=PREFIX)
    with pytest.raises(Misuse, match=r"--eval-labels: it names none of the 2 files .*_val_0000"):
        place(catalogue, eval_prefix=PREFIX, eval_labels={"other": "cat"})


def test_two_sources_of_eval_images_are_refused(tmp_path: Path) -> None:
    catalogue = list_names(tmp_path, ["train/cat/1.jpg", "val/cat/2.jpg"], ["cat/3.jpg"])
    with pytest.raises(Misuse, match=r"folder 'val'; leave .* with --split train=train$"):
        place(catalogue, eval_prefix=PREFIX)
    found = both(catalogue, eval_prefix=PREFIX, splits={"train": "train"})
    assert found == [("train", "cat"), ("eval", "cat")]


@pytest.mark.parametrize("names", [["eval/cat/1.jpg", "train/cat/2.jpg"], ["cat/1", "eval/2"]])
def test_a_folder_named_as_the_eval_source_is_not_taken_for_it(
    tmp_path: Path, names: list[str]
) -> None:
    catalogue = list_names(tmp_path, names, ["cat/3.jpg"])
    with pytest.raises(Misuse, match=r"lies in the source, too, or .* named 'eval'"):
        place(catalogue, eval_prefix=PREFIX)


def test_names_of_any_bytes_become_classes_that_can_be_shown(tmp_path: Path) -> None:
    found = both(list_names(tmp_path, ["caf\udce9/1.jpg", "a\nb/2.jpg", "./c//3.jpg"]))
    assert [cls for _, cls in found] == ["caf\\udce9", "a\\x0ab", "c"]


def test_labels_from_kaggles_file(tmp_path: Path) -> None:
    csv = tmp_path / "LOC_val_solution.csv"
    csv.write_text("ImageId,PredictionString\nval_1,n01440764 85 1 499 272 \nval_2,n02 1 1 2 2\n")
    labels = read_labels(csv)
    assert (labels["val_1"], labels["val_2"]) == ("n01440764", "n02")
    csv.write_text("val_1.JPEG n01440764\nval_1 n02\n")
    with pytest.raises(Misuse, match=r"line 2 gives 'val_1' the class 'n02', a line before it 'n0"):
        read_labels(csv)


def test_files_of_names_and_classes(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("n01440764 tench, Tinca tinca\n\nn01443537\tgoldfish\n")
    assert read_names(path) == {"n01440764": "tench, Tinca tinca", "n01443537": "goldfish"}
    path.write_text("cat\npolar bear\n")
    assert read_classes(path) == ("cat", "polar bear")
    for read, expected in ((read_labels, "file class"), (read_names, "class name")):
        with pytest.raises(Misuse, match=f"line 1 is 'cat'; expected `{expected}`"):
            read(path)
    with pytest.raises(Misuse, match=r"none\.txt: cannot be read as text"):
        read_names(tmp_path / "none.txt")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(Misuse, match=r"names\.txt: cannot be read as text"):
        read_classes(path)


def test_a_list_beyond_all_lists_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.layouts.folders.MAX_LIST_BYTES", 3)
    (tmp_path / "long.txt").write_text("cat\n")
    with pytest.raises(Misuse, match=r"long\.txt: more than 0 MB; is this a list\?"):
        read_classes(tmp_path / "long.txt")
