"""From image bytes to pixels with Pillow alone: the reference, and the way for whatever is unusual.

Only JPEG, PNG and WebP are opened. Grey and CMYK become RGB; EXIF orientation is ignored, as in
every published ImageNet result; transparency is dropped. A damaged image is an error, never half
an image.
"""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.data.preprocess import Box, Interpolation

FORMATS = ("JPEG", "PNG", "WEBP")
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class BrokenImage(ValueError):
    """Bytes that are no whole image of a known format; the caller says where they came from."""


class View(NamedTuple):
    """Which part of an image is shown and how."""

    box: Box
    flip: bool = False
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    """False samples single points of the part, as TensorFlow's resize does."""


def open_rgb(data: bytes | memoryview) -> Image.Image:
    """Decode `data` fully and return it as RGB; BrokenImage where that is impossible."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
            if image.mode.startswith("I") or image.mode == "F":
                return _from_deep_grey(image)
            return image if image.mode == "RGB" else image.convert("RGB")
    except Image.DecompressionBombError as error:
        raise BrokenImage(f"too large to be decoded safely ({error})") from None
    except UnidentifiedImageError:  # its text names a buffer at an address
        raise BrokenImage(f"not a whole image ({len(data)} bytes of no known image type)") from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise BrokenImage(f"not a whole image ({error})") from None


def show(image: Image.Image, view: View, out: np.ndarray) -> None:
    """Fill `out`, (height, width, 3) uint8, with the part of `image` that `view` names."""
    height, width, _ = out.shape
    part = image.crop(view.box)
    filter = _FILTERS[view.interpolation]
    if view.antialias:
        part = _resize(part, width, height, filter)
    else:
        extent = 0, 0, *part.size
        part = part.transform((width, height), Image.Transform.EXTENT, extent, filter)
    if view.flip:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    out[:] = np.asarray(part)


def sample_points(
    image: Image.Image, box: Box, px: int, interpolation: Interpolation
) -> np.ndarray:
    """Return `box` of `image` at single points, (px, px, 3) uint8; those at its edge look over it.

    Evaluation does this: TensorFlow's resize of a whole image, restricted to the box.
    """
    size, filter = (px, px), _FILTERS[interpolation]
    return np.asarray(image.transform(size, Image.Transform.EXTENT, box, filter))


def _resize(image: Image.Image, width: int, height: int, filter: int) -> Image.Image:
    """Resize in the order that Pillow 13 chooses, whatever version is installed.

    Pixels are rounded between the two directions, so another order gives other pixels: by one
    level, for a quarter of them.
    """
    less_high, less_wide = image.height - height, image.width - width
    if less_high > 0 and less_high > 2 * less_wide:
        image = image.resize((image.width, height), filter)
    else:
        image = image.resize((width, image.height), filter)
    return image.resize((width, height), filter)


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """Return a 16-bit grey image as RGB: the upper 8 bits, where Pillow alone would clip."""
    grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")
