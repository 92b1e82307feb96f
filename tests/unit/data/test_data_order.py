"""The order: every id exactly once per epoch, the same for everybody, different every epoch."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.order import Order, _layout, _shuffle, check_division, positions
from pipeline.spec import Misuse


def epoch_ids(order: Order, epoch: int) -> np.ndarray:
    return order.sample_ids(epoch, np.arange(order.num_samples))


@settings(max_examples=60, deadline=None)
@given(
    num_samples=st.integers(1, 2000),
    lanes=st.integers(1, 300),
    window=st.integers(0, 300),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 10**6),
)
def test_every_id_comes_exactly_once_per_epoch(num_samples, lanes, window, seed, epoch):
    ids = epoch_ids(Order(num_samples, seed, lanes, window), epoch)
    assert np.array_equal(np.sort(ids), np.arange(num_samples))


@settings(max_examples=30, deadline=None)
@given(
    num_samples=st.integers(50, 500),
    global_batch=st.sampled_from([4, 8, 24, 64]),
    first=st.integers(0, 50),
    data=st.data(),
)
def test_starting_anywhere_gives_the_same_ids_as_coming_there(
    num_samples, global_batch, first, data
):
    order = Order(num_samples, 3, lanes=8, window=16)
    micro_batches = data.draw(st.sampled_from([1, 2, 4]))
    whole_run = np.arange((first + 2) * global_batch)
    expected = order.at(whole_run)[1].reshape(-1, global_batch)[first]
    step = np.empty(global_batch, np.int64)
    for j in range(micro_batches):
        where = positions(first, j, global_batch, micro_batches)
        step[j::micro_batches] = Order(num_samples, 3, lanes=8, window=16).at(where)[1]
    assert np.array_equal(step, expected)


def test_batches_straddle_epochs_and_nothing_is_dropped_or_padded():
    order = Order(10, 0, lanes=4, window=3)
    epochs, ids = order.at(np.arange(45))
    assert epochs.tolist() == [p // 10 for p in range(45)]
    assert all(sorted(ids[e * 10 : e * 10 + 10]) == list(range(10)) for e in range(4))
    assert len(set(ids[40:])) == 5


def test_a_batch_may_span_more_than_two_epochs():
    epochs, ids = Order(3, 0, lanes=2, window=2).at(positions(5, 0, 16, 1))
    assert epochs.min() == 26 and epochs.max() == 31
    assert sorted(ids[(epochs == 28)]) == [0, 1, 2]


def test_order_differs_by_epoch_and_by_seed():
    order = Order(5000, 7, lanes=16, window=64)
    first = epoch_ids(order, 0)
    for other in (epoch_ids(order, 1), epoch_ids(Order(5000, 8, 16, 64), 0)):
        assert np.mean(first == other) < 0.01


def test_neighbours_of_one_epoch_are_no_neighbours_in_the_next():
    order = Order(4096, 7, lanes=16, window=64)
    batches = [epoch_ids(order, epoch).reshape(-1, 128) for epoch in range(2)]
    kept = max(len(np.intersect1d(a, b)) for a in batches[0] for b in batches[1])
    assert kept < 40  # 4 expected where nothing is shared, 128 where batches repeat


def test_a_lane_reads_one_window_at_a_time():
    order = Order(16 * 640, 7, lanes=16, window=64)
    lane = epoch_ids(order, 3)[5::16]
    for start in range(0, 640, 64):
        ids = np.sort((lane[start : start + 64] - lane[start]) % order.num_samples)
        gaps = np.diff(np.append(ids, ids[0] + order.num_samples))
        assert gaps.max() == order.num_samples - 63 and len(ids) == 64


def test_the_order_is_frozen():
    """These values are part of every run's definition: a resumed run must find the same ones."""
    order = Order(1000, 42, lanes=8, window=32)
    assert order.sample_ids(0, np.arange(8)).tolist() == FROZEN[0]
    assert order.sample_ids(5, np.arange(500, 508)).tolist() == FROZEN[1]


