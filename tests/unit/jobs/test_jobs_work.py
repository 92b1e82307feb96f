"""What the planner takes from a recipe is what its model, data and checkpoints really have."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.data.manifest import load_manifest
from pipeline.jobs.look import look, num_train
from pipeline.jobs.work import job_of, sharding_of, work_at
from pipeline.models.efficientnet import build
from pipeline.models.table import ModelSpec
from pipeline.parallel.settings import DdpSpec, DeepspeedSpec, FsdpSpec, StrategySpec
from pipeline.plan.cost import SAVED_A_ELEMENT, Cluster, Sharding, checkpoint_bytes
from pipeline.plan.estimate import Job, estimate
from pipeline.plan.estimate_text import RESERVE
from pipeline.plan.rates import BYTES_AN_IMAGE, PHOTOGRAPH, RATES, Rate
from pipeline.recipe import load_recipe
from pipeline.run.folder import RunFolder


def job(repo: Path, config: str, *overrides: str) -> Job:
    recipe = load_recipe(repo / f"configs/{config}.yaml", overrides)
    found = look(recipe)
    return job_of(recipe, recipe.plan(num_train(recipe, found)), found.manifest)


@pytest.mark.parametrize("rate", RATES, ids=lambda rate: f"{rate.card}-{rate.model}-{rate.bits}")
def test_the_costs_beside_the_rates_are_the_models_own(rate: Rate) -> None:
    work = work_at(ModelSpec(name=rate.model), 1000)(rate.px)
    assert round(work.macs / 1e9, 4) == pytest.approx(rate.gmacs, abs=1e-4)
    assert round(work.elements / 1e6, 4) == pytest.approx(rate.melements, abs=1e-4)


@pytest.mark.parametrize(("gpus", "hours"), [(8, 14.0), (16, 7.0)])
def test_the_reserved_time_is_the_published_one(repo: Path, gpus: int, hours: float) -> None:
    """NVIDIA DeepLearningExamples, TensorFlow2 efficientnet_v2 README: V2-S, 350 epochs, A100."""
    found = estimate(job(repo, "v2_s_1k"), Cluster("a100", gpus // 8, 8, 1600), gpus)
    assert RESERVE * found.total_s / 3600 == pytest.approx(hours, rel=0.1)


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("name", ["v2_b0", "v1_b0"])
def test_the_backward_pass_keeps_what_the_formula_says(name: str, bits: int) -> None:
    model = build(ModelSpec(name=name), 10, np.random.default_rng(0))
    model.train().to(memory_format=torch.channels_last)
    images = torch.randn(8, 3, 96, 96).to(memory_format=torch.channels_last)
    known = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    noise = model.draw_noise(8, 0.2, np.random.default_rng(0))
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bits == 16),
    ):
        model(images, noise).float().sum()
    saved = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    work = work_at(ModelSpec(name=name), 10)(96)
    saved -= 2 * work.params if bits == 16 else 0  # autocast's copies, counted as weights
    assert saved == pytest.approx(8 * work.elements * SAVED_A_ELEMENT * bits / 8, rel=0.05)


def test_a_checkpoint_has_the_bytes_that_were_planned(finished: RunFolder, repo: Path) -> None:
    folder = sorted(finished.checkpoints.glob("step-*"))[-1]
    files = sorted(folder.glob("*.safetensors"))
    tensors = [tensor for path in files for tensor in load_file(path).values()]
    work = job(repo, "demo", "data={path: /nowhere, num_train: 72, num_classes: 6}").work_at(16)
    assert len(files) == 4
    assert sum(tensor.nbytes for tensor in tensors) == checkpoint_bytes(work)


def test_bytes_of_an_image_are_the_manifests(low_digits: Path, repo: Path) -> None:
    found = job(repo, "demo", f"data={low_digits}")
    split = load_manifest(low_digits).split("train")
    assert found.bytes_an_image == split.num_bytes / split.num_samples
    assert found.bytes_basis == "the manifest's"
    assert found.eval_images == load_manifest(low_digits).split("eval").num_samples


def test_without_shards_the_card_is_looked_up_and_else_assumed(repo: Path) -> None:
    known = job(repo, "v2_s_1k")
    assert (known.bytes_an_image, known.bytes_basis) == BYTES_AN_IMAGE["imagenet1k"]
    other = job(repo, "demo", "data={path: /nowhere, num_train: 72, num_classes: 6}")
    assert (other.bytes_an_image, other.bytes_basis) == PHOTOGRAPH


def test_the_recipes_settings_arrive(repo: Path) -> None:
    found = job(repo, "v2_s_1k", "compute.precision=fp32", "loader.workers=3", "checkpoint.keep=7")
    assert (found.bits, found.cores, found.kept) == (32, 3, 9)
    assert found.evaluations == 51, "each 2,189 of 109,474 steps, and the end"
    assert job(repo, "v2_s_1k").bits == 16


@pytest.mark.parametrize(
    ("strategy", "sharding"),
    [
        (DdpSpec(), Sharding()),
        (DeepspeedSpec(zero_stage=2), Sharding(2)),
        (DeepspeedSpec(zero_stage=3, offload_optimizer=True), Sharding(3, True)),
        (FsdpSpec(), Sharding(3)),
        (FsdpSpec(reshard_after_forward=False), Sharding(2)),
    ],
)
def test_strategies_are_told_in_zeros_stages(strategy: StrategySpec, sharding: Sharding) -> None:
    assert sharding_of(strategy) == sharding


def test_the_same_network_of_timm_costs_the_same() -> None:
    pytest.importorskip("timm")
    ours, theirs = (
        work_at(ModelSpec(name=name), 1000)(64) for name in ("v2_s", "timm/efficientnetv2_s")
    )
    assert theirs == ours._replace(model="timm/efficientnetv2_s")
