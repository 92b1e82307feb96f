"""Widths after scaling: the 90 % rule for V1 and for none of V2's B0 to B3.

Sources: `round_filters` of google/automl's effnetv2_model.py (nearest multiple of 8), of
tensorflow/tpu's efficientnet (one multiple more where a tenth would be lost), and the weights that
were published for both: 12,233,232 parameters of V1-B3, 14,358,406 of V2-B3.
"""

from dataclasses import replace

import pytest

from pipeline.models.count import params
from pipeline.models.layout import lay_out, round_channels
from pipeline.models.table import TABLE


def widths(name: str) -> list[int]:
    """Return the output width of each stage."""
    blocks = lay_out(TABLE[name]).blocks
    return [block.outputs for block in blocks if block.place == 0]


@pytest.mark.parametrize(
    ("exact", "plain", "ninety"),
    [
        (16 * 1.2, 16, 24),  # 19.2: 16 would lose a sixth
        (32 * 1.1, 32, 32),  # 35.2: 32 is still 91 %
        (24 * 1.2, 32, 32),
        (40 * 1.1, 48, 48),  # 44: half up
        (3.0, 8, 8),  # never less than 8
        (12.0, 16, 16),
        (11.9, 8, 16),
    ],
)
def test_channels_are_whole_eights(exact: float, plain: int, ninety: int) -> None:
    assert round_channels(exact, 0.0) == plain
    assert round_channels(exact, 0.9) == ninety


def test_v1_b3_keeps_nine_tenths() -> None:
    assert widths("v1_b3")[0] == 24
    assert params(TABLE["v1_b3"], 1000) == 12_233_232
    assert params(replace(TABLE["v1_b3"], round_limit=0.0), 1000) == 12_227_212


def test_v2_b3_does_not() -> None:
    assert widths("v2_b3") == [16, 40, 56, 112, 136, 232]
    assert params(TABLE["v2_b3"], 1000) == 14_358_406
    assert params(replace(TABLE["v2_b3"], round_limit=0.9), 1000) == 14_377_062


def test_v2_b2_has_the_published_widths() -> None:
    assert widths("v2_b2") == [16, 32, 56, 104, 120, 208]
    assert (lay_out(TABLE["v2_b2"]).stem, lay_out(TABLE["v2_b2"]).head) == (32, 1408)
    assert (lay_out(TABLE["v2_b3"]).stem, lay_out(TABLE["v2_b3"]).head) == (40, 1536)


@pytest.mark.parametrize("name", [n for n in TABLE if n.startswith(("v1_", "v2_"))])
def test_no_other_model_is_affected(name: str) -> None:
    row = TABLE[name]
    limits = {lay_out(replace(row, round_limit=limit)) for limit in (0.0, 0.9)}
    assert (len(limits) == 2) == (name in ("v1_b3", "v2_b3"))