FROZEN = [[351, 659, 159, 786, 837, 554, 221, 945], [837, 254, 980, 333, 430, 77, 585, 760]]


def shuffled(size: int, times: int) -> np.ndarray:
    """Return (times, size): what is at each place of `times` windows of one epoch."""
    rounds = _layout(5, 0, size, 1).keys[1]
    key = np.arange(times, dtype=np.uint64)[:, None]
    return _shuffle(np.tile(np.arange(size), (times, 1)), np.array(size), key, rounds)


def test_all_permutations_are_equally_likely():
    """Chi-square over the 24 orders of 4 samples; 49.7 would be seen once in a thousand times."""
    counts = np.unique(shuffled(4, 4800), axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert ((counts - 200) ** 2 / 200).sum() < 49.7


def test_places_within_a_window_are_equally_likely():
    """Chi-square of where each of 32 samples goes, in 2000 windows; 961 degrees of freedom."""
    counts = np.zeros((32, 32))
    for ids in shuffled(32, 2000):
        counts[np.arange(32), ids] += 1
    assert ((counts - 62.5) ** 2 / 62.5).sum() < 961 + 4 * np.sqrt(2 * 961)


def distinct_per_batch(labels: np.ndarray, size: int = 256) -> float:
    return float(np.mean([len(np.unique(b)) for b in labels.reshape(-1, size)]))


def autocorrelation_z(labels: np.ndarray, lag: int, num_classes: int) -> float:
    """Return by how many sigmas equal labels at a lag exceed those of a random order."""
    same = np.mean(labels[:-lag] == labels[lag:])
    p = 1 / num_classes
    return float((same - p) / np.sqrt(p * (1 - p) / (len(labels) - lag)))


SORTED = np.arange(64_000) * 1000 // 64_000
IDEAL_DISTINCT = 226.2  # measured: classes of 1000 in 256 draws without order


@pytest.mark.parametrize(("lanes", "window"), [(256, 1024), (64, 64), (16, 0)])
def test_permuted_shards_shuffle_like_an_ideal_permutation(lanes, window):
    labels = np.random.default_rng(0).permutation(SORTED)
    labels = labels[epoch_ids(Order(len(labels), 1, lanes, window), 0)]
    assert abs(distinct_per_batch(labels) - IDEAL_DISTINCT) < 1.5
    for lag in (1, 16, 255, 256, 512):
        assert abs(autocorrelation_z(labels, lag, 1000)) < 3.5


@pytest.mark.parametrize("lanes", [16, 64, 256])
def test_tars_sorted_by_class_mix_well_when_whole_lanes_are_shuffled(lanes):
    """A batch then holds at least as many classes as under an ideal permutation."""
    labels = SORTED[epoch_ids(Order(len(SORTED), 1, lanes, 0), 0)]
    assert distinct_per_batch(labels) > IDEAL_DISTINCT - 1.5
    assert autocorrelation_z(labels, 1, 1000) < 2


def test_a_seek_anywhere_in_14_million_samples_takes_milliseconds():
    order = Order(14_197_122, 0)
    order.at(positions(0, 0, 4096, 32))
    times = []
    for step in (1, 10**5, 3 * 10**5, 10**6):
        started = time.perf_counter()
        order.at(positions(step, 3, 4096, 32))
        times.append(time.perf_counter() - started)
    assert min(times) < 0.05


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((100, 8, 256, 1), ["batch.global_size", "100", "8"]),
        ((96, 3, 256, 1), ["loader.lanes", "256", "3"]),
        ((64, 8, 256, 3), ["world size 3", "8", "start 2 ranks"]),
        ((64, 8, 256, 16), ["world size 16", "start 8 ranks"]),
    ],
)
def test_numbers_that_do_not_divide_are_refused_by_name(numbers, words):
    with pytest.raises(Misuse) as error:
        check_division(*numbers)
    assert all(word in str(error.value) for word in words)


def test_an_empty_split_is_refused():
    with pytest.raises(Misuse, match="no samples"):
        Order(0, 0)
