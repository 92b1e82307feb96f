"""A small real image set without a download: scikit-learn's handwritten digits as JPEG files.

The 1,797 digits of 8x8 pixels and 17 grey levels (UCI, Optical Recognition of Handwritten Digits)
are enlarged to 32x32 and written as OUT/<class>/<number>.jpg, the tree that `build` takes.
"""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.failure import naming_full_disk
from pipeline.spec import Misuse

SIDE_PX = 32
QUALITY = 95
NUM_DIGITS = 1797


def write_digits(out: Path) -> int:
    """Write the digits and return their number; a finished folder is left as it is.

    Raises:
        Misuse: `out` holds something else, or scikit-learn is missing.
        Failed: the disk is full.
    """
    if out.exists():
        found = len(list(out.glob("[0-9]/*.jpg"))) if out.is_dir() else 0
        if found != NUM_DIGITS:
            raise Misuse(f"{out}: is there already and holds no digits; choose another OUT")
        return found
    images, classes = _load()
    draft = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    with naming_full_disk(out, 4096 * NUM_DIGITS):
        try:
            for number, (image, label) in enumerate(zip(images, classes, strict=True)):
                path = draft / str(label) / f"{number:04d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                _enlarge(image).save(path, "JPEG", quality=QUALITY)
            draft.rename(out)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return len(images)


def _load() -> tuple[np.ndarray, list[int]]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise Misuse("digits come with scikit-learn: pip install scikit-learn") from None
    pixels, classes = load_digits(return_X_y=True)
    return np.asarray(pixels).reshape(-1, 8, 8), [int(label) for label in classes]


def _enlarge(image: np.ndarray) -> Image.Image:
    """Turn 8x8 values 0..16 into a 32x32 RGB image."""
    grey = Image.fromarray(np.rint(image * 255 / 16).astype(np.uint8))
    return grey.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC).convert("RGB")
