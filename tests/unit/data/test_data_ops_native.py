"""The extension's operations: Pillow's bytes for all of them, and what it refuses."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data import ops_pillow
from pipeline.data.ops import CODES, OPS, Op, box_op

native = pytest.importorskip("pipeline.data._native", reason="the extension is not built")

FACTORS = (0, 0.1, 0.3, 0.64, 1, 1.3, 1.9, 3.7, 5.5, 1e9)
ANGLES = (0, 1e-9, 9.3, -20.01, 30, 45, -75, 90, -90, 180, 270, 360, -360, 725.5)
SHEARS = (0, 1e-7, 0.1, -0.15, 0.3, -0.6, 0.9, -3, 700)
SHIFTS = (0, 0.4, 0.5, -0.5, 1, -1, 10.3, -31, 100, -225, 1e9, -1e9)
VALUES: dict[str, tuple[float, ...]] = {
    **dict.fromkeys(("Color", "Contrast", "Brightness", "Sharpness"), FACTORS),
    **dict.fromkeys(("Rotate", "RotateBlack", "RotateBilinear"), ANGLES),
    **{name: SHEARS for name in OPS if name.startswith("Shear")},
    **{name: SHIFTS for name in OPS if name.startswith("Translate")},
    "Posterize": (1, 2, 3, 4, 7, 8),
    "Solarize": (-3, 0, 1, 100, 128, 178.5, 254.2, 255, 256, 300),
    "SolarizeAdd": (0, 1, 55, 110, 127, 128, 220, 255, 330),
    "Cutout": (0, 1, 8, 40, 1000),
    "NoiseBox": (0, 1, 12345, 2**32 - 1),
}
CENTRES = ((0, 0), (20, 9), (1000, 3))
BOXES = ((3, 4, 17, 9), (0, 0, 999, 999), (5, 5, 5, 8), (9, 3, 4, 20))


def every_op() -> Iterator[Op]:
    """Yield every operation with many arguments."""
    for name in OPS:
        for value in VALUES.get(name, (0,)):
            if name == "Cutout":
                yield from (Op(CODES[name], value, *centre) for centre in CENTRES)
            elif name.endswith("Box"):
                yield from (box_op(name, box, value) for box in BOXES)
            else:
                yield Op(CODES[name], value)


def noise(height: int, width: int, low: int = 0, high: int = 256) -> np.ndarray:
    rng = np.random.default_rng(height * 1000 + width)
    return rng.integers(low, high, (height, width, 3), dtype=np.uint8)


def smooth(px: int) -> np.ndarray:
    few = Image.fromarray(noise(5, 5))
    return np.array(few.resize((px, px), Image.Resampling.BICUBIC))


PICTURES = {
    "noise": noise(64, 64),
    "smooth": smooth(97),
    "narrow": noise(33, 33, 100, 140),
    "two values": noise(33, 33, 0, 2),
    "one value": np.full((40, 40, 3), 77, np.uint8),
    "black": np.zeros((17, 17, 3), np.uint8),
    "high": noise(70, 31),
    "wide": noise(31, 300),
    "one pixel": noise(1, 1),
    "two": noise(2, 2),
    "three": noise(3, 3),
    "a row": noise(1, 50),
    "a column": noise(50, 1),
}


def by_pillow(image: np.ndarray, ops: list[Op]) -> np.ndarray:
    done = image.copy()
    ops_pillow.apply_all(done, [(OPS[op.code], op.value, op.x, op.y) for op in ops])
    return done


def by_extension(image: np.ndarray, ops: list[Op]) -> np.ndarray:
    done = image.copy()
    native.apply(done, ops)
    return done


@pytest.fixture(params=["vectors", "plain"])
def processor(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run a test with AVX2 and without."""
    if request.param == "vectors" and not native.vectors(True):
        pytest.skip("this processor has no AVX2")
    native.vectors(request.param == "vectors")
    yield
    native.vectors(True)


def assert_same(image: np.ndarray, ops: list[Op], what: object = "") -> None:
    ours, theirs = by_extension(image, ops), by_pillow(image, ops)
    if not np.array_equal(ours, theirs):
        worst = np.abs(ours.astype(int) - theirs).max()
        raise AssertionError(f"{what} {[OPS[op.code] for op in ops]} {ops}: differs by {worst}")


@pytest.mark.parametrize("name", PICTURES)
def test_the_extension_gives_pillows_bytes_for_every_op(name, processor):
    for op in every_op():
        assert_same(PICTURES[name], [op], name)


def test_the_extension_gives_pillows_bytes_on_real_images(real_data):
    images = list(real_images(real_data, 6))
    for px in (128, 300):
        for number, op in enumerate(every_op()):
            image = images[number % len(images)].resize((px, px))
            assert_same(np.array(image), [op], px)


def real_images(folder: Path, count: int) -> Iterator[Image.Image]:
    with tarfile.open(folder / "imagenet-sample.tar") as tar:
        for member in tar:
            if count and member.name.lower().endswith((".jpg", ".jpeg")):
                file = tar.extractfile(member)
                assert file is not None
                yield Image.open(io.BytesIO(file.read())).convert("RGB")
                count -= 1


codes = st.sampled_from([CODES[name] for name in OPS if not name.endswith("Box")])
values = st.one_of(st.floats(-90, 90), st.floats(0, 4), st.sampled_from([0.0, 45.0, 1.0, 255.0]))


@st.composite
def any_ops(draw: st.DrawFn) -> list[Op]:
    ops = []
    for code in draw(st.lists(codes, min_size=1, max_size=4)):
        value, name = draw(values), OPS[code]
        limits = {"Posterize": (1, 8), "SolarizeAdd": (0, 255), "Cutout": (0, 99)}
        low, high = limits.get(name, (-1e9, 1e9))
        ops.append(Op(code, min(high, max(low, value)), draw(st.integers(0, 60)), 7))
    return ops


@settings(max_examples=300, deadline=None)
@given(ops=any_ops(), height=st.integers(1, 60), width=st.integers(1, 60))
def test_any_ops_one_after_the_other_equal_pillows(ops, height, width):
    assert_same(noise(height, width), ops)


def test_one_use_of_the_extension_is_many_uses_of_it():
    ops = [Op(CODES[name], 1.3) for name in ("Sharpness", "Rotate", "Color", "ShearX")]
    one_by_one = PICTURES["noise"]
    for op in ops:
        one_by_one = by_extension(one_by_one, [op])
    assert np.array_equal(by_extension(PICTURES["noise"], ops), one_by_one)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_the_extension_refuses_values_without_end(value):
    with pytest.raises(ValueError, match="code 3 is not finite"):
        native.apply(noise(4, 4), [Op(CODES["Rotate"], value)])


@pytest.mark.parametrize(
    "ops", [None, 3, [3], [(1, 2)], [("a", 1.0, 0, 0)], [(0, 0.0, 2**40, 0)], [[0, 0.0, 0, 0]]]
)
def test_the_extension_refuses_what_is_no_sequence_of_operations(ops):
    before = noise(4, 4)
    image = before.copy()
    with pytest.raises((TypeError, ValueError, OverflowError)):
        native.apply(image, ops)
    assert np.array_equal(image, before)
