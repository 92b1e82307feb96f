"""Holdout, choice and order: exact, seeded, and hardly moved by a new image."""

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.layout import hold_out, shard_numbers
from data_prep.options import BuildSpec
from pipeline.data.index import SplitIndex
from pipeline.data.manifest import Manifest
from pipeline.spec import Misuse

MakeTree = Callable[..., Path]
RunBuild = Callable[..., Manifest]


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    fraction=st.floats(0.01, 0.9),
    seed=st.integers(0, 2**32),
)
def test_holdout_is_exact_and_stratified(counts: list[int], fraction: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    if not len(classes):
        return
    rank = rng.integers(0, 2**63, len(classes), dtype=np.uint64)
    held = hold_out(classes, rank, fraction)
    for label, count in enumerate(counts):
        taken = int(held[classes == label].sum())
        assert abs(taken - fraction * count) <= 1
        assert taken < count or count == 0
        if 0 < taken < count:
            assert rank[(classes == label) & held].max() <= rank[(classes == label) & ~held].min()
    if min(count for count in counts if count) * (1 - fraction) > 1:
        assert held.sum() == round(fraction * len(classes))


def test_shards_are_cut_by_samples_or_by_bytes() -> None:
    sizes = np.array([100, 600, 100, 5000, 100, 100])
    by_samples = shard_numbers(sizes, BuildSpec(name="x", shard_samples=4))
    assert by_samples.tolist() == [0, 0, 0, 0, 1, 1]
    by_bytes = shard_numbers(sizes, BuildSpec(name="x", shard_mb=0.008))
    assert by_bytes.tolist() == [0, 0, 0, 0, 1, 1]


def _sides(out: Path, manifest: Manifest) -> dict[str, str]:
    """Return the split of every image, by its digest."""
    sides = {}
    for split in manifest.splits:
        index = SplitIndex(out, manifest, split)
        for sample_id in range(len(index)):
            entry = index.entry(sample_id)
            data = index.tar(index.locate(sample_id)[0]).read_bytes()
            start = int(entry["offset"])
            image = data[start : start + int(entry["size"])]
            sides[hashlib.sha256(image).hexdigest()] = split
    return sides


def test_the_seed_alone_decides_and_a_new_image_moves_few(
    tmp_path: Path, make_tree: MakeTree, run_build: RunBuild
) -> None:
    tree = make_tree({"cat": 30, "dog": 20})
    first = _sides(tmp_path / "a", run_build(tree, "a", holdout=0.2))
    assert first == _sides(tmp_path / "b", run_build(tree, "b", holdout=0.2, shard_samples=7))
    assert first != _sides(tmp_path / "c", run_build(tree, "c", holdout=0.2, seed=1))
    assert Counter(first.values()) == {"train": 40, "eval": 10}
    make_tree({"cat": 30, "dog": 21})
    after = _sides(tmp_path / "d", run_build(tree, "d", holdout=0.2))
    assert sum(after[key] != side for key, side in first.items()) <= 2


def test_few_shot_keeps_the_eval_split_whatever_the_number(
    tmp_path: Path, make_tree: MakeTree, run_build: RunBuild
) -> None:
    tree = make_tree({"cat": 20, "dog": 20, "fox": 20})
    options = {"holdout": 0.5, "classes": ["fox", "dog"]}
    full = run_build(tree, "full", **options)
    few = run_build(tree, "few", per_class=4, **options)
    assert few.labels.classes == full.labels.classes == ("dog", "fox")
    assert few.split("train").class_counts == (4, 4)
    sides, few_sides = _sides(tmp_path / "full", full), _sides(tmp_path / "few", few)
    held = {key for key, side in sides.items() if side == "eval"}
    assert held == {key for key, side in few_sides.items() if side == "eval"}
    chosen = {key for key, side in few_sides.items() if side == "train"}
    assert chosen <= {key for key, side in sides.items() if side == "train"}


def test_neighbours_are_of_mixed_classes(
    tmp_path: Path, make_tree: MakeTree, run_build: RunBuild
) -> None:
    manifest = run_build(make_tree({"cat": 100, "dog": 100}))
    index = SplitIndex(tmp_path / "out", manifest, "train")
    labels = np.array([index.labels(i)[0] for i in range(len(index))])
    changes = int((np.diff(labels) != 0).sum())
    assert abs(changes - 99.5) < 3 * np.sqrt(199) / 2  # three sigma of fair coins


def test_equal_files_are_merged_with_all_their_labels(
    tmp_path: Path, make_tree: MakeTree, run_build: RunBuild
) -> None:
    tree = make_tree({"cat": 3, "dog": 3})
    (tree / "dog/0000.jpg").write_bytes((tree / "cat/0001.jpg").read_bytes())
    manifest = run_build(tree, merge_duplicates=True)
    index = SplitIndex(tmp_path / "out", manifest, "train")
    assert manifest.merged_duplicates == 1
    assert sorted(index.labels(i) for i in range(len(index))) == [(0,), (0,), (0, 1), (1,), (1,)]
    assert manifest.split("train").class_counts == (3, 3)


def test_images_of_eval_that_are_also_in_train_are_counted(
    tmp_path: Path, make_tree: MakeTree, run_build: RunBuild
) -> None:
    tree = make_tree({"cat": 3, "dog": 3})
    held = make_tree({"cat": 1}, "held")
    manifest = run_build(tree, eval_source=held)  # its one image is drawn with the same seed
    assert manifest.eval_twins == 1
    assert manifest.holdout.rule == "source"


def test_a_class_that_is_only_in_eval_is_named(
    tmp_path: Path, make_tree: MakeTree, run_build: RunBuild
) -> None:
    tree = make_tree({"cat": 3, "dog": 3})
    held = make_tree({"cat": 1, "horse": 1}, "held")
    with pytest.raises(Misuse, match=r"class 'horse' \(1 in all\) has images to evaluate on"):
        run_build(tree, eval_source=held)


def test_a_holdout_of_nothing_is_refused(make_tree: MakeTree, run_build: RunBuild) -> None:
    with pytest.raises(Misuse, match=r"--holdout is 0\.2: that holds out none of 2 images"):
        run_build(make_tree({"cat": 1, "dog": 1}), holdout=0.2)
