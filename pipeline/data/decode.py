"""From image bytes to uint8 pixels: only what a crop needs is decoded, resized on the way.

The extension pipeline.data._native does it for ordinary JPEGs. What it refuses (progressive, CMYK,
PNG, anything damaged or odd) goes through Pillow (decode_safe), and all of it does where the
extension was not built; the pixels are the same: torchvision's crop and antialiased resize.
"""

import functools
import warnings

import numpy as np
from PIL import Image

from pipeline.data.augment import AugmentSpec, Draw, draw
from pipeline.data.decode_safe import BrokenImage, View, open_rgb, sample_points, show
from pipeline.data.extension import load_extension
from pipeline.data.ops import apply_ops
from pipeline.data.preprocess import PreprocessSpec

__all__ = ["BrokenImage", "decode_crop", "decode_eval", "decode_train", "open_rgb"]


_NATIVE = load_extension()
_FILTER_CODES = {("bilinear", True): 0, ("bicubic", True): 1, ("bilinear", False): 2}
"""The extension's number of an interpolation with or without antialiasing."""


def decode_train(
    data: bytes | memoryview,
    px: int,
    spec: AugmentSpec,
    magnitude: float,
    rng: np.random.Generator,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Return a randomly cropped, flipped and augmented image, (px, px, 3) uint8, in `out` if given.

    `magnitude` is RandAugment's (0 = off); all draws come from `rng`.

    Raises:
        BrokenImage: `data` is not a whole image.
    """
    out = np.empty((px, px, 3), np.uint8) if out is None else out
    drawn = decode_crop(data, px, spec, magnitude, rng, out)
    apply_ops(out, drawn.ops)
    return out


def decode_crop(
    data: bytes | memoryview,
    px: int,
    spec: AugmentSpec,
    magnitude: float,
    rng: np.random.Generator,
    out: np.ndarray,
) -> Draw:
    """Fill `out`, (px, px, 3) uint8, with the random crop, flipped or not; operations are left.

    They stand in the result, for whoever applies them, here or on a device.

    Raises:
        BrokenImage: `data` is not a whole image.
    """
    image = None
    size = _jpeg_size(data)
    if size is None:
        image = open_rgb(data)
        size = image.size
    drawn = draw(*size, px, spec, magnitude, rng)
    view = View(drawn.box, drawn.flip, spec.interpolation, spec.antialias)
    if image is not None or not _show_fast(data, view, out):
        show(image or _open_as(data, size), view, out)
    return drawn


def decode_eval(
    data: bytes | memoryview, spec: PreprocessSpec, px: int, out: np.ndarray | None = None
) -> np.ndarray:
    """Return the image as it is evaluated, (px, px, 3) uint8, in `out` if given; nothing is random.

    Raises:
        BrokenImage: `data` is not a whole image.
    """
    out = np.empty((px, px, 3), np.uint8) if out is None else out
    if not spec.antialias:
        image = open_rgb(data)
        box = spec.box(*image.size, px)
        out[:] = sample_points(image, box, px, spec.interpolation)
        return out
    size = _jpeg_size(data)
    if size is None or not _show_fast(data, _eval_view(spec, size, px), out):
        image = open_rgb(data)
        show(image, _eval_view(spec, image.size, px), out)
    return out


@functools.cache
def warn_if_slow() -> None:
    """Say, once in a process, that the extension is missing; whoever starts a loader calls this."""
    if _NATIVE is None:
        warnings.warn(
            "images are decoded by Pillow alone, 2 to 4 times slower: the extension "
            "pipeline.data._native was not built; `apt-get install build-essential python3-dev`, "
            "remove .venv/.installed, then `make env`",
            stacklevel=2,
        )


def _jpeg_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """Return (width, height) where the extension can read them."""
    if _NATIVE is None:
        return None
    try:
        return _NATIVE.size(data)
    except ValueError:
        return None


def _show_fast(data: bytes | memoryview, view: View, out: np.ndarray) -> bool:
    """Show `view` by the extension; False where another decoder must judge."""
    assert _NATIVE is not None
    code = _FILTER_CODES.get((view.interpolation, view.antialias))
    if code is not None:
        return _NATIVE.crop_resize(data, view.box, out, code, view.flip)
    width, height = view.box[2] - view.box[0], view.box[3] - view.box[1]
    part = np.empty((height, width, 3), np.uint8)
    if not _NATIVE.crop_resize(data, view.box, part, 0, False):
        return False
    show(Image.fromarray(part), view._replace(box=(0, 0, width, height)), out)
    return True


def _open_as(data: bytes | memoryview, size: tuple[int, int]) -> Image.Image:
    image = open_rgb(data)
    if image.size != size:
        raise BrokenImage(f"its headers disagree: {size} and {image.size} px")
    return image


def _eval_view(spec: PreprocessSpec, size: tuple[int, int], px: int) -> View:
    return View(spec.box(*size, px), False, spec.interpolation)
