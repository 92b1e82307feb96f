"""Policies: magnitudes as in their sources, what is drawn how often, and torchvision's pixels."""

import numpy as np
import pytest
from PIL import Image

from pipeline.data import policies
from pipeline.data.ops import CODES, OFFICIAL, OPS, Op, apply_ops
from pipeline.data.policies import argument, torchvision_op
from pipeline.plan.draws import Stream, keyed

SIGNED = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")


def rng(number: int = 0) -> np.random.Generator:
    return keyed(Stream.AUGMENT, 1, number)


def names(ops: list[Op]) -> list[str]:
    return [OPS[op.code] for op in ops]


def chi_squared(counts: np.ndarray) -> float:
    expected = counts.sum() / len(counts)
    return float(((counts - expected) ** 2 / expected).sum())


def test_there_are_the_16_official_operations():
    assert len(OFFICIAL) == len(set(OFFICIAL)) == 16 and OPS[:16] == OFFICIAL


# recipe: rotate M/10*30, shear M/10*0.3, translate M/10*100, cutout M/10*40, enhance M/10*1.8+0.1,
# posterize int(M/10*4) bits, solarize int(M/10*256), solarize_add int(M/10*110)
@pytest.mark.parametrize(
    ("name", "at_5", "at_10", "at_20"),
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
def test_magnitudes_follow_the_official_formulas(name, at_5, at_10, at_20):
    assert [argument(name, m, 224) for m in (5, 10, 20)] == pytest.approx([at_5, at_10, at_20])


def test_the_magnitudes_of_the_stages_are_not_rounded():
    assert argument("Rotate", 6.67, 224) == pytest.approx(20.01)
    assert argument("Solarize", 6.67, 224) == 170 and argument("Cutout", 8.33, 224) == 33


def test_posterize_keeps_between_1_and_8_bits():
    assert [argument("Posterize", m, 224) for m in (0.5, 2.4, 25, 40)] == [1, 1, 8, 8]
    assert [torchvision_op("Posterize", m, 224).value for m in (0, 9, 30, 60, 90)] == [
        8,
        7,
        4,
        1,
        1,
    ]


def test_translate_and_cutout_scale_only_with_a_reference_size():
    assert argument("TranslateX", 10, 32) == 100 == argument("TranslateX", 10, 480)
    assert argument("TranslateX", 10, 32, 320) == pytest.approx(10)
    assert argument("Cutout", 10, 32, 320) == 4
    assert argument("Rotate", 10, 32, 320) == 30


@pytest.mark.parametrize("policy", [policies.randaugment, policies.randaugment_torchvision])
def test_magnitude_zero_and_no_layers_draw_nothing(policy):
    generator = rng()
    assert policy(64, 0, 2, generator) == policy(64, 10, 0, generator) == []
    assert generator.random() == rng().random()


def test_randaugment_draws_operations_and_signs_evenly():
    generator = rng()
    drawn = [op for _ in range(1600) for op in policies.randaugment(8, 5.0, 2, generator)]
    counts = np.array([names(drawn).count(name) for name in OFFICIAL])
    assert counts.sum() == 3200 and chi_squared(counts) < 37.7  # 15 degrees of freedom, 0.1 %
    for name in ("Rotate", "ShearX", "TranslateY"):
        values = np.array([op.value for op in drawn if op.code == CODES[name]])
        assert 0.35 < (values > 0).mean() < 0.65 and len(set(np.abs(values))) == 1
    cutouts = [op for op in drawn if op.code == CODES["Cutout"]]
    assert {op.x for op in cutouts} == {op.y for op in cutouts} == set(range(8))
    assert all((op.x, op.y) == (0, 0) for op in drawn if op.code != CODES["Cutout"])


def test_torchvisions_randaugment_draws_14_operations_evenly_and_identity_is_none():
    generator = rng()
    drawn = [
        op for _ in range(1400) for op in policies.randaugment_torchvision(64, 9, 2, generator)
    ]
    found, counts = np.unique(names(drawn), return_counts=True)
    assert len(found) == 13 and 2500 < len(drawn) < 2700  # 2,800 less a fourteenth
    assert chi_squared(np.append(counts, 2800 - counts.sum())) < 34.5  # 13 degrees, 0.1 %
    for name in ("RotateBlack", "TranslateXBlack", "Color"):
        values = np.array([op.value for op in drawn if op.code == CODES[name]])
        assert 0.4 < (values > (1 if name == "Color" else 0)).mean() < 0.6
    assert set(found) & set(OFFICIAL) == {
        *("Brightness", "Color", "Contrast", "Sharpness", "Posterize", "Solarize"),
        *("AutoContrast", "Equalize"),
    }


def test_bilinear_takes_four_pixels_for_rotations_and_shears():
    drawn = [
        op for i in range(99) for op in policies.randaugment_torchvision(64, 9, 2, rng(i), True)
    ]
    found = set(names(drawn))
    assert {"RotateBilinear", "ShearXBilinear", "ShearYBilinear", "TranslateXBlack"} <= found
    assert not found & {"RotateBlack", "ShearXBlack", "ShearYBlack"}


@pytest.mark.parametrize("bilinear", [False, True])
@pytest.mark.parametrize("name", policies.TORCHVISION[1:])
def test_torchvisions_operations_have_its_pixels(name, bilinear):
    """Every bin of 31, both signs, byte by byte against torchvision on Pillow."""
    reference = pytest.importorskip("torchvision.transforms.autoaugment")
    mode = pytest.importorskip("torchvision.transforms").InterpolationMode
    filter = mode.BILINEAR if bilinear else mode.NEAREST
    pixels = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    magnitudes, signed = reference.RandAugment()._augmentation_space(31, (40, 40))[name]
    for number in range(31):
        for sign in (1, -1) if signed else (1,):
            magnitude = sign * float(magnitudes[number] if magnitudes.ndim else magnitudes)
            theirs = reference._apply_op(Image.fromarray(pixels), name, magnitude, filter, None)
            ours = pixels.copy()
            apply_ops(ours, [torchvision_op(name, sign * number, 40, bilinear)])
            assert np.array_equal(ours, np.asarray(theirs)), (number, sign)


def test_autoaugment_has_25_subpolicies_of_two_official_operations():
    assert len(policies.V0) == 25
    assert all(
        len(pair) == 2 and {name for name, *_ in pair} <= {*OFFICIAL} for pair in policies.V0
    )
    reference = pytest.importorskip("timm.data.auto_augment")
    theirs = reference.auto_augment_policy_v0({})
    renamed = {"PosterizeOriginal": "Posterize", "PosterizeTpu": "Posterize"}
    for ours, others in zip(policies.V0, theirs, strict=True):
        for (name, probability, level), other in zip(ours, others, strict=True):
            assert name == renamed.get(other.name, other.name.removesuffix("Rel"))
            assert (probability, level) == (other.prob, other.magnitude)


def test_autoaugment_applies_with_the_published_probabilities_and_constants():
    generator = rng()
    drawn = [policies.autoaugment_v0(300, generator) for _ in range(5000)]
    expected: dict[str, float] = dict.fromkeys(OFFICIAL, 0.0)
    for pair in policies.V0:
        for name, probability, _ in pair:
            expected[name] += probability / 25 * 5000
    counts = {name: sum(names(ops).count(name) for ops in drawn) for name in OFFICIAL}
    for name, count in expected.items():
        assert abs(counts[name] - count) < 4.5 * max(count, 1) ** 0.5, name
    shifts = {abs(op.value) for ops in drawn for op in ops if op.code == CODES["TranslateY"]}
    assert shifts == {225.0}  # level 9 of 10, 250 px
    bits = {op.value for ops in drawn for op in ops if op.code == CODES["Posterize"]}
    assert bits == {1, 2}
    signs = [op.value > 0 for ops in drawn for op in ops if op.code == CODES["Rotate"] and op.value]
    assert 0.45 < np.mean(signs) < 0.55


def test_jitter_draws_three_factors_in_any_order():
    drawn = [policies.color_jitter(0.4, rng(i)) for i in range(600)]
    assert len({tuple(names(ops)) for ops in drawn}) == 6
    values = np.array([op.value for ops in drawn for op in ops])
    assert 0.6 <= values.min() < 0.61 and 1.39 < values.max() <= 1.4
    assert abs(values.mean() - 1) < 0.02
    strong = np.array([op.value for i in range(99) for op in policies.color_jitter(3, rng(i))])
    assert strong.min() >= 0 and strong.max() > 3
    assert policies.color_jitter(0, rng()) == []


def boxes(ops: list[Op]) -> list[tuple[int, int, int, int]]:
    return [(op.x % 65536, op.y % 65536, op.x // 65536, op.y // 65536) for op in ops]


def test_erasing_has_torchvisions_areas_and_ratios():
    transforms = pytest.importorskip("torchvision.transforms")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    drawn = np.array([boxes(policies.erasing(100, 1.0, False, rng(i)))[0] for i in range(3000)])
    blank = torch.zeros(3, 100, 100)
    theirs = np.array(
        [
            transforms.RandomErasing.get_params(blank, (0.02, 0.33), (0.3, 3.3), [0.0])[:4]
            for _ in range(3000)
        ]
    )
    width, height = drawn[:, 2] - drawn[:, 0], drawn[:, 3] - drawn[:, 1]
    assert drawn.min() >= 0 and drawn.max() <= 100 and (width > 0).all() and (height > 0).all()
    for ours, other in ((width, theirs[:, 3]), (height, theirs[:, 2]), (drawn[:, 1], theirs[:, 0])):
        spread = (ours.var() / 3000 + other.var() / 3000) ** 0.5
        assert abs(ours.mean() - other.mean()) < 4.5 * spread
        assert 0.85 < ours.std() / other.std() < 1.15


def test_erasing_happens_as_often_as_asked_and_each_noise_has_its_seed():
    drawn = [policies.erasing(64, 0.3, True, rng(i)) for i in range(2000)]
    assert 0.26 < np.mean([len(ops) for ops in drawn]) < 0.34
    found = [op for ops in drawn for op in ops]
    assert set(names(found)) == {"NoiseBox"} and len({op.value for op in found}) == len(found)
    assert policies.erasing(64, 0, True, rng()) == []
    assert names(policies.erasing(64, 1, False, rng())) == ["GreyBox"]


def test_an_image_of_one_pixel_is_never_erased():
    for number in range(50):
        image = np.full((1, 1, 3), 77, np.uint8)
        apply_ops(image, policies.erasing(1, 1.0, True, rng(number)))
        assert (image == 77).all()


def test_the_cutout_of_finetuning_is_a_square_of_noise_clipped_at_the_edge():
    drawn = [policies.cutout_noise(64, 0.25, rng(i)) for i in range(500)]
    found = np.array([boxes(ops)[0] for ops in drawn])
    width, height = found[:, 2] - found[:, 0], found[:, 3] - found[:, 1]
    assert (width.min(), width.max()) == (16, 32) == (height.min(), height.max())
    assert {name for ops in drawn for name in names(ops)} == {"NoiseBox"}
    assert (found.min(), found.max()) == (0, 64)
    assert policies.cutout_noise(64, 0, rng()) == policies.cutout_noise(3, 0.25, rng()) == []


@pytest.mark.parametrize("px", [1, 2, 17, 64])
@pytest.mark.parametrize("magnitude", [0.1, 5, 10, 20, 30, 100])
def test_no_size_or_magnitude_breaks_an_operation(px, magnitude):
    for name in OFFICIAL:
        for sign in (1, -1) if name in SIGNED else (1,):
            op = Op(CODES[name], sign * argument(name, magnitude, px), px - 1, px // 2)
            apply_ops(np.zeros((px, px, 3), np.uint8), [op])
    for name in policies.TORCHVISION[1:]:
        for bins in (magnitude, -magnitude):
            op = torchvision_op(name, bins, px)
            apply_ops(np.zeros((px, px, 3), np.uint8), [op])
