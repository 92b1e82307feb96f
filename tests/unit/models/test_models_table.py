"""The table: names, settings, scaling rules, and that none of it needs torch."""

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.models import count
from pipeline.models.layout import lay_out, round_channels
from pipeline.models.table import TABLE, ModelSpec
from pipeline.spec import Misuse

V2_BLOCKS = {"b0": 21, "b1": 27, "b2": 28, "b3": 32, "s": 40, "m": 57, "l": 79, "xl": 100}


def test_an_unknown_model_is_answered_with_the_list_of_names() -> None:
    with pytest.raises(Misuse) as caught:
        ModelSpec.parse({"name": "v2_xxl"}, "run.yaml")
    message = str(caught.value)
    assert "run.yaml: field 'name' is 'v2_xxl'" in message
    assert all(name in message for name in TABLE)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("padding", "valid"),
        ("drop_path", 1.0),
        ("drop_path", -0.1),
        ("bn_eps", 0),
        ("bn_momentum", 1.5),
        ("bn_group", 0),
        ("width", 2),
    ],
)
def test_wrong_settings_are_named(field: str, value: object) -> None:
    with pytest.raises(Misuse, match=f"field '{field}'"):
        ModelSpec.parse({"name": "tiny", field: value}, "run.yaml")


def test_a_spec_leads_to_its_row() -> None:
    row = ModelSpec(name="v2_l").row
    assert (row.eval_px, row.dropout) == (480, 0.4)


def test_a_group_spreads_over_ranks_or_is_taken_at_once() -> None:
    spec = ModelSpec(name="tiny", bn_group=8)
    assert {world: spec.together(world) for world in (1, 2, 4, 8, 16, 64)} == {
        1: 8, 2: 4, 4: 2, 8: 1, 16: 1, 64: 1,
    }  # fmt: skip
    assert [ModelSpec(name="tiny").together(world) for world in (1, 3, 512)] == [1, 1, 1]


@pytest.mark.parametrize("world", [3, 6, 12])
def test_ranks_that_cannot_share_a_group_are_refused_with_the_remedy(world: int) -> None:
    with pytest.raises(Misuse, match=f"'model.bn_group' is 8: {world} ranks cannot .* multiple"):
        ModelSpec(name="tiny", bn_group=8).together(world)


def test_all_models_of_the_papers_are_there() -> None:
    v2 = {f"v2_{size}" for size in V2_BLOCKS} | {"v2_s_arxiv_v1"}
    v1 = {f"v1_b{index}" for index in range(8)}
    assert TABLE.keys() == v2 | v1 | {"tiny", "v2_cifar"}


@pytest.mark.parametrize(("size", "num_blocks"), V2_BLOCKS.items())
def test_v2_has_the_official_number_of_blocks(size: str, num_blocks: int) -> None:
    assert len(lay_out(TABLE[f"v2_{size}"]).blocks) == num_blocks


@pytest.mark.parametrize(
    ("name", "stem", "channels", "repeats", "head"),
    [
        ("v2_b1", 32, [16, 32, 48, 96, 112, 192], [2, 3, 3, 4, 6, 9], 1280),
        ("v2_b2", 32, [16, 32, 56, 104, 120, 208], [2, 3, 3, 4, 6, 10], 1408),
        ("v2_b3", 40, [16, 40, 56, 112, 136, 232], [2, 3, 3, 5, 7, 12], 1536),
        ("v1_b3", 40, [24, 32, 48, 96, 136, 232, 384], [2, 3, 3, 5, 5, 6, 2], 1536),
        ("v1_b7", 64, [32, 48, 80, 160, 224, 384, 640], [4, 7, 7, 10, 10, 13, 4], 2560),
    ],
)
def test_scaled_models_have_the_official_widths(
    name: str, stem: int, channels: list[int], repeats: list[int], head: int
) -> None:
    layout = lay_out(TABLE[name])
    stages = [[b for b in layout.blocks if b.stage == s] for s in range(len(channels))]
    assert (layout.stem, layout.head) == (stem, head)
    assert [stage[-1].outputs for stage in stages] == channels
    assert [len(stage) for stage in stages] == repeats


def test_rounding_takes_the_nearest_multiple_of_eight() -> None:
    assert [round_channels(exact, 0.0) for exact in (1, 11, 12, 19.2, 20)] == [8, 8, 16, 16, 24]


def test_the_ninety_percent_rule_decides_only_the_first_stage_of_b3() -> None:
    assert round_channels(16 * 1.2, 0.9) == 24
    assert round_channels(16 * 1.2, 0.0) == 16
    for name, row in TABLE.items():
        if name != "v1_b3" and name != "v2_b3":
            other = dataclasses.replace(row, round_limit=0.9 - row.round_limit)
            assert lay_out(other) == lay_out(row), name
    # Official code without the rule, and the count that it gives (facts: 12,227,212).
    assert count.params(dataclasses.replace(TABLE["v1_b3"], round_limit=0), 1000) == 12_227_212
    assert count.params(dataclasses.replace(TABLE["v2_b3"], round_limit=0.9), 1000) == 14_377_062


def test_only_the_first_block_of_a_stage_strides_and_changes_width() -> None:
    for row in TABLE.values():
        for block in lay_out(row).blocks:
            if block.place > 0:
                assert block.has_skip


def test_the_squeeze_follows_the_unexpanded_input() -> None:
    block = next(b for b in lay_out(TABLE["v2_s"]).blocks if b.op == "mb")
    assert (block.inputs, block.hidden, block.squeezed) == (64, 256, 16)


def test_small_models_take_small_images() -> None:
    for name in ("tiny", "v2_cifar"):
        layout = lay_out(TABLE[name])
        assert layout.total_stride == 8
        assert {block.op for block in layout.blocks} == {"fused", "mb"}
        assert any(block.squeezed for block in layout.blocks)
    large = [row for name, row in TABLE.items() if name not in ("tiny", "v2_cifar")]
    assert {lay_out(row).total_stride for row in large} == {32}


@pytest.mark.parametrize("px", [1, 7, 128, 171, 224, 257])
def test_multiply_adds_follow_the_rounded_up_map_sizes(px: int) -> None:
    row = TABLE["tiny"]
    first = list(count.convolutions(lay_out(row), px, 10))[0]
    assert first.px == math.ceil(px / 2)
    assert count.macs(row, px, 11) - count.macs(row, px, 10) == lay_out(row).head


def test_a_broken_stage_string_is_caught() -> None:
    for stage in ("conv e1 k3 s1 c8 x1", "mb e1 k3 s1 c8", "mb e1 k3 s1 c8 x1 z2"):
        row = dataclasses.replace(TABLE["tiny"], stages=(stage,))
        with pytest.raises(AssertionError, match="stage"):
            lay_out(row)


def test_table_and_counts_come_without_torch(repo: Path) -> None:
    code = "import pipeline.models.table, pipeline.models.count, sys; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=repo,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "False"
