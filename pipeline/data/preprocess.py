"""How an image becomes the model's input when nothing is random: evaluation and prediction.

The settings are recorded with every registered model. "auto" is the official rule: from 320 px on
the whole image is squashed to a square, below it the centre square of size / (size + 32) of the
short edge is taken (preprocessing.py of google/automl, efficientnetv2). "center" is that of the
older models (preprocess_legacy.py there): at every size, and an odd pixel to the left and above.
"""

from typing import Literal

from pydantic import Field, field_validator

from pipeline.spec import Spec

SQUASH_FROM_PX = 320
CENTER_PADDING_PX = 32

Interpolation = Literal["bilinear", "bicubic"]
Box = tuple[int, int, int, int]
"""left, top, right, bottom in px."""


class PreprocessSpec(Spec):
    """Mean and std (0..255 units, R G B) for all images; the rest is for evaluation."""

    mean: tuple[float, float, float] = (128.0, 128.0, 128.0)
    std: tuple[float, float, float] = (128.0, 128.0, 128.0)
    eval_px: int = Field(default=224, ge=1)
    eval_resize: Literal["squash", "center", "auto"] = "auto"
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    """False samples single points, as TensorFlow's resize does."""

    @field_validator("std")
    @classmethod
    def _check_std(cls, std: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(std) <= 0:
            raise ValueError("every std must be above 0; they are in 0..255 units")
        return std

    def box(self, width: int, height: int, px: int) -> Box:
        """Return the part of a (width, height) image that is resized to (px, px)."""
        squash = self.eval_resize == "squash" or (
            self.eval_resize == "auto" and px >= SQUASH_FROM_PX
        )
        if squash:
            return 0, 0, width, height
        side = max(1, int(px / (px + CENTER_PADDING_PX) * min(width, height)))
        odd = self.eval_resize == "center"
        left, top = (width - side + odd) // 2, (height - side + odd) // 2
        return left, top, left + side, top + side
