"""Operations on pixels: what each one means, with the extension or without, and bad input."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from pipeline.data import ops_pillow
from pipeline.data.ops import CODES, OFFICIAL, OPS, Op, apply_ops, box_op

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
BEFORE = NOISE.astype(int)
NARROW = (BEFORE // 4 + 60 + np.array([0, 10, 20])).astype(np.uint8)
Formula = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(autouse=True, params=["extension", "pillow"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test with the extension, where it is built, and with Pillow."""
    if request.param == "extension":
        pytest.importorskip("pipeline.data._native", reason="the extension is not built")
    else:
        monkeypatch.setattr("pipeline.data.ops._native_apply", None)


def after(
    name: str, value: float = 0, image: np.ndarray = NOISE, x: int = 0, y: int = 0
) -> np.ndarray:
    done = image.copy()
    apply_ops(done, [Op(CODES[name], value, x, y)])
    return done.astype(int)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4), np.uint8), "expected"),
        (np.zeros((4, 4, 4), np.uint8), "expected"),
        (np.zeros((4, 4, 3), np.float32), "expected"),
        (np.zeros((4, 0, 3), np.uint8), "expected"),
        (np.zeros((8, 8, 3), np.uint8)[:, ::2], "without gaps"),
        (np.frombuffer(bytes(48), np.uint8).reshape(4, 4, 3), "writable"),
    ],
)
def test_other_arrays_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        apply_ops(image, [Op(0)])


@pytest.mark.parametrize("code", [-1, len(OPS)])
def test_operations_that_do_not_exist_are_refused_and_nothing_is_done(code):
    image = NOISE.copy()
    with pytest.raises(ValueError, match=f"code {code} is no operation"):
        apply_ops(image, [Op(CODES["Invert"]), Op(code)])
    assert np.array_equal(image, NOISE)


def test_operations_follow_each_other_in_place():
    image = NOISE.copy()
    apply_ops(image, [Op(CODES["Posterize"], 1), Op(CODES["TranslateX"], 60)])
    assert set(np.unique(image[:, :4])) == {0, 128} and (image[:, 4:] == 128).all()
    apply_ops(image, [])
    assert (image[:, 4:] == 128).all()


@pytest.mark.parametrize(
    ("name", "value", "formula"),
    [
        ("Invert", 0, lambda x: 255 - x),
        ("Posterize", 2, lambda x: x & 0b11000000),
        ("Posterize", 8, lambda x: x),
        ("Solarize", 100, lambda x: np.where(x < 100, x, 255 - x)),
        ("Solarize", 178.5, lambda x: np.where(x < 179, x, 255 - x)),
        ("Solarize", 256, lambda x: x),
        ("SolarizeAdd", 55, lambda x: np.where(x < 128, np.minimum(x + 55, 255), x)),
        ("SolarizeAdd", 220, lambda x: np.where(x < 128, np.minimum(x + 220, 255), x)),
    ],
)
def test_tone_operations_equal_their_formulas(name: str, value: float, formula: Formula):
    assert np.array_equal(after(name, value), formula(BEFORE))


GREY = np.asarray(Image.fromarray(NOISE).convert("L")).astype(int)[..., None]


@pytest.mark.parametrize(
    ("name", "degenerate"),
    [("Color", GREY), ("Contrast", np.round(GREY.mean())), ("Brightness", 0)],
)
@pytest.mark.parametrize("factor", [0.1, 1.0, 1.9, 3.7])
def test_enhancements_blend_with_their_degenerate_image(name, degenerate, factor):
    blended = np.clip(degenerate + factor * (BEFORE - degenerate), 0, 255)
    assert np.abs(after(name, factor) - blended).max() <= 1.01


def test_sharpness_leaves_the_border_and_undoes_or_adds_smoothing():
    weak, strong = after("Sharpness", 0.1), after("Sharpness", 1.9)
    assert np.array_equal(weak[0], BEFORE[0]) and np.array_equal(strong[:, -1], BEFORE[:, -1])
    assert weak[1:-1, 1:-1].std() < BEFORE.std() < strong[1:-1, 1:-1].std()


def test_autocontrast_stretches_each_channel_to_the_full_range():
    low, high = NARROW.min((0, 1)), NARROW.max((0, 1))
    expected = (NARROW - low) * (255 / (high - low))
    assert np.abs(after("AutoContrast", image=NARROW) - expected).max() < 1.01


