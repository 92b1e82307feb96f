"""ImageNet-21k and its selection 21K-P: what class and split every image of a class tar gets."""

import gzip
from pathlib import Path

import pytest

from pipeline.data.labels import published
from pipeline.spec import Misuse
from tests.unit.data_prep.imagenet_archives import (
    FISH,
    SHARK,
    TENCH,
    TRAIN_TAR,
    VAL_TAR,
    Files,
    Found,
    class_tars,
    tar,
    train_tar,
    val_tar,
    write,
)


class TestImageNet21k:
    @pytest.mark.parametrize("name", ["winter21_whole.tar.gz", "fall11_whole.tar", "folder"])
    def test_every_release_gives_the_same_images(self, tmp_path: Path, name: str) -> None:
        counts = {TENCH: 3, "n00004475": 1, FISH: 2}
        if name == "folder":
            source = write(tmp_path / name, class_tars(counts))
        elif name.endswith("gz"):
            data = gzip.compress(tar(class_tars(counts, "winter21_whole/")))
            source = write(tmp_path, {name: data}) / name
        else:
            source = write(tmp_path, {name: tar(class_tars(counts))}) / name
        found = Found(source, "imagenet21k")
        images = [(synset, n) for synset, count in counts.items() for n in range(1, count + 1)]
        assert found.of("train") == sorted((synset, f"{synset} {n}") for synset, n in images)
        assert found.placed.folders == set(counts)
        assert not found.refused()

    def test_the_class_tar_decides_whatever_the_names_inside(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        odd = {
            f"{FISH}_1.JPEG": b"other id",
            f"{FISH}/{FISH}_2.jpeg": b"folder inside",
            f"{TENCH}_3.jpg": b"suffix",
            "photo": b"no suffix",
        }
        files = {f"{TENCH.upper()}.TAR": tar(odd), "README": b"", "loose.JPEG": b"no class"}
        found = Found(write(tmp_path / "in", files), "imagenet21k")
        assert sorted(found.of("train")) == sorted((TENCH, data.decode()) for data in odd.values())
        assert found.refused() == {"loose.JPEG": "lies in no class tar"}
        told = capsys.readouterr().err
        assert "2 images have the id of another synset in their name than their class tar" in told
        assert f"({TENCH}); the class tar decides" in told
        assert "1 classes and 4 images, as in no release (winter21 has 19,167 and " in told

    @pytest.mark.parametrize("layout", ["imagenet21k", "imagenet21k_p"])
    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({VAL_TAR: val_tar()}, r"no class tars .* is ILSVRC2012_img_val\.tar/ILSVRC2012_val_"),
            (
                {f"{TENCH}.tar": tar({"1.JPEG": b""}), f"more/{TENCH}/2.JPEG": b""},
                rf"class {TENCH} stands twice in the source, in more and in the source itself",
            ),
            (
                {TRAIN_TAR: train_tar(published("imagenet_1k").classes)},
                r"the 1,000 classes of ImageNet-1k, and no more; use --layout imagenet1k",
            ),
        ],
    )
    def test_what_is_no_release_is_refused(
        self, tmp_path: Path, layout: str, files: Files, message: str
    ) -> None:
        with pytest.raises(Misuse, match=message):
            Found(write(tmp_path / "in", files), layout)


class TestImageNet21kP:
    def test_classes_of_more_than_500_images_and_their_first_50_names(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        archive = tar(class_tars({TENCH: 501, FISH: 500, SHARK: 600}))
        source = write(tmp_path, {"fall11_whole.tar": archive}) / "fall11_whole.tar"
        found = Found(source, "imagenet21k_p")
        assert {cls for cls, _ in found.of("train")} == {TENCH, SHARK}
        assert (len(found.of("train")), len(found.of("eval"))) == (451 + 550, 100)
        for synset, count in ((TENCH, 501), (SHARK, 600)):
            names = sorted(f"{synset}_{n}.JPEG" for n in range(1, count + 1))
            held = {name.partition("/")[2] for name in found.names("eval", synset)}
            assert held == set(names[:50])
        told = capsys.readouterr().err
        assert (
            "2 classes have more than 500 images; of the 10,450 of imagenet_21kp_winter21" in told
        )
        assert not found.placed.folders

    def test_a_class_whose_files_do_not_follow_each_other_is_one_class(
        self, tmp_path: Path
    ) -> None:
        files = {f"{TENCH}/b{n:03d}.JPEG": b"" for n in range(300)}
        files |= {f"{FISH}/{n:03d}.JPEG": b"" for n in range(600)}
        files |= {f"{TENCH}/a{n:03d}.JPEG": b"" for n in range(10)}
        files |= {f"{TENCH}/c{n:03d}.JPEG": b"" for n in range(300)}
        source = write(tmp_path, {"all.tar": tar(files)}) / "all.tar"
        held = Found(source, "imagenet21k_p").names("eval", TENCH)
        assert len(held) == 50
        assert max(held) == f"{TENCH}/b039.JPEG"

    def test_a_part_of_a_release_is_refused_where_no_class_is_large(self, tmp_path: Path) -> None:
        source = write(tmp_path / "in", class_tars({TENCH: 3, FISH: 2}))
        with pytest.raises(Misuse, match=rf"no class has more than 500 .* {TENCH}, has 3\. Give a"):
            Found(source, "imagenet21k_p")

    def test_a_published_selection_is_silent(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("data_prep.layouts.imagenet21k.MORE_THAN", 0)
        classes = published("imagenet_21kp_winter21").classes
        source = write(tmp_path, {"w.tar": tar({f"{synset}/1.JPEG": b"" for synset in classes})})
        found = Found(source / "w.tar", "imagenet21k_p")
        assert len(found.of("eval")) == 10_450
        assert "not among them" not in capsys.readouterr().err
