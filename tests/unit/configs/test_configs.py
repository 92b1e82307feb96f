"""The configs that ship: all load, published ones say what of, and 32 ranks share their work."""

import re
from functools import cache
from pathlib import Path

import pytest

from launch.chain import read_chain
from pipeline.jobs.prepare import plan_text
from pipeline.jobs.suite import load_suite
from pipeline.models.table import TABLE
from pipeline.recipe import DataSpec, Recipe, load_recipe
from pipeline.spec import Misuse, load

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
FILES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
KINDS = {name: set(load(CONFIGS / f"{name}.yaml")) for name in FILES}
SUITES = [name for name in FILES if "tasks" in KINDS[name]]
CHAINS = [name for name in FILES if "jobs" in KINDS[name]]
RUNS = [name for name in FILES if name not in (*SUITES, *CHAINS)]
PUBLISHED = [name for name in RUNS if re.match(r"v[12]_", name)]
FINETUNES = ["transfer_finetune", "transfer_finetune_paper"]
CARDS = sorted(path.stem for path in (CONFIGS / "data").glob("*.yaml"))
SIZES = {"s": 384, "m": 480, "l": 480, "xl": 512, "b0": 224, "b1": 240, "b2": 260, "b3": 300}


COLUMNS = ("steps", "px", "randaug", "mixup", "cutmix", "dropout", "lr-first", "lr-last", "GMACs")


@cache
def recipe(name: str, *overrides: str) -> Recipe:
    return load_recipe(CONFIGS / f"{name}.yaml", overrides)


PARTS = {
    "parts/ddp": {"strategy"},
    "parts/deepspeed": {"strategy"},
    "parts/optim_rmsprop": {"optim", "ema"},
    "parts/lr_1k": {"length", "batch", "lr"},
    "parts/lr_21k": {"length", "batch", "lr"},
    "parts/lr_finetune": {"length", "batch", "lr", "ema"},
    "parts/lr_finetune_paper": {"length", "batch", "lr", "optim", "ema"},
    "parts/pixels": {"augment", "preprocess"},
    "parts/pixels_legacy": {"augment", "preprocess"},
    "parts/pixels_finetune": {"augment", "preprocess"},
    "parts/released": {"variant", "model"},
    "parts/paper": {"variant", "model"},
    "parts/arxiv_v1": {"variant", "model"},
}


@pytest.mark.parametrize(("part", "fields"), PARTS.items())
def test_a_part_settles_one_thing(part: str, fields: set[str]) -> None:
    assert set(load(CONFIGS / f"{part}.yaml")) == fields


@pytest.mark.parametrize("name", RUNS)
def test_every_run_loads_and_plans(name: str) -> None:
    loaded = recipe(name)
    plan = loaded.plan(loaded.data.num_train or 1_500)
    assert plan.total_steps > 0
    assert plan.at(plan.total_steps - 1).lr >= 0
    assert loaded.name.replace("-", "_") == name
    assert loaded.source and loaded.expects
    printed = plan_text(loaded, plan, None)
    assert f"source: {loaded.source}" in printed and f"expects: {loaded.expects}" in printed
    lines = printed.splitlines()
    (head,) = [i for i, line in enumerate(lines) if line.split()[:1] == ["stage"]]
    assert set(COLUMNS) <= set(lines[head].replace("lr ", "lr-").split())
    assert len(lines[head + 1 : lines.index("", head)]) == len(plan.stages)
    assert re.search(r"GMACs an image forward on average, .* throughout: -?\d+% saved", printed)


def test_the_plan_says_what_no_stage_changes() -> None:
    """Else RandAugment 0 of the older models would read as no augmentation at all."""
    printed = plan_text(recipe("v1_b0_1k"), recipe("v1_b0_1k").plan(1_281_167), None)
    assert "images: crop tensorflow_legacy, autoaugment_v0; evaluated at 224 px, center" in printed
    assert "drop-path 0.2, BatchNorm momentum 0.1, loss softmax" in printed
    assert "!" not in printed
    printed = plan_text(recipe("v2_s_21k_released"), recipe("v2_s_21k_released").plan(10**7), None)
    assert "crop tensorflow, none; evaluated at 224 px, auto" in printed
    assert "label smoothing 0, drop-path 0," in printed
    other = recipe("v2_s_1k", "augment.kind=autoaugment_v0")
    assert "stages.randaugment is idle" in plan_text(other, other.plan(1_281_167), None)


def test_the_cost_of_a_small_model_is_not_rounded_away() -> None:
    """Its saving would otherwise be one of 0.01 GMACs against 0.01."""
    loaded = recipe("cifar10")
    printed = plan_text(loaded, loaded.plan(50_000), None)
    mean, last = re.findall(r"^([\d.]+) GMACs .* average, ([\d.]+) at", printed, re.M)[0]
    assert 0.0114 == float(last) > float(mean) > 0.008


@pytest.mark.parametrize("name", [*PUBLISHED, *FINETUNES])
def test_every_published_run_is_on_the_page_of_recipes(name: str) -> None:
    assert f"`{name}`" in (CONFIGS.parent / "docs" / "recipes.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", RUNS)
