"""What a recipe's model costs at an image size, and what its data weighs: the planner's inputs.

Models of the table are counted on paper; a model of timm is run once without data (on the meta
device), where attention's own activations are not seen. Nothing here needs a GPU.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from pipeline.data.manifest import Manifest
from pipeline.jobs.prepare import num_classes
from pipeline.models.count import convolutions, model_macs, model_params
from pipeline.models.layout import lay_out
from pipeline.models.table import ModelSpec
from pipeline.parallel.settings import DeepspeedSpec, FsdpSpec, StrategySpec
from pipeline.plan.cost import Sharding, Work
from pipeline.plan.estimate import Job
from pipeline.plan.plan import Plan
from pipeline.plan.rates import BYTES_AN_IMAGE, PHOTOGRAPH, Rate
from pipeline.recipe import Recipe


def job_of(
    recipe: Recipe, plan: Plan, manifest: Manifest | None, own: tuple[Rate, ...] = ()
) -> Job:
    """Return what the planner needs to know of a recipe; `own` rates win over the table's.

    Without the `manifest` of the shards, the data card's counts are used.
    """
    size, basis = _bytes_an_image(recipe, manifest)
    interval = recipe.evaluate.interval(plan.total_steps)
    return Job(
        plan=plan,
        work_at=work_at(recipe.model, num_classes(recipe, manifest)),
        bits=32 if recipe.compute.precision == "fp32" else 16,
        sharding=sharding_of(recipe.strategy),
        cores=recipe.loader.workers,
        bytes_an_image=size,
        bytes_basis=basis,
        eval_images=_num_eval(recipe, manifest),
        eval_px=recipe.preprocess.eval_px,
        evaluations=-(-plan.total_steps // interval),
        kept=recipe.checkpoint.keep + 2,  # the best one, and the one being written
        own=own,
        bn_group=recipe.model.bn_group,
    )


def work_at(spec: ModelSpec, num_classes: int) -> Callable[[int], Work]:
    """Return a function from px to what an image costs there.

    It raises Misuse where a model of timm cannot take such images, or timm is not installed.
    """

    @lru_cache(maxsize=64)
    def work(px: int) -> Work:
        count = _timm_outputs if spec.is_timm else _row_outputs
        elements, statistics, layers = count(spec, px, num_classes)
        params, macs = model_params(spec, num_classes), model_macs(spec, px, num_classes)
        return Work(spec.name, px, params, statistics, float(macs), float(elements), layers)

    return work


def sharding_of(strategy: StrategySpec) -> Sharding:
    """Return what a strategy spreads over the ranks, in ZeRO's stages."""
    if isinstance(strategy, DeepspeedSpec):
        return Sharding(strategy.zero_stage, strategy.offload_optimizer)
    if isinstance(strategy, FsdpSpec):
        return Sharding(3 if strategy.reshard_after_forward else 2)
    return Sharding()


def _row_outputs(spec: ModelSpec, px: int, num_classes: int) -> tuple[int, int, int]:
    """Return an image's outputs of convolutions, BatchNorm's statistics, and the convolutions."""
    layers = list(convolutions(lay_out(spec.row), px, num_classes))
    outputs = sum(layer.outputs * layer.px**2 for layer in layers)
    statistics = sum(2 * layer.outputs for layer in layers if layer.extras == 2)
    return outputs, statistics, len(layers)


def _timm_outputs(spec: ModelSpec, px: int, num_classes: int) -> tuple[int, int, int]:
    """Like `_row_outputs`, with linear layers beside the convolutions."""
    import torch
    from torch import nn

    from pipeline.models.network import build_network

    outputs: list[int] = []

    def note(_layer: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        outputs.append(output[0].numel())

    with torch.device("meta"), torch.no_grad():
        model = build_network(spec, num_classes, None).eval()
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.register_forward_hook(note)
        model(torch.empty(2, 3, px, px))
    weights = dict(model.named_parameters())
    kept = [tensor for name, tensor in model.state_dict().items() if name not in weights]
    return sum(outputs), sum(tensor.numel() for tensor in kept), len(outputs)


def _bytes_an_image(recipe: Recipe, manifest: Manifest | None) -> tuple[float, str]:
    if manifest is not None and recipe.data.stream is None:
        split = manifest.split(recipe.data.train)
        return split.num_bytes / max(1, split.num_samples), "the manifest's"
    return BYTES_AN_IMAGE.get(recipe.data.name or "", PHOTOGRAPH)


def _num_eval(recipe: Recipe, manifest: Manifest | None) -> int:
    if manifest is not None:
        return manifest.split(recipe.data.eval).num_samples
    return recipe.data.num_eval or 0
