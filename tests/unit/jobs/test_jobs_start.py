"""The first weights: drawn from the seed, or a finished model's with its head made to fit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.data.labels import LabelSpace
from pipeline.data.manifest import load_manifest
from pipeline.data.preprocess import PreprocessSpec
from pipeline.export.package import load_package, write_package
from pipeline.jobs.elsewhere import Origin
from pipeline.jobs.start import adopt, first_weights, of_package, open_package
from pipeline.models.efficientnet import EfficientNet, build
from pipeline.models.table import ModelSpec
from pipeline.parallel.world import World
from pipeline.plan.draws import Stream, keyed
from pipeline.recipe import Recipe, load_recipe
from pipeline.run.folder import RunFolder
from pipeline.spec import Misuse
from pipeline.tracking.settings import TrackingSpec

ALONE = World(0, 1, torch.device("cpu"), owns_group=False)


def drawn(num_classes: int, seed: int, name: str = "tiny") -> EfficientNet:
    return build(ModelSpec(name=name), num_classes, keyed(Stream.WEIGHTS, seed))


def space(*classes: str) -> LabelSpace:
    return LabelSpace(name="test", classes=classes)


def packed(folder: Path, labels: LabelSpace, **spec: Any) -> Origin:
    model = ModelSpec(**{"name": "tiny", **spec})
    state = drawn(len(labels), 7, model.name).state_dict()
    preprocess = PreprocessSpec(eval_px=32, eval_resize="squash")
    write_package(folder, model, state, labels, preprocess, {})
    return of_package("models:/parent/3", load_package(folder))


@pytest.fixture
def recipe(repo: Path, low_digits: Path) -> Recipe:
    words = [f"data={low_digits}", "init=models:/parent/3"]
    return load_recipe(repo / "configs" / "demo.yaml", words)


def parts(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return trunk and head."""
    head = {name for name in state if name.startswith("classifier.")}
    assert head == {"classifier.weight", "classifier.bias"}
    return (
        {name: state[name].clone() for name in state if name not in head},
        {name: state[name].clone() for name in head},
    )


def test_the_seed_alone_decides_the_first_weights(repo: Path, low_digits: Path) -> None:
    def weights(*words: str) -> dict[str, Tensor]:
        recipe = load_recipe(repo / "configs/demo.yaml", [f"data={low_digits}", *words])
        return first_weights(recipe, load_manifest(low_digits), ALONE).state_dict()

    first, again, other = weights("seed=5"), weights("seed=5", "name=x"), weights("seed=6")
    assert first["classifier.weight"].shape[0] == 6
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_the_trunk_is_taken_over_and_head_rows_follow_their_class_names(
    recipe: Recipe, tmp_path: Path
) -> None:
    origin = packed(tmp_path / "package", space("cat", "dog", "cow", "hen"))
    model = drawn(3, 1)
    _, fresh = parts(model.state_dict())
    note = adopt(model, recipe, origin, space("hen", "fox", "cat"))
    trunk, head = parts(model.state_dict())
    old_trunk, old_head = parts(origin.state)
    assert all(torch.equal(trunk[name], old_trunk[name]) for name in trunk)
    for name in head:
        assert torch.equal(head[name][0], old_head[name][3])
        assert torch.equal(head[name][1], fresh[name][1])
        assert torch.equal(head[name][2], old_head[name][0])
    assert "models:/parent/3" in note
    assert "2 of 3 classes taken over, new are fox" in note


def test_equal_classes_give_the_very_same_model_and_no_common_one_a_new_head(
    recipe: Recipe, tmp_path: Path
) -> None:
    labels = space("cat", "dog")
    origin = packed(tmp_path / "package", labels)
    model = drawn(2, 1)
    adopt(model, recipe, origin, labels)
    theirs = origin.state
    assert all(torch.equal(t, theirs[name]) for name, t in model.state_dict().items())
    model = drawn(2, 1)
    _, fresh = parts(model.state_dict())
    assert "0 of 2 classes" in adopt(model, recipe, origin, space("fox", "owl"))
    many = adopt(drawn(12, 1), recipe, origin, space("cat", *(f"new-{n:02}" for n in range(11))))
    assert many.endswith("new-08, new-09 and 1 more")
    _, head = parts(model.state_dict())
    assert all(torch.equal(head[name], fresh[name]) for name in head)


def test_another_architecture_is_refused_and_nothing_is_copied(
    recipe: Recipe, tmp_path: Path
) -> None:
    labels = space("cat", "dog")
    origin = packed(tmp_path / "package", labels, name="v2_cifar")
    model = drawn(2, 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(Misuse) as caught:
        adopt(model, recipe, origin, labels)
    for words in ("'init.from' is 'models:/parent/3'", "v2_cifar", "model.name=tiny"):
        assert words in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("name", "value"), [("padding", "same"), ("bn_eps", 1e-5)])
def test_weights_made_for_another_padding_or_epsilon_are_refused_with_the_setting(
    recipe: Recipe, tmp_path: Path, name: str, value: object
) -> None:
    labels = space("cat", "dog")
    origin = packed(tmp_path / "package", labels, **{name: value})
    with pytest.raises(Misuse, match=f"'model.{name}' is .*; set model.{name}={value}"):
        adopt(drawn(2, 1), recipe, origin, labels)


def test_other_noise_in_training_is_no_other_model(recipe: Recipe, tmp_path: Path) -> None:
    labels = space("cat", "dog")
    adopt(drawn(2, 1), recipe, packed(tmp_path / "package", labels, drop_path=0.5), labels)


def test_a_model_is_opened_from_a_package_or_from_the_run_that_made_it(
    finished: RunFolder, tmp_path: Path
) -> None:
    by_run = open_package(str(finished.path), TrackingSpec())
    by_package = open_package(str(finished.package), TrackingSpec())
    assert by_run.digest == by_package.digest
    assert by_run.labels.classes == ("0", "1", "2", "3", "4", "5")
    with pytest.raises(Misuse, match="no such package folder"):
        open_package(str(tmp_path / "none"), TrackingSpec())
