"""The settings of every published recipe, figure by figure as their sources print them.

Sources: google/automl efficientnetv2 (effnetv2_configs.py, datasets.py, hparams.py, main.py) for
the released variant; Tan and Le 2021 (arXiv 2104.00298) table 6 and section 4 for the paper's;
Tan and Le 2019 (arXiv 1905.11946) for V1.
"""

from functools import cache
from pathlib import Path

import pytest

from pipeline.recipe import Recipe, load_recipe


@cache
def recipe(repo: Path, name: str) -> Recipe:
    return load_recipe(repo / "configs" / f"{name}.yaml")


# efficientnetv2_params: train px, eval px, dropout, RandAugment, mixup = cutmix
V2 = {
    "v2_s_1k": (300, 384, 0.2, 10, 0.0),
    "v2_m_1k": (384, 480, 0.3, 15, 0.2),
    "v2_l_1k": (384, 480, 0.4, 20, 0.5),
    "v2_b0_1k": (192, 224, 0.2, 0, 0.0),
    "v2_b1_1k": (192, 240, 0.2, 0, 0.0),
    "v2_b2_1k": (208, 260, 0.3, 0, 0.0),
    "v2_b3_1k": (240, 300, 0.3, 0, 0.0),
}


@pytest.mark.parametrize(("name", "row"), V2.items())
def test_the_released_v2_models(repo: Path, name: str, row: tuple[float, ...]) -> None:
    loaded = recipe(repo, name)
    stages = loaded.stages.resolve()
    last = stages[-1]
    assert len(stages) == 4
    assert (last.px, loaded.preprocess.eval_px, last.dropout) == row[:3]
    assert (last.randaugment, last.mixup, last.cutmix) == (row[3], row[4], row[4])
    assert all(stage.dropout == row[2] for stage in stages), "dropout is not ramped"
    if last.cutmix:
        assert all(stage.cutmix_labels == "mean" for stage in stages)


# efficientnetv1_params: eval px, dropout; train px is 0.8 of it, int(...) // 16 * 16 in main.py
V1 = {0: (224, 0.2), 1: (240, 0.2), 2: (260, 0.3), 3: (300, 0.3), 4: (380, 0.4), 5: (456, 0.4),
      6: (528, 0.5), 7: (600, 0.5)}  # fmt: skip
V1_PX = [176, 192, 208, 240, 304, 352, 416, 480]


@pytest.mark.parametrize(("number", "row"), V1.items())
def test_the_released_v1_models(repo: Path, number: int, row: tuple[int, float]) -> None:
    loaded = recipe(repo, f"v1_b{number}_1k")
    (stage,) = loaded.stages.resolve()
    assert stage.px == V1_PX[number] == int(row[0] * 0.8) // 16 * 16
    assert (loaded.preprocess.eval_px, stage.dropout) == row
    assert (stage.randaugment, stage.mixup, stage.cutmix) == (0, 0, 0)


FROM_SCRATCH = [*V2, *(f"v1_b{n}_1k" for n in V1)]


@pytest.mark.parametrize("name", FROM_SCRATCH)
def test_imagenet1k_from_scratch(repo: Path, name: str) -> None:
    """datasets.py, ImageNet: 0.016 for each 256 images, 5 epochs of warmup, 0.97 every 2.4."""
    loaded = recipe(repo, name)
    assert loaded.length.epochs == 350 and loaded.batch.global_size == 4096
    assert loaded.lr.peak == pytest.approx(0.016 * 4096 / 256) == pytest.approx(0.256)
    assert (loaded.lr.kind, loaded.lr.warmup_epochs) == ("exponential", 5)
    assert (loaded.lr.decay_rate, loaded.lr.decay_epochs) == (0.97, 2.4)
    assert (loaded.loss.kind, loaded.loss.label_smoothing) == ("softmax", 0.1)
    assert loaded.data.name == "imagenet1k"
    plan = loaded.plan(1_256_144)
    assert plan.total_steps == 107_336
    assert round(plan.at(107_335).lr, 4) == 0.0031


@pytest.mark.parametrize("name", [*FROM_SCRATCH, "v2_s_21k", "v2_b1_21k", "v2_xl_21k_released"])
def test_the_optimizer_and_the_average(repo: Path, name: str) -> None:
    """hparams.py: RMSProp 0.9, 0.9, 1e-3; decay of the weights 1e-5; average 0.9999."""
    loaded = recipe(repo, name)
    assert (loaded.optim.decay, loaded.optim.momentum, loaded.optim.eps) == (0.9, 0.9, 1e-3)
    assert loaded.optim.weight_decay == 1e-5
    assert (loaded.ema.decay, loaded.ema.warmup) == (0.9999, True)
    assert loaded.model.bn_eps == 1e-3


