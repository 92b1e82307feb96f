"""RandAugment: magnitudes as in the official code, and what each operation does to pixels."""

import numpy as np
import pytest
from PIL import Image

from pipeline.data.randaugment import FILL, OPS, apply, argument, randaugment
from pipeline.plan.draws import Stream, keyed


def picture(px: int = 64) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (px, px, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def after(op: str, value: float, image: Image.Image | None = None, centre=(0, 0)) -> np.ndarray:
    return np.asarray(apply(image or picture(), op, value, centre)).astype(int)


BEFORE = np.asarray(picture()).astype(int)


def test_there_are_the_16_official_operations():
    assert len(OPS) == len(set(OPS)) == 16


# recipe: rotate M/10*30, shear M/10*0.3, translate M/10*100, cutout M/10*40, enhance M/10*1.8+0.1,
# posterize int(M/10*4) bits, solarize int(M/10*256), solarize_add int(M/10*110)
@pytest.mark.parametrize(
    ("op", "at_5", "at_10", "at_20"),
    [
        ("Rotate", 15, 30, 60),
        ("ShearX", 0.15, 0.3, 0.6),
        ("ShearY", 0.15, 0.3, 0.6),
        ("TranslateX", 50, 100, 200),
        ("TranslateY", 50, 100, 200),
        ("Cutout", 20, 40, 80),
        ("Color", 1.0, 1.9, 3.7),
        ("Contrast", 1.0, 1.9, 3.7),
        ("Brightness", 1.0, 1.9, 3.7),
        ("Sharpness", 1.0, 1.9, 3.7),
        ("Posterize", 2, 4, 8),
        ("Solarize", 128, 256, 256),
        ("SolarizeAdd", 55, 110, 220),
        ("AutoContrast", 0, 0, 0),
        ("Equalize", 0, 0, 0),
        ("Invert", 0, 0, 0),
    ],
)
def test_magnitudes_follow_the_official_formulas(op, at_5, at_10, at_20):
    assert [argument(op, m, 224) for m in (5, 10, 20)] == pytest.approx([at_5, at_10, at_20])


def test_the_magnitudes_of_the_stages_are_not_rounded():
    assert argument("Rotate", 6.67, 224) == pytest.approx(20.01)
    assert argument("Solarize", 6.67, 224) == 170 and argument("Cutout", 8.33, 224) == 33


def test_posterize_keeps_between_1_and_8_bits():
    assert [argument("Posterize", m, 224) for m in (0.5, 2.4, 25, 40)] == [1, 1, 8, 8]


def test_translate_and_cutout_scale_only_with_a_reference_size():
    assert argument("TranslateX", 10, 32) == 100 == argument("TranslateX", 10, 480)
    assert argument("TranslateX", 10, 32, 320) == pytest.approx(10)
    assert argument("Cutout", 10, 32, 320) == 4
    assert argument("Rotate", 10, 32, 320) == 30


@pytest.mark.parametrize(
    ("op", "value", "formula"),
    [
        ("Invert", 0, lambda x: 255 - x),
        ("Posterize", 2, lambda x: x & 0b11000000),
        ("Solarize", 100, lambda x: np.where(x < 100, x, 255 - x)),
        ("SolarizeAdd", 55, lambda x: np.where(x < 128, np.minimum(x + 55, 255), x)),
        ("SolarizeAdd", 220, lambda x: np.where(x < 128, np.minimum(x + 220, 255), x)),
    ],
)
def test_tone_operations_equal_their_formulas(op, value, formula):
    assert np.array_equal(after(op, value), formula(BEFORE))


def test_solarize_does_nothing_from_magnitude_10_on():
    assert np.array_equal(after("Solarize", argument("Solarize", 15, 64)), BEFORE)


def blended(degenerate: np.ndarray, factor: float) -> np.ndarray:
    return np.clip(degenerate + factor * (BEFORE - degenerate), 0, 255)


GREY = np.asarray(picture().convert("L")).astype(int)[..., None]


@pytest.mark.parametrize(
    ("op", "degenerate"),
    [("Color", GREY), ("Contrast", np.round(GREY.mean())), ("Brightness", 0)],
)
@pytest.mark.parametrize("factor", [0.1, 1.0, 1.9, 3.7])
def test_enhancements_blend_with_their_degenerate_image(op, degenerate, factor):
    assert np.abs(after(op, factor) - blended(degenerate, factor)).max() <= 1.01


def test_sharpness_leaves_the_border_and_undoes_or_adds_smoothing():
    weak, strong = after("Sharpness", 0.1), after("Sharpness", 1.9)
    assert np.array_equal(weak[0], BEFORE[0]) and np.array_equal(strong[:, -1], BEFORE[:, -1])
    assert weak[1:-1, 1:-1].std() < BEFORE.std() < strong[1:-1, 1:-1].std()


NARROW = (BEFORE // 4 + 60 + np.array([0, 10, 20])).astype(np.uint8)


def test_autocontrast_stretches_each_channel_to_the_full_range():
    low, high = NARROW.min((0, 1)), NARROW.max((0, 1))
    expected = (NARROW - low) * (255 / (high - low))
    assert np.abs(after("AutoContrast", 0, Image.fromarray(NARROW)) - expected).max() < 1.01


def test_equalize_follows_the_cumulative_histogram():
    equal = after("Equalize", 0, Image.fromarray(NARROW))
    for channel in range(3):
        counts = np.bincount(NARROW[..., channel].ravel(), minlength=256)
        step = (counts.sum() - counts[counts > 0][-1]) // 255
        table = np.concatenate([[0], (np.cumsum(counts) + step // 2)[:-1] // step]).clip(0, 255)
        assert np.array_equal(equal[..., channel], table[NARROW[..., channel]])


@pytest.mark.parametrize(("op", "axis"), [("TranslateX", 1), ("TranslateY", 0)])
def test_translate_moves_by_whole_pixels_and_fills_grey(op, axis):
    moved = np.moveaxis(after(op, 10), axis, 0)
    original = np.moveaxis(BEFORE, axis, 0)
    assert np.array_equal(moved[:-10], original[10:])
    assert (moved[-10:] == 128).all()
    back = np.moveaxis(after(op, -10), axis, 0)
    assert np.array_equal(back[10:], original[:-10]) and (back[:10] == 128).all()


@pytest.mark.parametrize(("op", "axis"), [("ShearX", 0), ("ShearY", 1)])
def test_shear_moves_each_line_by_its_distance(op, axis):
    sheared, original = np.moveaxis(after(op, 0.5), axis, 0), np.moveaxis(BEFORE, axis, 0)
    for line in (0, 20, 40):
        shift = round(0.5 * line + 0.1)
        same = sheared[line, : 60 - shift] == original[line, shift:60]
        other = sheared[line, : 59 - shift] == original[line, shift + 1 : 60]
        assert max(same.mean(), other.mean()) == 1.0
    assert (sheared[63, 40:] == FILL).all()


def test_rotate_turns_around_the_centre_and_fills_grey():
    turned = after("Rotate", 90)
    assert np.array_equal(turned, np.rot90(BEFORE))
    assert (after("Rotate", 45)[0, 0] == 128).all()
    assert np.array_equal(after("Rotate", 45)[32, 32], BEFORE[32, 32])


def test_cutout_hides_a_square_of_twice_the_half_size():
    hidden = (after("Cutout", 10, centre=(30, 20)) == 128).all(-1)
    assert hidden[10:30, 20:40].all() and hidden.sum() <= 402
    clipped = (after("Cutout", 10, centre=(0, 0)) == 128).all(-1)
    assert clipped[:10, :10].all() and clipped.sum() <= 102
    assert np.array_equal(after("Cutout", 0, centre=(30, 20)), BEFORE)


def test_magnitude_zero_and_no_layers_change_nothing():
    for magnitude, layers in ((0, 2), (10, 0)):
        image = randaugment(picture(), magnitude, layers, keyed(Stream.AUGMENT, 0))
        assert np.array_equal(np.asarray(image), np.asarray(picture()))


def test_operations_and_signs_are_drawn_evenly(monkeypatch):
    seen: list[tuple[str, float]] = []

    def record(image, op, value, centre):
        seen.append((op, value))
        return image

    monkeypatch.setattr("pipeline.data.randaugment.apply", record)
    rng = keyed(Stream.AUGMENT, 1)
    for _ in range(1600):
        randaugment(picture(8), 5.0, 2, rng)
    counts = np.array([sum(op == name for name, _ in seen) for op in OPS])
    assert counts.sum() == 3200 and ((counts - 200) ** 2 / 200).sum() < 37.7  # 15 dof, 0.1 %
    for op in ("Rotate", "ShearX", "TranslateY"):
        values = [value for name, value in seen if name == op]
        assert 0.35 < np.mean(np.array(values) > 0) < 0.65
    assert min(value for op, value in seen if op == "Cutout") > 0


@pytest.mark.parametrize("px", [1, 2, 17, 64])
@pytest.mark.parametrize("magnitude", [0.1, 5, 10, 20, 30])
def test_no_size_or_magnitude_breaks_an_operation(px, magnitude):
    for op in OPS:
        value = argument(op, magnitude, px)
        result = apply(picture(px), op, value, (px - 1, px // 2))
        assert result.size == (px, px) and result.mode == "RGB"
