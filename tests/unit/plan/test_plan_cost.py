"""Costs against published rates, batches that fit, and times worked out by hand."""

import math

import pytest

from pipeline.plan import cost
from pipeline.plan.cost import (
    Cluster,
    Sharding,
    Work,
    checkpoint_bytes,
    compute_s,
    exchange_s,
    exposed_s,
    formula_s,
    memory_of,
    pace_of,
    slowness,
    traffic_bytes,
)
from pipeline.plan.rates import (
    CARDS,
    LOADER_CORE,
    RATES,
    Rate,
    card_named,
    loader_core_images_s,
)
from pipeline.spec import Misuse

V2_S_300 = Work("v2_s", 300, 21_458_488, 153_872, 5.3076e9, 22.7344e6, 171)
MIB = 2**20


def row(card: str, model: str, bits: int = 16) -> Rate:
    (found,) = [r for r in RATES if (r.card, r.model, r.bits) == (card, model, bits)]
    return found


def test_the_formula_meets_the_published_rates_of_the_card_it_was_fitted_to() -> None:
    errors = [math.log(slowness(rate)) for rate in RATES if rate.card == "rtx3090"]
    assert len(errors) == 16
    assert math.sqrt(sum(error**2 for error in errors) / len(errors)) < 0.055
    assert max(map(abs, errors)) < 0.1


def test_no_published_rate_is_far_from_the_formula() -> None:
    """Other cards were measured with other software; a typing error would be far outside."""
    factors = [slowness(rate) for rate in RATES]
    assert min(factors) > 0.9
    assert max(factors) < 1.75


def test_a_published_rate_is_given_back_as_it_is() -> None:
    pace = pace_of("a100", V2_S_300, 16)
    assert pace.images_s == pytest.approx(950)
    assert pace.kind == "published"
    assert "NVIDIA" in pace.basis
    assert "scaled" not in pace.basis
    assert pace_of("a100", V2_S_300, 32).images_s == pytest.approx(390)


def test_another_size_is_scaled_by_the_formula_from_the_same_model() -> None:
    smaller = V2_S_300._replace(px=150, macs=V2_S_300.macs / 4, elements=V2_S_300.elements / 4)
    pace = pace_of("a100", smaller, 16)
    assert pace.images_s == pytest.approx(4 * 950)
    assert "v2_s at 300 px, scaled" in pace.basis


def test_another_model_is_scaled_from_the_nearest_in_cost() -> None:
    large = V2_S_300._replace(model="v2_l", macs=36e9, elements=101e6)
    assert "of v2_s at 300 px" in pace_of("a100", large, 16).basis
    small = V2_S_300._replace(model="v2_b0", macs=0.5e9, elements=3.5e6)
    assert "of v1_b0 at 224 px" in pace_of("a100", small, 16).basis


def test_a_card_without_a_rate_is_estimated_and_says_so() -> None:
    pace = pace_of("h100", V2_S_300, 16)
    assert pace.kind == "estimated"
    assert "no rate of this card" in pace.basis
    ideal = 1 / formula_s(CARDS["h100"], 16, V2_S_300.macs, V2_S_300.elements)
    assert ideal / 1.75 < pace.images_s < ideal
    assert pace_of("h200", V2_S_300, 16).images_s > pace.images_s


V1_B0_224 = Work("v1_b0", 224, 5_288_548, 42_016, 0.3858e9, 6.748e6, 81)


@pytest.mark.parametrize("work", [V2_S_300, V1_B0_224])
@pytest.mark.parametrize(
    ("slow", "fast"),
    [
        ("a100-40", "a100"),
        ("h100-pcie", "h100"),
        ("a100", "h100"),
        ("h100", "h200"),
        ("h200", "b200"),
    ],
)
def test_a_better_card_is_faster_and_no_more_so_than_its_data_sheet(
    work: Work, slow: str, fast: str
) -> None:
    """Whether or not one of the two has a rate."""
    gain = pace_of(fast, work, 16).images_s / pace_of(slow, work, 16).images_s
    seconds = [formula_s(CARDS[card], 16, work.macs, work.elements) for card in (slow, fast)]
    assert 1 < gain <= seconds[0] / seconds[1] * 1.0001


