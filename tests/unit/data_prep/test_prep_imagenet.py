"""ImageNet's own archives become images with the right class, or a refusal that says what to do."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.catalogue import Reader
from data_prep.layouts import LAYOUTS, LayoutOptions
from data_prep.sources import Source, write_catalogue
from pipeline.data.labels import published
from pipeline.spec import Misuse
from tests.unit.data_prep.imagenet_archives import (
    DEVKIT_TAR,
    FISH,
    IDS,
    SHARK,
    SYNSETS,
    TENCH,
    TRAIN_TAR,
    TRUTH,
    VAL,
    VAL_TAR,
    Files,
    Found,
    class_tars,
    devkit,
    ilsvrc,
    meta,
    tar,
    train_tar,
    truth_lines,
    val_file,
    val_tar,
    write,
)

EVAL = sorted((synset, f"val {n}") for n, synset in enumerate(VAL, 1))
TRAIN = [(synset, f"{synset} {n}") for synset in (TENCH, FISH, SHARK) for n in (1, 2)]


def kaggle() -> bytes:
    lines = [f"{Path(val_file(n)).stem},{synset} 85 1 499 272 " for n, synset in enumerate(VAL, 1)]
    return truth_lines("ImageId,PredictionString", *lines[::-1])


def lists() -> dict[str, Files]:
    """Each list of validation classes that is handed out."""
    truth = truth_lines(*(IDS[synset] for synset in VAL))
    files = [f"{val_file(n)} {synset}" for n, synset in enumerate(VAL, 1)]
    return {
        "devkit": {DEVKIT_TAR: devkit()},
        "unpacked devkit": {f"data/{TRUTH}": truth, "data/meta.mat": meta()},
        "synsets": {SYNSETS: truth_lines(*VAL)},
        "kaggle": {"LOC_val_solution.csv": kaggle()},
        "map": {"val_map.txt": truth_lines(*files)},
    }


class TestImageNet1k:
    @pytest.mark.parametrize("which", lists())
    def test_every_list_gives_the_validation_images_their_class(
        self, tmp_path: Path, which: str
    ) -> None:
        archives = {TRAIN_TAR: train_tar(), VAL_TAR: val_tar(), **lists()[which]}
        found = Found(write(tmp_path / "in", archives), "imagenet1k")
        assert found.of("train") == TRAIN
        assert found.of("eval") == EVAL
        assert not found.refused()
        assert found.placed.folders == {TENCH, FISH, SHARK}
        assert found.placed.classes is None

    def test_lists_that_agree_may_lie_side_by_side(self, tmp_path: Path) -> None:
        archives = ilsvrc()
        for files in lists().values():
            archives |= files
        assert Found(write(tmp_path / "in", archives), "imagenet1k").of("eval") == EVAL

    def test_the_train_tar_alone_has_no_eval(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source = write(tmp_path, {TRAIN_TAR: train_tar()}) / TRAIN_TAR
        found = Found(source, "imagenet1k")
        assert found.of("train") == TRAIN
        assert found.of("eval") == []
        told = capsys.readouterr().err
        assert "997 of the 1,000 classes have no image: n01491361, " in told
        assert "no validation images: without ILSVRC2012_img_val.tar" in told

    def test_what_was_unpacked_and_kaggles_tree_work_as_well(self, tmp_path: Path) -> None:
        base = "ILSVRC/Data/CLS-LOC"
        tree: Files = {
            f"{base}/train/{synset}/{synset}_{n}.JPEG": f"{synset} {n}".encode()
            for synset in (TENCH, FISH, SHARK)
            for n in (1, 2)
        }
        tree |= {f"{base}/val/{val_file(n)}": f"val {n}".encode() for n in range(1, 5)}
        tree[f"{base}/test/ILSVRC2012_test_00000001.JPEG"] = b"secret"
        tree[f"ILSVRC/Annotations/CLS-LOC/train/{TENCH}/{TENCH}_1.xml"] = b"<box>"
        found = Found(write(tmp_path / "in", tree | lists()["kaggle"]), "imagenet1k")
        assert (found.of("train"), found.of("eval")) == (TRAIN, EVAL)
        assert not found.refused()
        tars = class_tars(dict.fromkeys((TENCH, FISH, SHARK), 2))
        assert Found(write(tmp_path / "tars", tars), "imagenet1k").of("train") == TRAIN

    def test_what_lies_beside_the_set_is_left_out_and_said(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        archives = ilsvrc() | {
            "ILSVRC2012_img_train_t3.tar": tar(class_tars({TENCH: 2, "n02085620": 1})),
            "ILSVRC2012_img_test_v10102019.tar": tar({"test/ILSVRC2012_test_00000001.JPEG": b""}),
            "ILSVRC2012_bbox_train_v2.tar.gz": gzip.compress(tar({"n02085620/1.xml": b"<box>"})),
            "holiday.jpg": b"sun",
        }
        found = Found(write(tmp_path / "in", archives), "imagenet1k")
        assert (found.of("train"), found.of("eval")) == (TRAIN, EVAL)
        assert found.placed.folders == {TENCH, FISH, SHARK}
        assert set(found.refused()) == {"holiday.jpg"}
        told = capsys.readouterr().err
        assert "3 images of ILSVRC2012_img_train_t3.tar are left out" in told
        assert "1 test images, whose classes are secret, are left out" in told
        assert "4 validation images; ImageNet-1k as published has 50,000" in told

    def test_classes_and_counts_that_are_not_as_published_are_said(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        classes = published("imagenet_1k").classes
        source = write(tmp_path, {TRAIN_TAR: train_tar(classes)}) / TRAIN_TAR
        assert len(Found(source, "imagenet1k").of("train")) == 2000
        assert "2,000 images to train on; ImageNet-1k as published has 1,281,167" in (
            capsys.readouterr().err
        )
        source = write(tmp_path / "b", {TRAIN_TAR: train_tar([TENCH, "n00000001"])}) / TRAIN_TAR
        Found(source, "imagenet1k")
        assert "1 classes are not of ImageNet-1k: n00000001" in capsys.readouterr().err

    def test_only_wanted_classes_need_images_to_train_on(self, tmp_path: Path) -> None:
        archives = ilsvrc() | {TRAIN_TAR: train_tar([TENCH, FISH])}
        source = write(tmp_path / "in", archives)
        with pytest.raises(Misuse, match=rf"1 classes without images to train on: {SHARK}; .*--cl"):
            Found(source, "imagenet1k")
        found = Found(source, "imagenet1k", classes=(TENCH,))
        assert (SHARK, "val 4") in found.of("eval")  # left out with its class, later

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({TRAIN_TAR: None}, "source has only the 4 validation images.*give ILSVRC2012_img_tr"),
            ({TRAIN_TAR: val_tar()}, "ILSVRC2012_img_train.tar: it holds validation images, as"),
            ({VAL_TAR: train_tar()}, "ILSVRC2012_img_val.tar: it holds class tars, as"),
            ({DEVKIT_TAR: None}, "4 validation images and no list of their classes; put one of"),
            ({VAL_TAR: val_tar(3)}, "the classes of 4 images, and the source has 3 validation"),
            ({"val/" + val_file(1): b"again"}, "_val_00000001.JPEG stands twice in the source"),
            ({f"train/{TENCH}/1.JPEG": b"again"}, f"class {TENCH} stands twice in the source, in"),
            ({SYNSETS: truth_lines(TENCH, *VAL[1:])}, "_val_00000001.JPEG is n01443537 in .*n014"),
        ],
    )
    def test_missing_swapped_and_doubled_archives_are_refused(
        self, tmp_path: Path, changes: dict[str, bytes | None], message: str
    ) -> None:
        archives = {**ilsvrc(), **changes}
        given = {name: data for name, data in archives.items() if data is not None}
        with pytest.raises(Misuse, match=message):
            Found(write(tmp_path / "in", given), "imagenet1k")

    def test_the_val_tar_given_as_source_is_refused(self, tmp_path: Path) -> None:
        source = write(tmp_path, {VAL_TAR: val_tar()}) / VAL_TAR
        with pytest.raises(Misuse, match=r"only the 4 validation images .*_val_00000004\.JPEG"):
            Found(source, "imagenet1k")

    def test_a_larger_release_is_refused(self, tmp_path: Path) -> None:
        tars = class_tars({f"n{number:08d}": 1 for number in range(1001)})
        with pytest.raises(Misuse, match=r"has 1,001 classes, .*; use --layout imagenet21k"):
            Found(write(tmp_path / "in", tars), "imagenet1k")

    @pytest.mark.parametrize(
        ("options", "name"),
        [
            ({"splits": {}}, "--split"),
            ({"eval_labels": {}}, "--eval-labels"),
            ({"eval_prefix": "eval/"}, "--eval-source"),
        ],
    )
    @pytest.mark.parametrize("layout", ["imagenet1k", "imagenet21k", "imagenet21k_p"])
    def test_options_without_effect_are_refused(
        self, tmp_path: Path, layout: str, options: dict[str, object], name: str
    ) -> None:
        source = write(tmp_path, {TRAIN_TAR: train_tar()}) / TRAIN_TAR
        with pytest.raises(Misuse, match=f"^{name}: --layout {layout} finds its splits itself"):
            Found(source, layout, **options)


TEXT = truth_lines(*(IDS[synset] for synset in VAL))
MAP = "LOC_val_solution.csv"


class TestLists:
    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({DEVKIT_TAR: devkit(truth_lines(1, 2, 1, 1001))}, r"line 4 is '1001'; expected an id"),
            ({DEVKIT_TAR: devkit(truth_lines(1, 0, 1, 1))}, r"line 2 is '0'; expected an id from"),
            ({DEVKIT_TAR: devkit(truth_lines(1, "-2", 1, 1))}, r"line 2 is '-2'; expected an id"),
            ({DEVKIT_TAR: devkit(truth_lines(1, "9" * 5000, 1, 1))}, r"line 2 is '9{80}'; expect"),
            ({DEVKIT_TAR: devkit(truth_lines(1, 500, 1, 1))}, r"'500'; .* that meta\.mat has"),
            ({DEVKIT_TAR: devkit(truth_lines(1, 2, 1))}, "the classes of 3 images, and the source"),
            ({DEVKIT_TAR: devkit(b"\xff\xfe")}, "ground_truth.txt: not a text file; get it again"),
            ({DEVKIT_TAR: devkit(meta_mat=b"not MATLAB")}, "meta.mat: not a usable .mat file"),
            ({DEVKIT_TAR: devkit(meta_mat=meta({TENCH: 1, "fish": 2}))}, "ID 2 is 'fish', expec"),
            ({DEVKIT_TAR: devkit(meta_mat=meta({TENCH: 1, FISH: 1}))}, "ILSVRC2012_ID 1 is 'n01"),
            ({TRUTH: TEXT}, r"ground_truth\.txt: meta\.mat, .* is not beside it; take both"),
            ({TRUTH: TEXT, "other/meta.mat": meta()}, r"meta\.mat, .* is not beside it"),
            ({SYNSETS: truth_lines(TENCH, "tench", FISH, FISH)}, "line 2 is 'tench'; expected a s"),
            ({SYNSETS: b""}, "the classes of 1 images"),
            ({MAP: truth_lines("ImageId,x", "photo,n01440764")}, "line 2 is 'photo,n01440764'; ex"),
            ({MAP: truth_lines(f"{val_file(1)} tench")}, "expected a synset like n01440764 behind"),
            ({MAP: truth_lines(val_file(1))}, "expected a synset like n01440764 behind the file"),
            ({MAP: truth_lines(f"{val_file(1)} {TENCH}")}, "no line for ILSVRC2012_val_00000002.J"),
            (
                {MAP: kaggle() + truth_lines(f"{val_file(1)} {TENCH}")},
                f"line 6 is .*; expected {FISH}, as in a line before it",
            ),
            (
                {MAP: kaggle() + truth_lines(f"{val_file(5)} {TENCH}")},
                "the classes of 5 images, and the source has 4 validation images",
            ),
        ],
    )
    def test_a_list_that_cannot_be_right_is_refused(
        self, tmp_path: Path, files: Files, message: str
    ) -> None:
        archives = {TRAIN_TAR: train_tar(), VAL_TAR: val_tar(), **files}
        with pytest.raises(Misuse, match=message):
            Found(write(tmp_path / "in", archives), "imagenet1k")

    @pytest.mark.parametrize("numbers", [(1, 2, 3, 60_000), (0, 2, 3, 4)])
    def test_a_list_by_position_is_for_images_counted_from_one(
        self, tmp_path: Path, numbers: tuple[int, ...]
    ) -> None:
        archives = ilsvrc() | {VAL_TAR: tar({val_file(number): b"" for number in numbers})}
        with pytest.raises(
            Misuse, match=r"for the images 1 to 4 in order, and the source has ILSV"
        ):
            Found(write(tmp_path / "in", archives), "imagenet1k")

    def test_a_list_beyond_all_lists_is_not_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("data_prep.layouts.groundtruth.MAX_BYTES", 30)
        archives = {TRAIN_TAR: train_tar(), VAL_TAR: val_tar(), SYNSETS: truth_lines(*VAL)}
        with pytest.raises(Misuse, match=r"labels\.txt: 40 bytes, expected at most 30"):
            Found(write(tmp_path / "in", archives), "imagenet1k")

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda path: os.truncate(path, 7), r"labels\.txt: ends after 7 of 40 bytes"),
            (lambda path: path.unlink(), r"labels\.txt: cannot be read: No such file"),
        ],
    )
    def test_a_list_that_changes_meanwhile_is_named(
        self, tmp_path: Path, spoil: Callable[[Path], None], message: str
    ) -> None:
        archives = {TRAIN_TAR: train_tar(), VAL_TAR: val_tar(), SYNSETS: truth_lines(*VAL)}
        source = write(tmp_path / "in", archives)
        catalogue = write_catalogue([Source(source)], tmp_path / "work")
        spoil(source / SYNSETS)
        with pytest.raises(Misuse, match=message):
            LAYOUTS["imagenet1k"](catalogue, Reader(catalogue.containers), LayoutOptions())
