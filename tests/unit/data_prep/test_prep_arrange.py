"""Holdouts, choice, order and shards: exact, seeded, and hardly moved by a new image."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.arrange import Arranged, arrange, shard_cuts
from data_prep.catalogue import Container, Place
from data_prep.checking import Checked, key_of
from data_prep.clean import GOOD, REJECTED
from data_prep.holdout import lowest, per_class
from data_prep.judging import NOWHERE, VERDICT
from data_prep.options import BuildSpec, Hold
from data_prep.population import Item, LabelChoice, Placed, Population, write_population
from pipeline.data.labels import published
from pipeline.run.files import write_json
from pipeline.spec import Misuse

SIZE = 5000


class Images:
    """A population of images that need not exist, and verdicts on them."""

    def __init__(self, work: Path, items: Iterable[tuple[str, str, str]], space: str = "") -> None:
        """Take (name, split, class) of each."""
        placed = Placed([Item(Place(n, 0, 0, SIZE), split, cls) for n, split, cls in items])
        choice = LabelChoice(published(space) if space else None, (), {})
        containers: list[Container] = [{"path": str(work), "strip": ""}]
        self.work = work
        self.population: Population = write_population(
            work / "population", placed, containers, choice
        )
        self.verdicts = np.zeros(len(self.population), VERDICT)
        self.verdicts["state"], self.verdicts["spool"] = GOOD, NOWHERE
        self.verdicts["size"] = SIZE
        self.verdicts["twin"] = np.arange(len(self.population))

    def arrange(self, **options: object) -> Arranged:
        spec = BuildSpec.parse({"name": "test", **options}, "test")
        key = key_of(self.population, spec, self.work)
        np.save(self.work / "verdicts.npy", self.verdicts)
        write_json(self.work / "verdicts.json", {"key": key, "rows": len(self.verdicts)})
        return arrange(self.population, Checked(self.work, key), spec, self.work)

    def sides(self, **options: object) -> dict[str, str]:
        """Return the split of each image, by its name."""
        found = self.arrange(**options)
        return {
            self.population.name(row): split
            for split in found.splits
            for row in found.order(split).tolist()
        }


def flat(counts: dict[str, int], split: str = "train") -> list[tuple[str, str, str]]:
    return [
        (f"{cls}/{n:04d}.jpg", split, cls) for cls, count in counts.items() for n in range(count)
    ]


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    fraction=st.floats(0.01, 0.9),
    seed=st.integers(0, 2**32),
)
def test_holdout_is_exact_and_stratified(counts: list[int], fraction: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    rank = rng.integers(0, 2**63, len(classes), dtype=np.uint64)
    take = per_class(Hold(fraction=fraction), np.array(counts), np.array(counts))
    held = np.zeros(len(classes), bool)
    held[lowest(classes, rank, take)] = True
    for label, count in enumerate(counts):
        taken = int(held[classes == label].sum())
        assert abs(taken - fraction * count) <= 1
        assert taken < count or count == 0
        if 0 < taken < count:
            assert rank[(classes == label) & held].max() <= rank[(classes == label) & ~held].min()
    if min((count for count in counts if count), default=0) * (1 - fraction) > 1:
        assert held.sum() == round(fraction * len(classes))


def test_a_fraction_is_of_all_images_whoever_took_before(tmp_path: Path) -> None:
    images = Images(tmp_path, flat({"cat": 60, "dog": 40}))
    holdouts = {"minival": {"fraction": 0.1}, "eval": {"fraction": 0.1}}
    sides = images.sides(holdouts=holdouts)
    assert Counter(sides.values()) == {"train": 80, "eval": 10, "minival": 10}
    turned = images.sides(holdouts=dict(reversed(holdouts.items())))
    assert turned == sides  # the order on a command line is no choice
    alone = images.sides(holdouts={"eval": {"fraction": 0.1}})
    assert {n for n, s in alone.items() if s == "eval"} == {
        n for n, s in sides.items() if s == "eval"
    }


def test_a_count_is_taken_from_each_class_and_one_image_stays(tmp_path: Path) -> None:
    images = Images(tmp_path, flat({"cat": 10, "dog": 3, "fox": 1}))
    found = images.arrange(holdouts={"eval": {"count": 4}})
    assert found.class_counts("eval") == (4, 2, 0)
    assert found.class_counts("train") == (6, 1, 1)


def test_the_first_by_name_are_held_out_in_whatever_order_they_lie(tmp_path: Path) -> None:
    items = flat({"cat": 8, "dog": 8})
    images = Images(tmp_path, [items[i] for i in np.random.default_rng(0).permutation(16)])
    sides = images.sides(holdouts={"eval": {"first": 3}})
    held = sorted(name for name, split in sides.items() if split == "eval")
    assert held == [f"{cls}/{n:04d}.jpg" for cls in ("cat", "dog") for n in range(3)]


def test_a_split_of_the_sources_is_not_held_out_again(tmp_path: Path) -> None:
    images = Images(tmp_path, flat({"cat": 4}) + [("test/cat/1.jpg", "eval", "cat")])
    with pytest.raises(Misuse, match="the eval split is asked for twice"):
        images.arrange(holdouts={"eval": {"fraction": 0.5}})
    assert images.arrange(holdouts={"minival": {"count": 1}}).splits == ("train", "eval", "minival")


@pytest.mark.parametrize(
    "hold", [{}, {"fraction": 0.5, "count": 3}, {"fraction": 1.0}, {"count": 0}, {"first": -1}]
)
def test_a_rule_that_is_none_is_refused(hold: dict[str, float]) -> None:
    with pytest.raises(Misuse, match=r"holdouts\.eval"):
        BuildSpec.parse({"name": "x", "holdouts": {"eval": hold}}, "test")


def test_rules_are_read_from_words() -> None:
    assert Hold.read("0.2") == Hold(fraction=0.2)
    assert Hold.read("25") == Hold(count=25)
    assert Hold.read("first:50") == Hold(first=50)
    for text in ("", "none", "first:", "first:x", "last:3", "1.5", "-3", "0", "nan", "²"):
        with pytest.raises(Misuse, match="--holdout"):
            Hold.read(text)


def test_train_cannot_be_held_out() -> None:
    with pytest.raises(Misuse, match="no holdout is train"):
        BuildSpec.parse({"name": "x", "holdouts": {"train": {"count": 1}}}, "test")


def test_a_holdout_of_nothing_is_refused(tmp_path: Path) -> None:
    images = Images(tmp_path, flat({"cat": 1, "dog": 1}))
    with pytest.raises(Misuse, match=r"--holdout eval=fraction 0\.2: that holds out none of 2"):
        images.arrange(holdouts={"eval": {"fraction": 0.2}})


def test_shards_are_cut_by_samples_or_by_bytes() -> None:
    sizes = np.array([100, 600, 100, 5000, 100, 100], np.uint32)
    by_samples = shard_cuts(sizes, BuildSpec(name="x", shard_samples=4))
    assert by_samples.tolist() == [0, 4, 6]
    by_bytes = shard_cuts(sizes, BuildSpec(name="x", shard_mb=0.008))
    assert by_bytes.tolist() == [0, 4, 6]
    assert shard_cuts(sizes, BuildSpec(name="x", shard_samples=6)).tolist() == [0, 6]
    assert shard_cuts(sizes, BuildSpec(name="x", shard_mb=1e-5)).tolist() == list(range(7))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=200), st.floats(0.001, 1.0))
def test_no_shard_is_empty_and_few_are_over_size(sizes: list[int], shard_mb: float) -> None:
    cuts = shard_cuts(np.array(sizes, np.uint32), BuildSpec(name="x", shard_mb=shard_mb))
    assert cuts[0] == 0
    assert cuts[-1] == len(sizes)
    assert (np.diff(cuts) > 0).all()
    for start, end in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
        in_tar = [(size + 511) // 512 * 512 + 1536 for size in sizes[start:end]]
        assert sum(in_tar[:-1]) < shard_mb * 1e6  # the last image may stand over the edge


def test_the_seed_alone_decides_and_a_new_image_moves_few(tmp_path: Path) -> None:
    holdouts = {"eval": {"fraction": 0.2}}
    images = Images(tmp_path, flat({"cat": 30, "dog": 20}))
    first = images.sides(holdouts=holdouts)
    assert first == images.sides(holdouts=holdouts, shard_samples=7)
    assert first != images.sides(holdouts=holdouts, seed=1)
    after = Images(tmp_path, flat({"cat": 30, "dog": 21})).sides(holdouts=holdouts)
    assert sum(after[name] != split for name, split in first.items()) <= 2


def test_few_shot_keeps_the_eval_split_whatever_the_number(tmp_path: Path) -> None:
    images = Images(tmp_path, flat({"dog": 20, "fox": 20}))
    holdouts = {"eval": {"fraction": 0.5}}
    full = images.sides(holdouts=holdouts)
    few = images.sides(holdouts=holdouts, per_class=4)
    assert images.arrange(holdouts=holdouts, per_class=4).class_counts("train") == (4, 4)
    assert {n for n, s in full.items() if s == "eval"} == {n for n, s in few.items() if s == "eval"}
    assert all(full[name] == split for name, split in few.items())


def test_neighbours_are_of_mixed_classes(tmp_path: Path) -> None:
    images = Images(tmp_path, flat({"cat": 100, "dog": 100}))
    labels = images.population.rows["cls"][images.arrange().order("train")].astype(int)
    changes = int((np.diff(labels) != 0).sum())
    assert abs(changes - 99.5) < 3 * np.sqrt(199) / 2  # three sigma of fair coins


def test_every_good_image_is_in_one_place_and_no_rejected_one(tmp_path: Path) -> None:
    images = Images(tmp_path, flat({"cat": 50, "dog": 50}))
    images.verdicts["state"][::7] = REJECTED
    found = images.arrange(holdouts={"eval": {"fraction": 0.3}}, shard_samples=9)
    rows = np.concatenate([found.order(split) for split in found.splits])
    assert sorted(rows.tolist()) == np.flatnonzero(images.verdicts["state"] == GOOD).tolist()
    for split in found.splits:
        assert found.cuts(split)[-1] == len(found.order(split)) == sum(found.class_counts(split))


def test_what_was_arranged_is_kept_and_only_for_the_same_choices(tmp_path: Path) -> None:
    images = Images(tmp_path, flat({"cat": 9}))
    first = images.arrange()
    before = (tmp_path / "order-train.npy").stat().st_mtime_ns
    assert images.arrange().key == first.key
    assert (tmp_path / "order-train.npy").stat().st_mtime_ns == before
    assert images.arrange(seed=3).key != first.key
    assert (tmp_path / "order-train.npy").stat().st_mtime_ns != before


def test_verdicts_of_other_options_are_refused(tmp_path: Path) -> None:
    images = Images(tmp_path, flat({"cat": 9}))
    images.arrange()
    spec = BuildSpec.parse({"name": "x", "near_duplicates": 3}, "test")
    with pytest.raises(Misuse, match="checked with other options; run stage check again"):
        arrange(images.population, Checked(tmp_path, "old"), spec, tmp_path)


def test_an_unfinished_stage_is_named(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="not arranged yet; run stage arrange first"):
        Arranged(tmp_path)


def test_a_class_without_an_image_is_named_or_allowed(tmp_path: Path) -> None:
    images = Images(tmp_path, flat({"cat": 3, "dog": 2}))
    images.verdicts["state"][3:] = REJECTED
    with pytest.raises(Misuse, match=r"class 'dog' has no usable image to train on \(1 such"):
        images.arrange()
    found = images.arrange(allow_empty=True)
    assert found.empty == ("dog",)
    assert found.class_counts("train") == (3, 0)
    images.verdicts["state"] = REJECTED
    with pytest.raises(Misuse, match="no good image to train on is left"):
        images.arrange(allow_empty=True, seed=1)


def test_a_published_label_space_keeps_its_order_and_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = Images(tmp_path, flat({"n01443537": 2, "n01440764": 1}), space="imagenet_1k")
    found = images.arrange(label_space="imagenet_1k")
    assert found.labels.name == "imagenet_1k"
    assert len(found.labels) == 1000
    assert found.class_counts("train")[:3] == (1, 2, 0)
    assert len(found.empty) == 998
    assert "998 of 1,000 classes have no image to train on: n01484850" in capsys.readouterr().err