def test_a_measured_card_speaks_for_its_nearest() -> None:
    own = Rate("h200", "v2_s", 300, 16, 2000, 5.3076, 22.7344, "our node", "measured")
    assert pace_of("h100", V2_S_300, 16).images_s == pytest.approx(
        950 * _ideal("h100") / _ideal("a100")
    )
    pace = pace_of("h100", V2_S_300, 16, [own])
    assert pace.images_s == pytest.approx(2000 * _ideal("h100") / _ideal("h200"))
    assert (pace.kind, "our node" in pace.basis) == ("estimated", True)


def _ideal(card: str) -> float:
    return 1 / formula_s(CARDS[card], 16, V2_S_300.macs, V2_S_300.elements)


def test_own_rates_win_over_published_ones() -> None:
    own = Rate("a100", "v2_s", 300, 16, 1200, 5.3076, 22.7344, "our node", "measured")
    pace = pace_of("a100", V2_S_300, 16, [own])
    assert pace.images_s == pytest.approx(1200)
    assert pace.kind == "measured"
    assert pace_of("a100", V2_S_300, 32, [own]).images_s == pytest.approx(390)
    assert pace_of("v100", V2_S_300, 16, [own]).images_s == pytest.approx(380)


def test_the_formula_adds_memory_traffic_and_arithmetic() -> None:
    card = CARDS["a100"]
    assert formula_s(card, 16, 0, 2039e9 / 35.5 / 2) == pytest.approx(1)
    assert formula_s(card, 16, 312e12 / 6, 0) == pytest.approx(1)
    assert formula_s(card, 32, 156e12 / 6, 2039e9 / 35.5 / 4) == pytest.approx(2)


def test_a_step_is_its_passes_and_the_optimizer() -> None:
    card = CARDS["a100"]
    optimizer = 36 * V2_S_300.params / 2039e9
    four = compute_s(card, V2_S_300, 950, micro_batch=95, accumulate=4)
    assert four == pytest.approx(0.4 + optimizer)


def test_a_small_micro_batch_takes_as_long_as_its_kernels_are_launched() -> None:
    card = CARDS["h100"]
    one, two = (compute_s(card, V2_S_300, 1600, size, 1) for size in (1, 2))
    assert one == two
    assert one >= 171 * cost.LAUNCHES * cost.LAUNCH_S


def test_one_rank_exchanges_nothing() -> None:
    assert exchange_s(Cluster("h100", 1, 8, 400), 1, 1e9) == 0


def test_a_ring_inside_a_node_sends_twice_the_bytes_but_one_share() -> None:
    cluster = Cluster("a100", 1, 8, 400)
    seconds = exchange_s(cluster, 8, 300e9)
    assert seconds == pytest.approx(2 * 7 / 8 / cost.LINK_SHARE, rel=0.3)
    assert exchange_s(cluster, 2, 300e9) < seconds


def test_between_nodes_the_network_decides() -> None:
    slow, fast = (Cluster("h100", 4, 8, gbit) for gbit in (100, 400))
    assert exchange_s(slow, 32, 1e9) == pytest.approx(4 * exchange_s(fast, 32, 1e9), rel=0.05)
    assert exchange_s(slow, 8, 1e9) == exchange_s(fast, 8, 1e9), "one node needs no network"


def test_each_bucket_pays_for_its_hops() -> None:
    cluster = Cluster("h100", 64, 8, 400)
    hops = 2 * 7 * cost.LINK_HOP_S + 2 * 6 * cost.NETWORK_HOP_S
    few, many = exchange_s(cluster, 512, 25 * MIB), exchange_s(cluster, 512, 250 * MIB)
    assert many == pytest.approx(10 * few)
    assert few > hops


def test_a_backward_pass_hides_an_exchange_but_for_its_last_bucket() -> None:
    buckets = 10 * cost.BUCKET_BYTES
    assert exposed_s(0.01, buckets, last_pass_s=1) == pytest.approx(0.001)
    assert exposed_s(1.0, buckets, last_pass_s=0.3) == pytest.approx(1 - 0.7 * 0.2)
    assert exposed_s(0.01, 1000, last_pass_s=1) == pytest.approx(0.01)