def test_a_recorded_recipe_reads_back_as_the_same(name: str) -> None:
    loaded = recipe(name)
    assert Recipe.parse(loaded.values(), "recorded").digest() == loaded.digest()


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_and_its_tasks_load(name: str) -> None:
    suite, config = load_suite(CONFIGS / f"{name}.yaml", None)
    for task in suite.tasks:
        loaded = load_recipe(config, [*task.overrides, f"data={task.data}", "seed=3"])
        assert loaded.plan(loaded.data.num_train or 1_500).total_steps > 0


@pytest.mark.parametrize("name", CHAINS)
def test_every_chain_names_configs_that_exist(name: str) -> None:
    chain = read_chain([CONFIGS / f"{name}.yaml"])
    named = [word for job in chain.jobs for word in job.run if word.endswith(".yaml")]
    assert named
    for word in named:
        assert (CONFIGS.parent / word).is_file(), word


@pytest.mark.parametrize("name", CARDS)
def test_every_data_card_counts_what_will_be_there(name: str) -> None:
    card = DataSpec.parse(load(CONFIGS / "data" / f"{name}.yaml"), name)
    assert card.path == f"data/{name}"
    assert card.num_train and card.num_eval and card.num_classes
    assert len(card.source) > 20


def test_the_cards_have_the_published_counts() -> None:
    counts = {}
    for name in CARDS:
        card = DataSpec.parse(load(CONFIGS / "data" / f"{name}.yaml"), name)
        counts[name] = (card.num_train, card.num_eval, card.num_classes)
    winter = counts["imagenet21k_winter21"]
    assert (sum(filter(None, winter[:2])), winter[2]) == (13_153_500, 19_167)
    assert counts["imagenet1k"] == (1_281_167, 50_000, 1_000)
    assert counts["imagenet21k_fall11"] == (12_720_275, 100_357, 21_841)
    assert counts["cifar10"] == (50_000, 10_000, 10)
    assert counts["cifar100"] == (50_000, 10_000, 100)
    assert counts["flowers102"] == (2_040, 6_149, 102)
    assert counts["cars"] == (8_144, 8_041, 196)
    assert counts["aircraft"] == (6_667, 3_333, 100)
    assert counts["pets"] == (3_680, 3_669, 37)
    assert counts["food101"] == (75_750, 25_250, 101)
    assert counts["birdsnap"] == (47_386, 2_443, 500)


@pytest.mark.parametrize("name", [*PUBLISHED, *FINETUNES])
def test_published_runs_are_for_a_cluster(name: str) -> None:
    loaded = recipe(name)
    assert re.search(r"automl|Tan and Le", loaded.source)
    assert re.search(r"\d\d\.\d % top-1", loaded.expects)
    assert not loaded.augment.antialias, "the official pixels"
    assert loaded.compute.precision == "bf16" and loaded.compute.channels_last
    assert loaded.loader.lanes == 256
    finetune = name.endswith("_ft1k") or name in FINETUNES
    assert loaded.batch.global_size == (512 if finetune else 4096)
    assert loaded.loss.label_smoothing == (0.0 if "_21k" in name and not finetune else 0.1)
    for stage in loaded.stages.resolve():
        assert stage.micro_batches % 32 == 0, "4 nodes of 8 GPUs share every stage"
        assert loaded.batch.global_size // stage.micro_batches >= 16, "BatchNorm sees enough"


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_runs_name_their_variant(name: str) -> None:
    loaded = recipe(name)
    pretraining = name.endswith(("_21k", "_paper"))
    expected = "paper" if pretraining else "arxiv_v1" if "arxiv" in name else "released"
    assert loaded.variant == expected
    assert loaded.model.bn_momentum == (0.1 if expected == "released" else 0.01)
    assert loaded.stages.kind in (expected, "fixed")
    assert loaded.model.drop_path == (0.0 if name.endswith("_21k_released") else 0.2)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith("v2")])
def test_images_are_evaluated_at_the_models_size(name: str) -> None:
    loaded = recipe(name)
    row = TABLE[loaded.model.name]
    assert loaded.model.name.startswith("_".join(name.split("_")[:2]))
    assert row.eval_px == SIZES[name.split("_")[1]]
    assert loaded.preprocess.eval_px == (224 if name.endswith("_21k_released") else row.eval_px)
    assert not loaded.preprocess.antialias
    if loaded.variant == "released" and loaded.stages.kind == "released":
        assert loaded.stages.resolve()[0].px > 128, "the first size is never trained"
        assert loaded.stages.resolve()[0].dropout == row.dropout


@pytest.mark.parametrize("size", SIZES)
def test_a_finetuning_starts_from_its_pretraining(size: str) -> None:
    """The registered name and the model fit, so that the head alone is new."""
    before, after = recipe(f"v2_{size}_21k"), recipe(f"v2_{size}_21k_ft1k")
    assert before.tracking.register_as == f"effnetv2-{size}-21k"
    assert after.init is not None
    assert after.init.origin.split("@")[0] == f"models:/{before.tracking.register_as}"
    assert before.model.name == after.model.name


