"""What is stored of a good image: its bytes, its coefficients coded anew, or a smaller image.

none      byte for byte
lossless  optimised Huffman tables, and restart markers that cut each row of blocks into segments,
          so that a decoder skips to a crop; the same pixels. Metadata but the colour profile goes
resize    the short side becomes `short_px` (never enlarged), antialiased, 4:2:0; an image that is
          small enough is encoded anew only where that saves a tenth of its bytes

The extension data_prep._native does both with libjpeg-turbo; without it Pillow resizes, and
lossless is refused. `ENCODER` says which it was, and stands in the manifest.
"""

import importlib
import io
from types import ModuleType
from typing import Literal, Self

import PIL
from PIL import Image
from pydantic import Field, model_validator

from data_prep.clean import REJECTED, Verdict
from pipeline.spec import Misuse, Spec


def _load_native() -> ModuleType | None:
    try:
        return importlib.import_module("data_prep._native")
    except ImportError:
        return None


_NATIVE = _load_native()
_WORTH_IT = 0.9
"""A loss for fewer saved bytes than a tenth is a bad bargain."""
ENCODER = f"Pillow {PIL.__version__}" if _NATIVE is None else str(_NATIVE.LIBRARY)


class TranscodeSpec(Spec):
    """How good JPEGs are stored."""

    kind: Literal["none", "lossless", "resize"] = "none"
    restarts: bool = True
    """lossless: cut the rows; costs about 1 % of the bytes."""
    short_px: int | None = Field(default=None, ge=1, le=65_500)
    quality: int = Field(default=90, ge=1, le=100)

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        if (self.kind == "resize") != (self.short_px is not None):
            raise ValueError("--transcode: resize and only resize takes a size: resize:256")
        return self

    @classmethod
    def read(cls, text: str) -> Self:
        """Read `none`, `lossless`, `resize:256` or `resize:256:q90`; Misuse on anything else."""
        kind, *rest = text.split(":")
        values: dict[str, object] = {"kind": kind}
        if kind == "resize" and rest:
            values["short_px"] = rest.pop(0)
            if rest and rest[0].startswith("q"):
                values["quality"] = rest.pop(0)[1:]
        if rest:
            raise Misuse(f"--transcode: '{text}'; expected none, lossless or resize:256[:q90]")
        return cls.parse(values, "--transcode")


def check_encoder(spec: TranscodeSpec) -> None:
    """Raise Misuse, before any work, where this installation cannot do what is asked."""
    if spec.kind == "lossless" and _NATIVE is None:
        raise Misuse(
            "--transcode lossless needs the extension data_prep._native, which was not built: "
            "`apt-get install build-essential python3-dev libjpeg-dev`, remove "
            ".venv/.installed, then `make env`"
        )


def transcode(verdict: Verdict, spec: TranscodeSpec) -> Verdict:
    """Return the verdict with what is to be stored; PNGs of raw pixels stay as they are."""
    if spec.kind == "none" or verdict.suffix != "jpg":
        return verdict
    if spec.kind == "lossless":
        return _lossless(verdict, spec.restarts)
    assert spec.short_px is not None
    smaller = _resize(verdict, spec.short_px, spec.quality)
    is_resized = min(verdict.width, verdict.height) > spec.short_px
    if is_resized or len(smaller.stored) < _WORTH_IT * len(verdict.stored):
        return smaller
    return verdict


def _lossless(verdict: Verdict, restarts: bool) -> Verdict:
    check_encoder(TranscodeSpec(kind="lossless"))
    assert _NATIVE is not None
    try:
        stored = _NATIVE.lossless(verdict.stored, restarts)
    except ValueError as error:
        note = "not transcoded", f"kept as it is: {error}"
        return verdict._replace(notes=(*verdict.notes, note))
    if not restarts and len(stored) >= len(verdict.stored):
        return verdict
    return verdict._replace(stored=stored)


def _resize(verdict: Verdict, short_px: int, quality: int) -> Verdict:
    if _NATIVE is not None:
        try:
            stored, width, height = _NATIVE.resize(verdict.stored, short_px, quality)
            return verdict._replace(stored=stored, width=width, height=height)
        except ValueError:  # a decoder that only warns: Pillow takes what can be had
            pass
    size = _target(verdict.width, verdict.height, short_px)
    try:
        stored = _resize_with_pillow(verdict.stored, size, quality)
    except Exception as error:  # what `--check header` let in undecoded may be no image at all
        note = "cannot be decoded", f"{type(error).__name__}: {error}"
        return Verdict(REJECTED, (*verdict.notes, note), 0, 0, b"")
    return verdict._replace(stored=stored, width=size[0], height=size[1])


def _resize_with_pillow(data: bytes, size: tuple[int, int], quality: int) -> bytes:
    try:
        smaller = _decode_smaller(data, size, "YCbCr")
    except OSError:  # coded as RGB, which libjpeg does not turn into YCbCr
        smaller = _decode_smaller(data, size, None)
    buffer = io.BytesIO()
    smaller.save(buffer, "JPEG", quality=quality, icc_profile=smaller.info.get("icc_profile"))
    return buffer.getvalue()


def _decode_smaller(data: bytes, size: tuple[int, int], mode: str | None) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        image.draft(mode if image.mode == "RGB" else None, size)
        return image.resize(size, Image.Resampling.BILINEAR)


def _target(width: int, height: int, short_px: int) -> tuple[int, int]:
    """Return the size with a short side of at most `short_px`, rounded to the nearest."""
    low = min(width, height)
    short_px = min(short_px, low)
    return (2 * width * short_px + low) // (2 * low), (2 * height * short_px + low) // (2 * low)
