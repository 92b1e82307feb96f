"""Names what is on images, with a package: exactly the preprocessing it was evaluated with."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.data.decode import BrokenImage, decode_eval
from pipeline.export.package import Package

BATCH = 32


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one image with their probabilities, or why there are none."""

    image: Path
    classes: tuple[tuple[str, float], ...] = ()
    error: str = ""


def predict(package: Package, images: Sequence[Path], top_k: int = 5) -> Iterator[Prediction]:
    """Yield a prediction for each image, in order; a bad image does not stop the others.

    `top_k` is cut to the number of classes.
    """
    for start in range(0, len(images), BATCH):
        yield from _predict_batch(package, images[start : start + BATCH], top_k)


def _predict_batch(package: Package, paths: Sequence[Path], top_k: int) -> list[Prediction]:
    decoded: dict[int, torch.Tensor] = {}
    errors: dict[int, str] = {}
    for i, path in enumerate(paths):
        try:
            pixels = decode_eval(path.read_bytes(), package.preprocess, package.preprocess.eval_px)
            decoded[i] = torch.tensor(pixels)
        except (OSError, BrokenImage) as error:
            errors[i] = getattr(error, "strerror", None) or str(error)
    guesses = dict(zip(decoded, _top(package, list(decoded.values()), top_k), strict=True))
    return [
        Prediction(path, guesses[i]) if i in guesses else Prediction(path, error=errors[i])
        for i, path in enumerate(paths)
    ]


def _top(
    package: Package, images: list[torch.Tensor], top_k: int
) -> list[tuple[tuple[str, float], ...]]:
    if not images:
        return []
    logits = package.logits(torch.stack(images))
    indices = logits.topk(max(1, min(top_k, len(package.labels))), 1).indices
    chances = logits.softmax(1).gather(1, indices)
    return [
        tuple((package.labels.text(i), p) for i, p in zip(row, values, strict=True))
        for row, values in zip(indices.tolist(), chances.tolist(), strict=True)
    ]
