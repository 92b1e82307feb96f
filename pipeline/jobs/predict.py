"""`pipeline predict`: name what is on images, with a registered model."""

from pathlib import Path

from pipeline.export.predict import predict as predict_images
from pipeline.jobs.start import open_package
from pipeline.run.folder import DONE, FAILED
from pipeline.tracking.settings import TrackingSpec


def predict(model: str, images: list[Path], top: int) -> int:
    """Print the `top` classes of each image; an image that cannot be read gives exit code 1."""
    package = open_package(model, TrackingSpec())
    failed = False
    for result in predict_images(package, images, top):
        if result.error:
            failed = True
            print(f"{result.image}: error: {result.error}")
            continue
        classes = "  ".join(f"{name} {probability:.3f}" for name, probability in result.classes)
        print(f"{result.image}: {classes}")
    return FAILED if failed else DONE
