"""Settings that a recipe changes to no effect: a person who set them expects something of them."""

from collections.abc import Iterator

from pipeline.parallel.settings import ComputeSpec, DeepspeedSpec
from pipeline.recipe import Recipe


def without_effect(recipe: Recipe) -> Iterator[str]:
    """Tell of each setting that was changed but is not looked at: field, value, reason, remedy."""
    compute, default = recipe.compute, ComputeSpec()
    if compute.compile_mode != default.compile_mode and not compute.compile:
        yield (
            f"compute.compile_mode is {compute.compile_mode}, but compute.compile false: nothing "
            "is compiled; set compute.compile=true"
        )
    if compute.loss_scale != default.loss_scale and compute.precision != "fp16":
        yield (
            f"compute.loss_scale is {compute.loss_scale:g}, but compute.precision "
            f"{compute.precision}: only fp16 scales its loss; remove compute.loss_scale"
        )
    strategy, persistent = recipe.strategy, DeepspeedSpec().persistent_elements
    stage = strategy.zero_stage if isinstance(strategy, DeepspeedSpec) else 3
    if stage < 3 and getattr(strategy, "persistent_elements", persistent) != persistent:
        yield (
            f"strategy.persistent_elements was changed, but strategy.zero_stage is {stage}: only "
            "stage 3 shards weights; remove it"
        )
    stages = recipe.stages.resolve()
    if any(s.cutmix_labels != "own" for s in stages) and not any(s.cutmix for s in stages):
        yield (
            "stages.cutmix_labels is mean, but stages.cutmix 0: no image is cut; set "
            "stages.cutmix, or remove stages.cutmix_labels"
        )
