"""From a recipe to what makes its steps: model, average, optimizer, strategy, inputs."""

from pipeline.engine.inputs import Inputs
from pipeline.engine.kernels import compile_model, set_kernels
from pipeline.engine.step import Stepper
from pipeline.models.batchnorm import share_statistics
from pipeline.models.network import Network
from pipeline.optim.ema import Ema
from pipeline.optim.groups import param_groups
from pipeline.optim.loss import loss_fn
from pipeline.optim.rmsprop import FIRST_SLOTS, RMSpropTF
from pipeline.parallel.build import build_strategy
from pipeline.parallel.layout import lay_out
from pipeline.parallel.neighbours import neighbours
from pipeline.parallel.world import World
from pipeline.recipe import Recipe


def build_stepper(recipe: Recipe, num_classes: int, world: World, model: Network) -> Stepper:
    """Put `model` on the rank's device and everything that trains it around it."""
    compute = recipe.compute
    set_kernels(compute.cudnn_benchmark, compute.tf32)
    model.to(world.device)
    lay_out(model, recipe.strategy, compute)
    ema = Ema(model)
    group = neighbours(world, recipe.model.bn_group, compute.collective_timeout_s)
    share_statistics(model, group)
    optimizer = RMSpropTF(
        param_groups(model.named_parameters(), recipe.optim.weight_decay),
        lr=0.0,
        decay=recipe.optim.decay,
        momentum=recipe.optim.momentum,
        eps=recipe.optim.eps,
    )
    if compute.compile:
        compile_model(model, len(recipe.stages.resolve()), compute.compile_mode)
    strategy = build_strategy(recipe.strategy, world, model, optimizer, compute, FIRST_SLOTS)
    inputs = Inputs(
        recipe.preprocess,
        num_classes,
        recipe.loss.label_smoothing,
        recipe.seed,
        world.device,
        compute.channels_last,
        recipe.loss.kind,
    )
    return Stepper(world, model, strategy, ema, inputs, loss_fn(recipe.loss))
