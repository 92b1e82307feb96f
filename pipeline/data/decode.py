"""From image bytes to uint8 pixels, with Pillow: the two functions a faster decoder will fill.

Pixels equal torchvision's `resized_crop` on Pillow images: crop first, then antialiased resize.
Only JPEG, PNG and WebP are opened. Grey and CMYK become RGB; EXIF orientation is ignored, as in
every published ImageNet result; transparency is dropped. A damaged image is an error, never half
an image.
"""

import io

import numpy as np
from PIL import Image

from pipeline.data.augment import AugmentSpec, crop_box
from pipeline.data.preprocess import PreprocessSpec
from pipeline.data.randaugment import randaugment

FORMATS = ("JPEG", "PNG", "WEBP")
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class BrokenImage(ValueError):
    """Bytes that are no whole image of a known format; the caller says where they came from."""


def decode_train(
    data: bytes, px: int, spec: AugmentSpec, magnitude: float, rng: np.random.Generator
) -> np.ndarray:
    """Return a randomly cropped, flipped and augmented image, (px, px, 3) uint8.

    `magnitude` is RandAugment's (0 = off); all draws come from `rng`.

    Raises:
        BrokenImage: `data` is not a whole image.
    """
    image = open_rgb(data)
    box = crop_box(image.width, image.height, spec, rng)
    image = image.crop(box).resize((px, px), _FILTERS[spec.interpolation])
    if spec.hflip and rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if spec.kind == "randaugment":
        image = randaugment(image, magnitude, spec.num_layers, rng, spec.reference_px)
    return np.asarray(image)


def decode_eval(data: bytes, spec: PreprocessSpec, px: int) -> np.ndarray:
    """Return the image as it is evaluated, (px, px, 3) uint8; nothing is random.

    Raises:
        BrokenImage: `data` is not a whole image.
    """
    image = open_rgb(data)
    box = spec.box(image.width, image.height, px)
    filter = _FILTERS[spec.interpolation]
    if spec.antialias:
        return np.asarray(image.crop(box).resize((px, px), filter))
    return np.asarray(image.transform((px, px), Image.Transform.EXTENT, box, filter))


def open_rgb(data: bytes) -> Image.Image:
    """Decode `data` fully and return it as RGB; BrokenImage where that is impossible."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
            if image.mode.startswith("I") or image.mode == "F":
                return _from_deep_grey(image)
            return image if image.mode == "RGB" else image.convert("RGB")
    except Image.DecompressionBombError as error:
        raise BrokenImage(f"too large to be decoded safely ({error})") from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise BrokenImage(f"not a whole image ({error})") from None


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """Return a 16-bit grey image as RGB: the upper 8 bits, where Pillow alone would clip."""
    grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")
