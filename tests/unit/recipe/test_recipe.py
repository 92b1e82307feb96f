"""The recipe: shorthands, cards, checks across rooms, and what a run records of it."""

from pathlib import Path

import pytest

from pipeline.recipe import Recipe, load_recipe, load_recorded
from pipeline.run.folder import RunFolder
from pipeline.spec import Misuse, dump


@pytest.fixture
def demo(repo: Path) -> Path:
    return repo / "configs" / "demo.yaml"


def test_plain_words_stand_for_the_mappings_they_name(demo: Path, tmp_path: Path) -> None:
    tmp_path.joinpath("shards").mkdir()
    words = ("model=v1_b0", f"data={tmp_path}/shards", "strategy=deepspeed", "init=models:/a/1")
    recipe = load_recipe(demo, words)
    assert recipe.model.name == "v1_b0"
    assert recipe.data.path == f"{tmp_path}/shards"
    assert recipe.strategy.kind == "deepspeed"
    assert recipe.init is not None
    assert recipe.init.origin == "models:/a/1"


def test_a_data_card_brings_its_counts_and_single_values_stay_on_top(demo: Path) -> None:
    recipe = load_recipe(demo, ["data=cifar10"])
    assert (recipe.data.name, recipe.data.num_train, recipe.data.num_classes) == (
        "cifar10", 50_000, 10,
    )  # fmt: skip
    other = load_recipe(demo, ["data={path: cifar10, eval: minival, num_eval: 7}"])
    assert (other.data.eval, other.data.num_eval, other.data.num_train) == ("minival", 7, 50_000)


def test_a_single_value_can_be_added_to_a_section_that_is_one_word(demo: Path) -> None:
    recipe = load_recipe(demo, ["data.num_train=9", "model.padding=same", "data.eval=minival"])
    assert (recipe.data.path, recipe.data.num_train) == ("data/digits", 9)
    assert recipe.data.eval == "minival"
    assert (recipe.model.name, recipe.model.padding) == ("tiny", "same")


def test_an_unknown_card_is_answered_with_those_that_exist(demo: Path) -> None:
    with pytest.raises(Misuse, match=r"'imagenet22k'.*imagenet21k_winter21"):
        load_recipe(demo, ["data=imagenet22k"])


def test_another_strategy_does_not_inherit_the_settings_of_the_first(demo: Path) -> None:
    with pytest.raises(Misuse, match=r"strategy.*zero_stage' is unknown"):
        load_recipe(demo, ["strategy={kind: ddp, zero_stage: 1}"])
    with pytest.raises(Misuse, match="strategy"):
        load_recipe(demo, ["strategy=horovod"])
    with pytest.raises(Misuse, match=r"compute.compile is true, strategy.zero_stage 3"):
        load_recipe(demo, ["strategy={kind: deepspeed, zero_stage: 3}", "compute.compile=true"])
    with pytest.raises(Misuse, match=r"model.bn_group is 3, stages have .* micro-batches"):
        load_recipe(demo, ["model.bn_group=3"])


def test_lanes_must_hold_the_micro_batches_of_every_stage(demo: Path) -> None:
    load_recipe(demo, ["loader.lanes=64", "stages.2.micro_batches=8"])
    with pytest.raises(Misuse, match="lanes is 60, stages have 8 micro-batches"):
        load_recipe(demo, ["loader.lanes=60", "stages.2.micro_batches=8"])


def test_all_mistakes_come_in_one_message(demo: Path) -> None:
    words = ["lr.peek=1", "model.name=v3", "batch.global_size=many", "compute.precision=fp8"]
    with pytest.raises(Misuse) as caught:
        load_recipe(demo, words)
    for field in ("lr.peek", "model", "batch.global_size", "compute.precision"):
        assert f"'{field}" in str(caught.value)
    assert str(demo) in str(caught.value)


@pytest.mark.parametrize("name", ["", "../up", ".hidden", "a b", "x;touch y"])
def test_a_run_name_cannot_leave_the_folder_of_runs(demo: Path, name: str) -> None:
    with pytest.raises(Misuse, match="'name'"):
        load_recipe(demo, [f"name='{name}'"])


@pytest.mark.parametrize("config", ["demo", "v2_l_21k", "v2_s_1k_arxiv_v1", "v2_m_21k_ft1k"])
def test_a_recorded_recipe_reads_back_to_the_same_digest(
    repo: Path, tmp_path: Path, config: str
) -> None:
    words = [f"runs={tmp_path}", "stages.0.px=96", "name=recorded"]
    recipe = load_recipe(repo / "configs" / f"{config}.yaml", words)
    recipe.folder.path.mkdir()
    recipe.folder.recipe.write_text(dump(recipe.values()))
    again = load_recorded(recipe.folder)
    assert again == recipe
    assert again.digest() == recipe.digest()
    assert again.stages.resolve()[0].px == 96


def test_a_folder_without_a_recipe_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match=r"recipe\.yaml is missing"):
        load_recorded(RunFolder(tmp_path))


def test_the_plan_follows_from_recipe_and_size_of_the_data(demo: Path) -> None:
    recipe: Recipe = load_recipe(demo)
    assert recipe.plan(1438).total_steps == 20 * 1438 // 64
    assert [stage.settings.px for stage in recipe.plan(1438).stages] == [16, 21, 27, 32]


def test_the_digest_changes_with_any_setting(demo: Path) -> None:
    plain = load_recipe(demo).digest()
    assert load_recipe(demo, ["seed=1"]).digest() != plain
    assert load_recipe(demo, ["seed=0"]).digest() == plain


def test_a_rule_over_several_fields_names_them_and_not_the_whole_recipe(repo: Path) -> None:
    config = repo / "configs" / "demo.yaml"
    with pytest.raises(Misuse) as error:
        load_recipe(config, ["strategy={kind: deepspeed, zero_stage: 3}", "compute.compile=true"])
    text = str(error.value)
    assert text.startswith(f"{config}: compute.compile is true, strategy.zero_stage 3: ")
    assert len(text) < 400
    with pytest.raises(Misuse, match=r"field 'compute': loss_scale is 0, precision fp16"):
        load_recipe(config, ["compute={precision: fp16, loss_scale: 0}"])


def test_a_setting_of_a_strategy_that_is_not_named_is_told_to_name_it(repo: Path) -> None:
    with pytest.raises(Misuse, match=r"'strategy' does not say its kind; add strategy.kind="):
        load_recipe(repo / "configs" / "demo.yaml", ["strategy.zero_stage=2"])