def test_sharded_weights_travel_half_as_much_again() -> None:
    whole = traffic_bytes(V2_S_300, Sharding())
    assert whole == 4 * V2_S_300.params
    assert traffic_bytes(V2_S_300, Sharding(2)) == whole
    assert traffic_bytes(V2_S_300, Sharding(3)) == 1.5 * whole


def test_sharding_divides_what_it_says() -> None:
    whole = 4.0 * V2_S_300.params
    by_stage = [memory_of(V2_S_300, 8, 32, Sharding(stage), ranks=4) for stage in range(4)]
    assert [m.slots for m in by_stage] == [2 * whole, whole / 2, whole / 2, whole / 2]
    assert [m.gradients for m in by_stage] == [whole, whole, whole / 4, whole / 4]
    assert [m.weights for m in by_stage] == [whole, whole, whole, whole / 4]
    assert {m.ema for m in by_stage} == {whole}
    assert memory_of(V2_S_300, 8, 32, Sharding(2, offload=True), 4).slots == 0


def test_16_bits_halve_the_activations_and_copy_the_weights() -> None:
    full, half = (memory_of(V2_S_300, 8, bits, Sharding(), 1) for bits in (32, 16))
    assert half.activations == full.activations / 2
    assert half.weights == 1.5 * full.weights
    assert half.total > sum(half)


@pytest.mark.parametrize(
    ("card", "model", "fits", "too_many"),
    [
        ("rtx3090", "v2_s", 128, 192),
        ("rtx3090", "v2_m", 64, 96),
        ("rtx3090", "v2_l", 32, 48),
        ("rtx3090", "v2_b3", 256, 384),
        ("rtx3090", "v1_b4", 96, 128),
        ("rtx3090", "v1_b6", 16, 24),
        ("a100", "v2_s", 460, None),
    ],
)
def test_published_batches_fit_and_the_next_larger_ones_do_not(
    card: str, model: str, fits: int, too_many: int | None
) -> None:
    """timm's benchmark goes down to the first batch that fits; NVIDIA trained V2-S at 460 a GPU.

    timm's trains with one slot (momentum) and without an EMA.
    """
    millions = {"v2_s": 21, "v2_m": 54, "v2_l": 119, "v2_b3": 14, "v1_b4": 19, "v1_b6": 43}
    rate = row(card, model)
    work = Work(model, rate.px, millions[model] * 10**6, 0, 0, rate.melements * 1e6, 1)
    held = memory_of(work, fits, 16, Sharding(), 1)
    assert held.total - held.ema - held.slots / 2 < CARDS[card].memory_bytes
    if too_many:
        held = memory_of(work, too_many, 16, Sharding(), 1)
        assert held.total - held.ema - held.slots / 2 > 0.95 * CARDS[card].memory_bytes


def test_a_checkpoint_is_weights_average_and_slots_with_statistics_twice() -> None:
    assert checkpoint_bytes(V2_S_300) == 4 * (4 * 21_458_488 + 2 * 153_872)


def test_a_loader_core_is_interpolated_and_flat_outside() -> None:
    (low, fast), (high, slow) = LOADER_CORE
    assert [loader_core_images_s(px) for px in (low - 50, low, high, high + 99)] == [
        fast, fast, slow, slow
    ]  # fmt: skip
    assert slow < loader_core_images_s((low + high) // 2) < fast


def test_an_unknown_card_is_refused_with_those_that_there_are() -> None:
    assert card_named("H100") is CARDS["h100"]
    with pytest.raises(Misuse, match=r"'tpu'.*v100.*h100.*--rates"):
        card_named("tpu")


def test_every_row_names_a_card_and_its_source() -> None:
    assert {rate.card for rate in RATES} <= CARDS.keys()
    assert all(rate.source for rate in RATES)
    assert len({(r.card, r.model, r.px, r.bits) for r in RATES}) == len(RATES)
