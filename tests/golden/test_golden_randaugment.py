"""The official RandAugment at the magnitudes of the published stages, against its formulas.

Source: autoaugment.py of google/automl, efficientnetv2: `level_to_arg`, `_MAX_LEVEL` of 10,
`cutout_const` 40 and `translate_const` 100; for AutoAugment v0 100 and 250. Levels above 10
extrapolate.
"""

from pathlib import Path

import pytest
from timm.data.auto_augment import auto_augment_policy_v0

from pipeline.data.ops import CODES, OFFICIAL
from pipeline.data.policies import V0, argument, autoaugment_v0, randaugment
from pipeline.plan.draws import Stream, keyed
from pipeline.recipe import load_recipe

OPERATIONS = {
    "AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "Color", "Contrast",
    "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY", "Cutout",
    "SolarizeAdd",
}  # fmt: skip


def official(name: str, level: float, cutout: int = 40, translate: int = 100) -> float:
    """Return the argument of an operation without its sign, by another way than the product's.

    Posterize keeps at least one bit and Solarize stops at 256 (pipeline/data/policies.py).
    """
    share = level / 10.0
    arguments = {
        **dict.fromkeys(("AutoContrast", "Equalize", "Invert"), 0.0),
        **dict.fromkeys(("Color", "Contrast", "Brightness", "Sharpness"), share * 1.8 + 0.1),
        **dict.fromkeys(("ShearX", "ShearY"), share * 0.3),
        **dict.fromkeys(("TranslateX", "TranslateY"), share * translate),
        "Rotate": share * 30.0,
        "Posterize": float(max(1, min(8, int(share * 4)))),
        "Solarize": float(min(256, int(share * 256))),
        "SolarizeAdd": float(int(share * 110)),
        "Cutout": float(int(share * cutout)),
    }
    return arguments[name]


def test_the_sixteen_operations_are_the_official_ones() -> None:
    assert set(OFFICIAL) == OPERATIONS and len(OFFICIAL) == 16


# linspace(5, 10 | 15 | 20, 4) of the released code, 5 to 15 | 20 | 25 of the paper
STAGED = ["v2_s_1k", "v2_m_1k", "v2_l_1k", "v2_s_1k_paper", "v2_m_1k_paper", "v2_l_1k_paper"]


@pytest.mark.parametrize("name", STAGED)
def test_arguments_at_every_published_magnitude(repo: Path, name: str) -> None:
    """Also that px play no part: distances are absolute, whatever the stage's size."""
    for stage in load_recipe(repo / "configs" / f"{name}.yaml").stages.resolve():
        for operation in OFFICIAL:
            ours = argument(operation, stage.randaugment, stage.px)
            assert ours == pytest.approx(official(operation, stage.randaugment)), operation


@pytest.mark.parametrize("magnitude", [5.0, 20 / 3, 25 / 3, 10.0, 15.0, 25.0])
def test_every_draw_has_the_magnitude_and_a_random_sign(magnitude: float) -> None:
    rng = keyed(Stream.AUGMENT, 0, 1)
    names = {code: name for name, code in CODES.items()}
    signs: dict[str, set[bool]] = {}
    for _ in range(600):
        drawn = randaugment(300, magnitude, 2, rng)
        assert len(drawn) == 2, "always applied"
        for op in drawn:
            name = names[op.code]
            assert abs(op.value) == pytest.approx(official(name, magnitude)), name
            signs.setdefault(name, set()).add(op.value < 0)
    assert set(signs) == OPERATIONS
    signed = {name for name, seen in signs.items() if len(seen) == 2}
    assert signed == {"Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"}


def test_autoaugment_v0_moves_and_hides_further() -> None:
    """Its constants are 100 and 250; levels as in its table of sub-policies, `policy_v0`."""
    names = {code: name for name, code in CODES.items()}
    rng = keyed(Stream.AUGMENT, 0, 2)
    found: dict[str, set[float]] = {}
    for _ in range(3_000):
        for op in autoaugment_v0(176, rng):
            found.setdefault(names[op.code], set()).add(round(abs(op.value), 6))
    assert found["TranslateY"] == {official("TranslateY", 9, translate=250)} == {225.0}
    assert found["ShearY"] == {round(official("ShearY", level), 6) for level in (0, 3, 4, 7)}
    assert found["Rotate"] == {round(official("Rotate", level), 6) for level in (0, 2, 5, 7, 8, 9)}


def test_the_sub_policies_of_autoaugment_v0_are_those_that_timm_copied() -> None:
    """timm wrote `policy_v0` down on its own; its translations are relative, under another name."""
    theirs = tuple(
        tuple((op.name.removesuffix("Rel"), op.prob, op.magnitude) for op in pair)
        for pair in auto_augment_policy_v0({})
    )
    assert len(theirs) == 25
    assert theirs == V0
