"""Draws of a sample: those of recorded runs, their order, and settings that contradict."""

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.data.augment import AugmentSpec, Draw, draw
from pipeline.data.ops import CODES, OPS, Op
from pipeline.plan.draws import Stream, keyed


def rng(number: int = 0) -> np.random.Generator:
    return keyed(Stream.AUGMENT, 7, 1, number)


OFFICIAL = AugmentSpec(crop_area=(0.05, 1.0), crop_attempts=100)
SCALED = AugmentSpec(crop_area=(0.05, 1.0), crop_attempts=100, reference_px=224)


# Written down when crop, flip and RandAugment were drawn one by one while decoding.
@pytest.mark.parametrize(
    ("number", "spec", "box", "flip", "ops"),
    [
        (0, SCALED, (30, 109, 160, 273), True, [("Contrast", 0.64, 0, 0), ("Cutout", 2, 11, 32)]),
        (1, OFFICIAL, (85, 4, 424, 283), True, [("Rotate", -9.3, 0, 0), ("TranslateY", -31, 0, 0)]),
        (
            2,
            SCALED,
            (60, 7, 283, 255),
            True,
            [("TranslateX", -6.857142857142857, 0, 0), ("TranslateY", 6.857142857142857, 0, 0)],
        ),
        (3, OFFICIAL, (74, 79, 212, 234), False, [("Color", 0.694, 0, 0), ("Equalize", 0, 0, 0)]),
        (5, OFFICIAL, (66, 18, 274, 275), True, [("Cutout", 14, 28, 32), ("Cutout", 14, 20, 27)]),
    ],
)
def test_recorded_runs_keep_their_draws(number, spec, box, flip, ops):
    drawn = draw(500 - number, 300 + number, 48, spec, 3 + number / 10, rng(number))
    assert drawn.box == box and drawn.flip == flip
    for op, (name, value, x, y) in zip(drawn.ops, ops, strict=True):
        assert (OPS[op.code], op.x, op.y) == (name, x, y) and op.value == pytest.approx(value)


def test_size_and_magnitude_change_neither_crop_nor_flip():
    draws = [draw(400, 300, px, OFFICIAL, m, rng(3)) for px, m in ((128, 0), (300, 15), (380, 9))]
    assert len({(drawn.box, drawn.flip) for drawn in draws}) == 1


def test_what_comes_after_the_policy_does_not_change_it():
    more = AugmentSpec(color_jitter=0.4, cutout_fraction=0.25, erase=1.0)
    plain, full = draw(400, 300, 64, AugmentSpec(), 9, rng(1)), draw(400, 300, 64, more, 9, rng(1))
    assert full[:2] == plain[:2] and full.ops[:2] == plain.ops
    names = [OPS[op.code] for op in full.ops[2:]]
    assert sorted(names[:3]) == ["Brightness", "Color", "Contrast"]
    assert names[3:] == ["NoiseBox", "NoiseBox"]


def test_squash_takes_the_whole_image_and_draws_no_crop():
    spec = AugmentSpec(crop="squash", kind="none")
    drawn = draw(500, 300, 64, spec, 0, rng())
    assert drawn == Draw((0, 0, 500, 300), bool(rng().random() < 0.5), ())


@pytest.mark.parametrize("kind", ["randaugment", "randaugment_torchvision", "autoaugment_v0"])
def test_draws_are_plain_numbers_that_survive_a_process(kind):
    for number in range(50):
        drawn = draw(400, 300, 64, AugmentSpec(kind=kind, erase=0.5), 9, rng(number))
        assert type(drawn.flip) is bool and all(type(side) is int for side in drawn.box)
        for op in drawn.ops:
            assert [type(part) for part in (op.code, op.x, op.y)] == [int] * 3
            assert isinstance(op.value, int | float) and not isinstance(op.value, np.generic)
        assert draw(400, 300, 64, AugmentSpec(kind=kind, erase=0.5), 9, rng(number)) == drawn


def test_autoaugment_needs_no_magnitude_and_none_has_no_ops():
    spec = AugmentSpec(kind="autoaugment_v0")
    assert any(draw(9, 9, 9, spec, 0, rng(i)).ops for i in range(9))
    assert draw(9, 9, 9, AugmentSpec(kind="none"), 10, rng()).ops == ()


@pytest.mark.parametrize(("fill", "name"), [("noise", "NoiseBox"), ("grey", "GreyBox")])
def test_the_erased_box_is_noise_or_grey(fill, name):
    spec = AugmentSpec(kind="none", erase=1.0, erase_with=fill)
    (op,) = draw(64, 64, 64, spec, 0, rng()).ops
    assert op.code == CODES[name]


def test_warp_reaches_torchvisions_operations():
    spec = AugmentSpec(kind="randaugment_torchvision", warp="bilinear", num_layers=9)
    codes = {op.code for i in range(9) for op in draw(64, 64, 64, spec, 9, rng(i)).ops}
    assert CODES["RotateBilinear"] in codes and CODES["RotateBlack"] not in codes


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "autoaugment"}, "autoaugment_v0"),
        ({"crop": "centre"}, "squash"),
        ({"color_jitter": -0.1}, "greater than or equal to 0"),
        ({"erase": 1.1}, "less than or equal to 1"),
        ({"erase_with": "black"}, "grey"),
        ({"cutout_fraction": 2}, "less than or equal to 1"),
        ({"device": "tpu"}, "gpu"),
        ({"warp": "bilinear"}, "no effect on kind randaugment"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValidationError, match=message):
        AugmentSpec(**wrong)


def test_an_op_without_arguments_is_short():
    assert Op(CODES["Invert"]) == Op(CODES["Invert"], 0.0, 0, 0)


@pytest.mark.parametrize("crop", ["tensorflow", "tensorflow_legacy"])
def test_tensorflows_crops_are_keyed_and_lie_in_the_image(crop):
    spec = AugmentSpec(crop=crop, crop_area=(0.05, 1.0), kind="none")
    for number in range(50):
        drawn = draw(400, 300, 64, spec, 0.0, rng(number))
        left, top, right, bottom = drawn.box
        assert 0 <= left < right <= 400 and 0 <= top < bottom <= 300
        assert drawn == draw(400, 300, 64, spec, 0.0, rng(number))
        assert drawn.box != draw(400, 300, 64, AugmentSpec(kind="none"), 0.0, rng(number)).box


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (17, 16)])
@pytest.mark.parametrize("crop", ["random", "tensorflow", "tensorflow_legacy"])
def test_no_shape_of_an_image_has_no_crop(crop, shape):
    for number in range(20):
        width, height = shape
        drawn = draw(width, height, 32, AugmentSpec(crop=crop), 5.0, rng(number))
        left, top, right, bottom = drawn.box
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