@pytest.mark.parametrize("name", ["v2_s_1k", "v2_m_1k_paper", "v2_l_1k_arxiv_v1", "v2_xl_21k",
                                  "v2_b3_21k_released"])  # fmt: skip
def test_pixels_of_s_to_xl(repo: Path, name: str) -> None:
    """preprocessing.py: tf.image.resize (bilinear, no antialias), pixels less 128 by 128."""
    augment, preprocess = recipe(repo, name).augment, recipe(repo, name).preprocess
    assert augment.crop_area == (0.05, 1.0) and augment.crop_ratio == (0.75, 1.33)
    assert (augment.crop, augment.crop_attempts) == ("tensorflow", 100)
    assert augment.kind == ("none" if name.endswith("released") else "randaugment")
    assert augment.num_layers == 2 and augment.reference_px is None
    for pixels in (augment, preprocess):
        assert (pixels.interpolation, pixels.antialias) == ("bilinear", False)
    assert preprocess.mean == preprocess.std == (128.0,) * 3
    assert preprocess.eval_resize == "auto"


@pytest.mark.parametrize("name", [name for name in FROM_SCRATCH if "_b" in name])
def test_legacy_pixels_of_v1_and_v2_b(repo: Path, name: str) -> None:
    """preprocess_legacy.py: bicubic, AutoAugment v0, ImageNet's mean and deviation times 255."""
    augment, preprocess = recipe(repo, name).augment, recipe(repo, name).preprocess
    assert augment.crop_area == (0.08, 1.0) and augment.crop_ratio == (3 / 4, 4 / 3)
    assert (augment.crop, augment.crop_attempts) == ("tensorflow_legacy", 10)
    assert augment.kind == "autoaugment_v0"
    for pixels in (augment, preprocess):
        assert (pixels.interpolation, pixels.antialias) == ("bicubic", False)
    assert preprocess.mean == pytest.approx([255 * m for m in (0.485, 0.456, 0.406)])
    assert preprocess.std == pytest.approx([255 * s for s in (0.229, 0.224, 0.225)])
    assert preprocess.eval_resize == "center"


SIZES = ("s", "m", "l", "xl", "b0", "b1", "b2", "b3")


@pytest.mark.parametrize("size", SIZES)
def test_imagenet21k_released(repo: Path, size: str) -> None:
    """datasets.py, ImageNet21k: 0.008 for each 256 images, cosine, nothing that regularises."""
    loaded = recipe(repo, f"v2_{size}_21k_released")
    (stage,) = loaded.stages.resolve()
    assert (stage.px, loaded.preprocess.eval_px) == (224, 224)
    assert (stage.randaugment, stage.mixup, stage.cutmix, stage.dropout) == (0, 0, 0, 0)
    assert (loaded.augment.kind, loaded.augment.hflip) == ("none", True)
    assert loaded.model.drop_path == 0 and loaded.loss.label_smoothing == 0
    assert loaded.model.bn_momentum == 0.1
    _check_21k(loaded)


@pytest.mark.parametrize("size", SIZES)
def test_imagenet21k_of_the_paper(repo: Path, size: str) -> None:
    """The same training, with the stages of ImageNet-1k (section 4.2)."""
    loaded = recipe(repo, f"v2_{size}_21k")
    stages = loaded.stages.resolve()
    assert len(stages) == 4 and stages[0].px == 128
    assert (stages[0].randaugment, stages[0].mixup, stages[0].dropout) == (5, 0, 0.1)
    assert loaded.model.drop_path == 0.2 and loaded.loss.label_smoothing == 0
    assert loaded.model.bn_momentum == 0.01
    _check_21k(loaded)


def _check_21k(loaded: Recipe) -> None:
    assert loaded.length.epochs == 60 and loaded.batch.global_size == 4096
    assert loaded.lr.peak == pytest.approx(0.008 * 4096 / 256) == pytest.approx(0.128)
    assert (loaded.lr.kind, loaded.lr.warmup_epochs) == ("cosine", 1)
    assert loaded.loss.kind == "softmax"
    assert loaded.plan(12_720_275).total_steps == 186_332