def test_registered_names_are_not_shared() -> None:
    names = [recipe(name).tracking.register_as for name in PUBLISHED]
    assert len(set(names)) == len(names)


def test_the_published_21k_steps_come_with_the_published_data() -> None:
    card = DataSpec.parse(load(CONFIGS / "data/imagenet21k_fall11.yaml"), "card")
    loaded = recipe("v2_l_21k_released", "data=imagenet21k_fall11")
    assert loaded.data == card.model_copy(update={"name": "imagenet21k_fall11"})
    assert loaded.plan(loaded.data.num_train or 0).total_steps == 186_332


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_run_trains_with_deepspeed_as_well(name: str) -> None:
    assert load(CONFIGS / "parts/deepspeed.yaml") == {
        "strategy": {"kind": "deepspeed", "zero_stage": 1}
    }
    assert recipe(name).strategy.kind == "ddp"
    loaded = recipe(name, "strategy={kind: deepspeed, zero_stage: 1}")
    assert loaded.strategy.kind == "deepspeed"


def test_finetuning_sees_whole_images_with_a_square_of_noise() -> None:
    """No random crop; half the square's side is a quarter of the image's, as published."""
    import numpy as np

    from pipeline.data.augment import draw
    from pipeline.data.ops import OPS

    augment = recipe("v2_s_21k_ft1k").augment
    for width, height in [(500, 375), (40, 2000), (2000, 40), (1, 1)]:
        drawn = draw(width, height, 384, augment, 0.0, np.random.default_rng(0))
        assert drawn.box == (0, 0, width, height)
        assert [OPS[op.code] for op in drawn.ops] == ["NoiseBox"]
    assert recipe("v2_s_21k_ft1k").preprocess.box(500, 375, 384) == (0, 0, 500, 375)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if re.match(r"v[12]_b\d_1k", name)])
def test_the_older_models_take_autoaugment(name: str) -> None:
    assert recipe(name).augment.kind == "autoaugment_v0"


def test_cifar_grows_from_20_to_32_px() -> None:
    loaded = recipe("cifar10")
    assert [stage.px for stage in loaded.stages.resolve()] == [20, 24, 28, 32]
    assert loaded.augment.crop_area == (0.5, 1.0) and loaded.augment.reference_px == 224
    assert all(stage.micro_batches % 2 == 0 for stage in loaded.stages.resolve())


@pytest.mark.parametrize("page", sorted(p.name for p in CONFIGS.parent.glob("docs/*.md")))
def test_local_trainings_on_the_pages_say_how_many_ranks(page: str) -> None:
    """Without it the command is refused."""
    text = (CONFIGS.parent / "docs" / page).read_text(encoding="utf-8")
    for words in re.findall(r"-m launch local (.*train .*)", text):
        assert re.match(r"--ranks \d+ train configs/\w+\.yaml", words), words


@pytest.mark.parametrize("script", sorted(p.name for p in CONFIGS.parent.glob("launch/*.sh")))
def test_every_launch_script_names_a_config_that_loads(script: str) -> None:
    text = (CONFIGS.parent / "launch" / script).read_text(encoding="utf-8")
    (name,) = re.findall(r"train configs/([\w.-]+)\.yaml", text)
    assert f"{name}.sh" == script
    assert name in PUBLISHED


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lr.peek=0.1", "field 'lr.peek' is unknown"),
        ("stages.4.px=224", "there is no stage 4"),
        ("model.name=v2_xxl", "no such model; there are: v2_b0"),
        ("loader.lanes=100", "lanes must be a multiple"),
        ("data=imagenet22k", "neither a folder of shards nor a data card; .*imagenet1k"),
        ("variant=official", "'released', 'paper', 'arxiv_v1' or 'own'"),
        ("length.steps=5", "exactly one of epochs and steps"),
    ],
)
def test_a_wrong_override_names_field_and_remedy(override: str, message: str) -> None:
    with pytest.raises(Misuse, match=message):
        recipe("v2_l_21k", override)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["batch.global_size=4100"], "micro_batches' is 32: it must divide batch.global_size 4100"),
        (["length={steps: 3}", "lr.warmup_epochs=0"], "3 steps cannot hold 4 stages"),
        (["stages.px=[16, 380]"], "'stages.0.px' is 16: .* 32 px or more; set stages.0.px=32"),
        (["preprocess.eval_px=31"], "'preprocess.eval_px' is 31: .* 32 px or more"),
        (
            ["stages={kind: fixed, px: 32, micro_batches: 64}", "batch.global_size=64"],
            "'stages.0.micro_batches' is 64: .* at most 32 micro-batches, or images over 32 px",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_first_step(
    overrides: list[str], message: str
) -> None:
    with pytest.raises(Misuse, match=message):
        recipe("v2_l_21k", *overrides).plan(1_281_167)
