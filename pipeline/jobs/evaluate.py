"""`pipeline evaluate`: score a finished model on a split, exactly, on any number of ranks."""

import os

from pipeline.data.places import PlacesSpec
from pipeline.data.sources import open_index, open_manifest
from pipeline.run.folder import DONE
from pipeline.spec import Misuse

COLLECTIVE_TIMEOUT_S = 600


def evaluate(model: str, data: str, split: str, px: int | None, batch: int, cache: str = "") -> int:
    """Print loss, top-1 and top-5 of `model` on `split` of the shards in `data`.

    `data` is a folder, or a URL; then `cache` is the folder that shards are brought to.

    Raises:
        Misuse: the shards are missing, or the label spaces of model and data differ.
    """
    spec = PlacesSpec(folder=cache)
    manifest = open_manifest(data, spec)
    num_images = manifest.split(split).num_samples

    from pipeline.data.evaluation_loader import eval_batches
    from pipeline.engine.inputs import Inputs
    from pipeline.evaluate.score import score
    from pipeline.jobs.start import open_package
    from pipeline.parallel.world import open_world
    from pipeline.tracking.settings import TrackingSpec

    package = open_package(model, TrackingSpec())
    if package.labels.digest() != manifest.labels.digest():
        raise Misuse(
            f"{data}: its label space '{manifest.labels.name}' ({manifest.num_classes} classes) is "
            f"not that of {model} ('{package.labels.name}', {len(package.labels)} classes); "
            "finetune the model on this data first"
        )
    preprocess = package.preprocess
    world = open_world(COLLECTIVE_TIMEOUT_S)
    try:
        network = package.model.eval().to(world.device)
        inputs = Inputs(preprocess, manifest.num_classes, 0.0, 0, world.device, True)
        batches = eval_batches(
            open_index(data, spec, manifest, split),
            preprocess,
            rank=world.rank,
            world=world.size,
            batch=batch,
            px=px,
            workers=max(0, (os.cpu_count() or 1) // world.size - 1),
        )
        scores = score(network, batches, inputs.images, manifest.num_classes, num_images, world.sum)
        if world.is_first:
            print(
                f"{model} on {split} of {data} at {px or preprocess.eval_px} px: "
                f"top-1 {scores.top1:.4f}, top-5 {scores.top5:.4f}, loss {scores.loss:.4f}, "
                f"{scores.num_images} images"
            )
    finally:
        world.close()
    return DONE
