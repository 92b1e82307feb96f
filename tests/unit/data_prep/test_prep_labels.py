"""`labels` says what of one label space is found in another."""

from pathlib import Path

import pytest

from data_prep.labels_command import open_space, run_labels
from pipeline.data.labels import PUBLISHED, published
from pipeline.spec import Misuse
from tests.unit.data_prep.shard_sets import small_set


def test_without_a_name_all_published_ones_are_listed() -> None:
    lines = run_labels().splitlines()
    assert [line.partition(":")[0] for line in lines] == list(PUBLISHED)
    assert "21,841 classes, n00004475 to n15102894, sha256 " in lines[1]


def test_one_is_compared_with_all_published_ones() -> None:
    told = run_labels("imagenet_1k")
    assert "  equals imagenet_1k\n" in told
    assert "  999 of 1,000 classes are in imagenet_21k_fall11 (21,841)\n" in told
    assert "  991 of 1,000 classes are in imagenet_21kp_winter21 (10,450)" in told


def test_two_are_compared_with_the_missing_named() -> None:
    told = run_labels("imagenet_1k", "imagenet_21k_fall11")
    assert "  1 of imagenet_1k are missing in imagenet_21k_fall11: n04399382\n" in told
    assert "  20,842 of imagenet_21k_fall11 are missing in imagenet_1k: n00004475, " in told
    assert told.endswith(" and 20,792 more")


def test_nine_of_imagenet_1k_are_missing_in_21k_p() -> None:
    told = run_labels("imagenet_1k", "imagenet_21kp_fall11")
    line = next(line for line in told.splitlines() if line.startswith("  9 of imagenet_1k"))
    dogs = "n02085782, n02089078, n02089867, n02089973, n02091635, n02108000, n02112706, n02113978"
    assert line.endswith(f" {dogs}, n04399382")


def test_shards_and_files_of_classes_are_compared_too(tmp_path: Path) -> None:
    small_set(tmp_path / "pets")
    (tmp_path / "classes.txt").write_text("cat\ndog\nfox\n")
    told = run_labels(str(tmp_path / "pets"), str(tmp_path / "classes.txt"))
    assert "2 of 2 classes are in classes.txt (3), at the same indices" in told
    name = open_space(str(tmp_path / "pets" / "manifest.json")).name
    assert told.endswith(f"1 of classes.txt are missing in {name}: fox")


def test_a_file_of_a_published_list_gets_its_name(tmp_path: Path) -> None:
    path = tmp_path / "synsets.txt"
    path.write_text("\n".join(published("imagenet_1k").classes))
    assert open_space(str(path)).name == "imagenet_1k"
    assert run_labels(str(path), "imagenet_1k").endswith("  equals imagenet_1k")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "there is no class"), (b"a\na\n", "class 'a' stands twice"), (b"\xff", "as text")],
)
def test_a_wrong_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(content)
    with pytest.raises(Misuse, match=rf"classes\.txt.*\n?.*{message}"):
        run_labels(str(path))


def test_what_is_nothing_at_all_is_refused_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match=r"imagenet: no published label space, folder .*imagenet_1k"):
        run_labels("imagenet")
    with pytest.raises(Misuse, match=r"manifest\.json"):
        run_labels(str(tmp_path))