def test_equalize_follows_the_cumulative_histogram():
    equal = after("Equalize", image=NARROW)
    for channel in range(3):
        counts = np.bincount(NARROW[..., channel].ravel(), minlength=256)
        step = (counts.sum() - counts[counts > 0][-1]) // 255
        table = np.concatenate([[0], (np.cumsum(counts) + step // 2)[:-1] // step]).clip(0, 255)
        assert np.array_equal(equal[..., channel], table[NARROW[..., channel]])


@pytest.mark.parametrize(("way", "outside"), [("", 128), ("Black", 0)])
@pytest.mark.parametrize(("direction", "axis"), [("X", 1), ("Y", 0)])
def test_translate_moves_by_whole_pixels_and_fills(way, outside, direction, axis):
    name = f"Translate{direction}{way}"
    moved = np.moveaxis(after(name, 10), axis, 0)
    original = np.moveaxis(BEFORE, axis, 0)
    assert np.array_equal(moved[:-10], original[10:])
    assert (moved[-10:] == outside).all()
    back = np.moveaxis(after(name, -10), axis, 0)
    assert np.array_equal(back[10:], original[:-10]) and (back[:10] == outside).all()


@pytest.mark.parametrize(("way", "outside"), [("", 128), ("Black", 0), ("Bilinear", 0)])
@pytest.mark.parametrize(("direction", "axis"), [("X", 0), ("Y", 1)])
def test_shear_moves_each_line_by_its_distance(way, outside, direction, axis):
    sheared = np.moveaxis(after(f"Shear{direction}{way}", 0.5), axis, 0)
    original = np.moveaxis(BEFORE, axis, 0).astype(float)
    for line in (0, 20, 40):
        shift = 0.5 * (line + 0.5)
        low, share = int(shift), shift % 1
        near = original[line, low : low + 20], original[line, low + 1 : low + 21]
        if way == "Bilinear":
            mixed = near[0] + (near[1] - near[0]) * share
            assert np.abs(sheared[line, :20] - mixed).max() <= 1
        else:
            assert any(np.array_equal(sheared[line, :20], pixels) for pixels in near)
    assert (sheared[63, 40:] == outside).all()


@pytest.mark.parametrize(("way", "outside"), [("", 128), ("Black", 0), ("Bilinear", 0)])
def test_rotate_turns_around_the_centre_and_fills(way, outside):
    assert np.array_equal(after(f"Rotate{way}", 90), np.rot90(BEFORE))
    turned = after(f"Rotate{way}", 45)
    assert (turned[0, 0] == outside).all()
    if way != "Bilinear":
        assert np.array_equal(turned[32, 32], BEFORE[32, 32])


def test_cutout_hides_a_square_of_twice_the_half_size():
    hidden = (after("Cutout", 10, x=30, y=20) == 128).all(-1)
    assert hidden[10:30, 20:40].all() and hidden.sum() <= 402
    clipped = (after("Cutout", 10) == 128).all(-1)
    assert clipped[:10, :10].all() and clipped.sum() <= 102
    assert np.array_equal(after("Cutout", 0, x=30, y=20), BEFORE)


@pytest.mark.parametrize("name", ["GreyBox", "NoiseBox"])
def test_a_box_is_filled_and_nothing_else(name):
    filled = NOISE.copy()
    apply_ops(filled, [box_op(name, (5, 10, 40, 60), 7)])
    changed = (filled != NOISE).any(-1)
    inside = np.zeros_like(changed)
    inside[10:60, 5:40] = True
    assert not changed[~inside].any() and changed[inside].mean() > 0.99
    if name == "GreyBox":
        assert (filled[inside] == 128).all()


def test_noise_is_even_uncorrelated_and_its_seeds_differ():
    first, second = ops_pillow.noise(200, 200, 1), ops_pillow.noise(200, 200, 2)
    counts = np.bincount(first.ravel(), minlength=256)
    expected = first.size / 256
    assert ((counts - expected) ** 2 / expected).sum() < 331  # 255 degrees of freedom, 0.1 %
    values = first.astype(float) - 127.5
    for other in (np.roll(values, 1, 0), np.roll(values, 1, 1), np.roll(values, 1, 2)):
        assert abs((values * other).mean() / values.var()) < 0.015
    assert (first == second).mean() < 0.006


@pytest.mark.parametrize("name", [name for name in OFFICIAL if name != "Cutout"])
def test_operations_ignore_the_centre(name):
    value = 4 if name == "Posterize" else 0.3
    assert np.array_equal(after(name, value, x=9, y=9), after(name, value))
