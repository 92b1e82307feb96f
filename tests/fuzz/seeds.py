"""Writes the small JPEGs that fuzzing starts from: one for every kind of file the decoder meets.

python tests/fuzz/seeds.py FOLDER
"""

import io
import struct
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from simplejpeg import encode_jpeg

SIZES = ((1, 1), (8, 8), (17, 23), (64, 48), (131, 65))
KINDS: dict[str, dict[str, object]] = {
    "444": {"subsampling": 0},
    "422": {"subsampling": 1},
    "420": {"subsampling": 2},
    "optimised": {"subsampling": 2, "optimize": True},
    "restart_row": {"subsampling": 0, "restart_marker_rows": 1},
    "restart_blocks": {"subsampling": 2, "restart_marker_blocks": 2},
    "restart_each": {"subsampling": 0, "restart_marker_blocks": 1},
    "progressive": {"progressive": True},
    "comment": {"comment": b"text" * 9, "exif": b"Exif\0\0" + bytes(20)},
}
ODD = ("440", "411")
MODES = {"grey": "L", "cmyk": "CMYK", "rgb": "RGB"}


def encode(width: int, height: int, mode: str, **options: object) -> bytes:
    """Return a JPEG of noise over a ramp, by Pillow."""
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels(width, height)).convert(mode)
    picture.save(buffer, "JPEG", quality=75, **options)
    return buffer.getvalue()


def pixels(width: int, height: int) -> np.ndarray:
    """Return noise over a ramp, (height, width, 3) uint8."""
    rng = np.random.default_rng(width * 1000 + height)
    noise = rng.integers(0, 60, (height, width, 3))
    ramp = np.linspace(0, 195, width)[None, :, None]
    return np.ascontiguousarray((noise + ramp).astype(np.uint8))


def parameters(width: int, height: int, number: int) -> bytes:
    """Return the bytes that crop_fuzz.c reads as box, output size, filter and flip."""
    left, top = width // 3, height // 4
    box = struct.pack(">4H", left, top, (width - left) // 2, (height - top) // 2)
    return box + bytes((number * 7 % 96, number * 11 % 96, number & 1, number >> 1 & 1))


def main(folder: Path) -> None:
    """Write all seeds into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for width, height in SIZES:
        files = {name: encode(width, height, "RGB", **own) for name, own in KINDS.items()}
        files |= {name: encode(width, height, mode) for name, mode in MODES.items()}
        for name in ODD:
            files[name] = encode_jpeg(pixels(width, height), 75, colorsubsampling=name)
        for name, data in files.items():
            number += 1
            target = folder / f"{name}_{width}x{height}"
            target.write_bytes(parameters(width, height, number) + data)
    print(f"{number} seeds in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