# ImagenetFt: isize 1.0 of the eval size in whole 16s
FINETUNE = {"s": (384, 384), "m": (480, 480), "l": (480, 480), "xl": (512, 512),
            "b0": (224, 224), "b1": (240, 240), "b2": (256, 260), "b3": (288, 300)}  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
def test_finetuning_on_imagenet1k(repo: Path, size: str) -> None:
    loaded = recipe(repo, f"v2_{size}_21k_ft1k")
    (stage,) = loaded.stages.resolve()
    assert (stage.px, loaded.preprocess.eval_px) == FINETUNE[size]
    assert stage.px == int(loaded.preprocess.eval_px * 1.0) // 16 * 16
    _check_finetuning(loaded)
    assert loaded.plan(1_256_144).total_steps == 36_801
    assert loaded.data.name == "imagenet1k"


@pytest.mark.parametrize("num_train", [50_000, 2_040, 1_020, 8_144])
def test_finetuning_on_small_sets_takes_10_000_steps(repo: Path, num_train: int) -> None:
    """CIFAR, Flowers (by either count) and Cars: 15 epochs are less than the floor."""
    loaded = recipe(repo, "transfer_finetune")
    _check_finetuning(loaded)
    assert loaded.plan(num_train).total_steps == 10_000


def _check_finetuning(loaded: Recipe) -> None:
    """datasets.py, ImagenetFt, and preprocess_for_finetune."""
    (stage,) = loaded.stages.resolve()
    assert (stage.randaugment, stage.mixup, stage.cutmix, stage.dropout) == (0, 0, 0, 0)
    assert loaded.batch.global_size == 512
    assert (loaded.length.epochs, loaded.length.min_steps) == (15, 10_000)
    assert (loaded.lr.kind, loaded.lr.warmup_epochs) == ("constant", 1)
    assert loaded.lr.peak == pytest.approx(0.0005 * 512 / 256) == pytest.approx(0.001)
    assert (loaded.optim.weight_decay, loaded.ema.decay) == (1e-5, 0.9996)
    assert (loaded.loss.label_smoothing, loaded.model.drop_path) == (0.1, 0.2)
    assert (loaded.augment.crop, loaded.augment.kind) == ("squash", "none")
    assert (loaded.augment.cutout_fraction, loaded.augment.hflip) == (0.25, True)
    assert loaded.preprocess.mean == loaded.preprocess.std == (127.5,) * 3
    assert loaded.preprocess.eval_resize == "squash"


def test_the_papers_transfer(repo: Path) -> None:
    """Section 4.3: 10,000 steps from 0.001 as a cosine, no weight decay, only cutout."""
    loaded = recipe(repo, "transfer_finetune_paper")
    plan = loaded.plan(50_000)
    assert plan.total_steps == 10_000
    assert loaded.lr.kind == "cosine" and loaded.lr.peak == 0.001
    assert plan.at(5_000).lr == pytest.approx(0.0005)
    assert plan.at(9_999).lr < 1e-9
    assert loaded.optim.weight_decay == 0
    assert (loaded.augment.kind, loaded.augment.cutout_fraction) == ("none", 0.25)


# Table 6: px, RandAugment, mixup and dropout, first and last. Version 1 and the final one differ in
# the mixup of L alone.
TABLE_6 = {
    "s": ((128, 300), (5, 15), (0, 0), (0.1, 0.3)),
    "m": ((128, 380), (5, 20), (0, 0.2), (0.1, 0.4)),
    "l": ((128, 380), (5, 25), (0, 0.5), (0.1, 0.5)),
}


@pytest.mark.parametrize("variant", ["paper", "arxiv_v1"])
@pytest.mark.parametrize(("size", "row"), TABLE_6.items())
def test_table_6_of_the_paper(
    repo: Path, variant: str, size: str, row: tuple[tuple[float, float], ...]
) -> None:
    stages = recipe(repo, f"v2_{size}_1k_{variant}").stages.resolve()
    first, last = stages[0], stages[-1]
    mixup = (0, 0.4) if (variant, size) == ("arxiv_v1", "l") else row[2]
    assert len(stages) == 4
    assert (first.px, last.px) == row[0]
    assert (first.randaugment, last.randaugment) == row[1]
    assert (first.mixup, last.mixup) == mixup
    assert (first.dropout, last.dropout) == row[3]
    assert first.cutmix == last.cutmix == 0
