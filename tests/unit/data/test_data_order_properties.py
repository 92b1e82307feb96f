"""What the order promises, for any numbers: each sample once per epoch, the same global batches
for any number of ranks, a start anywhere; and its shuffle beside ideal permutations."""

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.data.batches import Share, Ticket
from pipeline.data.loader import _Samples
from pipeline.data.order import Order, positions

WORLDS = (1, 2, 4, 8)
PROPERTY = settings(  # the fixture `fake` holds no state that examples could share
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Run(NamedTuple):
    """The numbers of a run: its order, its global batch, and stages of micro-batches."""

    order: Order
    global_batch: int
    plan: Any


@st.composite
def runs(draw: st.DrawFn, fake: Any) -> Run:
    """Draw a run: micro-batches change with the stage, and any of 1, 2, 4, 8 ranks fits."""
    lanes = draw(st.sampled_from([16, 32, 48, 64, 256]))
    order = Order(
        draw(st.integers(20, 700)), draw(st.integers(0, 2**32)), lanes, draw(st.integers(0, 90))
    )
    fitting = [m for m in (8, 16) if lanes % m == 0]
    stages, first = [], 0
    for _ in range(draw(st.integers(1, 3))):
        stages.append((first, fake.settings(micro_batches=draw(st.sampled_from(fitting)))))
        first += draw(st.integers(1, 9))
    global_batch = 16 * draw(st.integers(1, 6))
    plan = fake.plan(total_steps=10**6, stages=tuple(stages))
    return Run(order, global_batch, plan)


def steps_of(run: Run, rank: int, world: int, first_step: int) -> Iterator[dict[int, np.ndarray]]:
    """Yield what a rank is to do: for every step, positions by number of micro-batch."""
    share = Share(run.global_batch, rank, world, run.order.lanes)
    for tickets in share.tickets(run.plan, first_step):
        yield {
            t.index: positions(t.step, t.index, run.global_batch, t.micro_batches) for t in tickets
        }


def global_batches(run: Run, world: int, first_step: int, count: int) -> np.ndarray:
    """Return (count, global batch) sample ids by slot, put together from all ranks."""
    ids = np.full(count * run.global_batch, -1)
    for rank in range(world):
        steps = list(islice(steps_of(run, rank, world, first_step), count))
        if steps:
            where = np.concatenate([own for step in steps for own in step.values()])
            slots = where - first_step * run.global_batch
            assert (ids[slots] == -1).all(), "two micro-batches share a slot"
            ids[slots] = run.order.at(where)[1]
    return ids.reshape(count, run.global_batch)


def stream(run: Run, first_step: int, count: int) -> np.ndarray:
    """Return the same (count, global batch) ids as the endless stream has them."""
    where = first_step * run.global_batch + np.arange(count * run.global_batch)
    return run.order.at(where)[1].reshape(count, run.global_batch)


@PROPERTY
@given(data=st.data())
def test_every_epoch_of_the_stream_holds_each_sample_exactly_once(fake, data):
    run = data.draw(runs(fake))
    size = run.order.num_samples
    ids = global_batches(run, 1, 0, 3 * size // run.global_batch + 1).ravel()
    for epoch in range(len(ids) // size):
        assert np.array_equal(np.sort(ids[epoch * size : (epoch + 1) * size]), np.arange(size))
    rest = ids[len(ids) // size * size :]
    assert len(np.unique(rest)) == len(rest)


@PROPERTY
@given(data=st.data(), first_step=st.integers(0, 10**5))
def test_global_batches_are_the_same_on_1_2_4_and_8_ranks(fake, data, first_step):
    run = data.draw(runs(fake))
    expected = stream(run, first_step, 3)
    for world in WORLDS:
        assert np.array_equal(global_batches(run, world, first_step, 3), expected)


@PROPERTY
@given(data=st.data())
def test_micro_batches_hold_the_same_samples_whoever_makes_them(fake, data):
    run = data.draw(runs(fake))
    step = data.draw(st.integers(0, 30))
    (alone,) = islice(steps_of(run, 0, 1, step), 1)
    for world in WORLDS[1:]:
        shared = [next(steps_of(run, rank, world, step)) for rank in range(world)]
        assert [set(part) for part in shared] == [
            set(range(rank, len(alone), world)) for rank in range(world)
        ]
        for part in shared:
            assert all(np.array_equal(part[index], alone[index]) for index in part)


@PROPERTY
@given(data=st.data())
def test_runs_that_stop_and_go_on_with_other_ranks_lose_and_repeat_nothing(fake, data):
    """Stopped twice, anywhere (an epoch may be shorter than a step), each time resumed by another
    number of ranks and a fresh order object."""
    run = data.draw(runs(fake))
    total = data.draw(st.integers(3, 20))
    stops = sorted(data.draw(st.tuples(st.integers(0, total), st.integers(0, total))))
    parts = []
    for first, last in zip([0, *stops], [*stops, total], strict=True):
        order = Order(run.order.num_samples, run.order.seed, run.order.lanes, run.order.window)
        world = data.draw(st.sampled_from(WORLDS))
        parts.append(global_batches(run._replace(order=order), world, first, last - first))
    assert np.array_equal(np.concatenate(parts), stream(run, 0, total))


@PROPERTY
@given(data=st.data())
def test_steps_read_alone_in_any_sequence_are_what_the_run_comes_to(fake, data):
    run = data.draw(runs(fake))
    whole = stream(run, 0, 21)
    for step in data.draw(st.lists(st.integers(0, 20), min_size=1, max_size=4)):
        assert np.array_equal(global_batches(run, 2, step, 1)[0], whole[step])


@PROPERTY
@given(data=st.data())
def test_the_loader_computes_for_each_micro_batch_the_samples_of_the_order(fake, data):
    """It does so for blocks of steps, of which it keeps a few; steps come in any sequence here."""
    run = data.draw(runs(fake))
    world = data.draw(st.sampled_from(WORLDS))
    share = Share(run.global_batch, data.draw(st.integers(0, world - 1)), world, run.order.lanes)
    samples = _Samples(run.order, share)
    far = data.draw(st.sampled_from([0, 10**5]))
    for step in data.draw(st.lists(st.integers(far, far + 300), min_size=1, max_size=12)):
        count = data.draw(st.sampled_from([m for m in (1, 2, 4, 8, 16) if m % world == 0]))
        own = range(share.rank, count, world)
        for j in own:
            epochs, ids = samples.at(Ticket(step, j, 8, 0.0, count, 0))
            expected = run.order.at(positions(step, j, run.global_batch, count))
            assert np.array_equal(epochs, expected[0]) and np.array_equal(ids, expected[1])
        everything = [run.order.at(positions(step, j, run.global_batch, count))[1] for j in own]
        assert sorted(samples.of_step(step)) == sorted(np.concatenate(everything))


@PROPERTY
@given(
    num_samples=st.integers(40, 3000),
    lanes=st.sampled_from([1, 2, 8, 64]),
    window=st.integers(1, 200),
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 1000),
)
def test_a_lane_reads_one_range_in_whole_windows_and_a_rest(
    num_samples, lanes, window, seed, epoch
):
    """So few shards are in use at once, whatever the numbers are."""
    order = Order(num_samples, seed, lanes, window)
    ids = order.sample_ids(epoch, np.arange(num_samples))
    for lane in range(0, min(lanes, num_samples), max(1, lanes // 4)):
        own = ids[lane::lanes]
        pieces = _runs_of_neighbours(own, window, num_samples)
        assert sum(pieces) == len(own)
        assert sorted(pieces, reverse=True)[: len(own) // window] == [window] * (len(own) // window)


def _runs_of_neighbours(own: np.ndarray, window: int, num_samples: int) -> list[int]:
    """Cut a lane into windows, each of which must hold neighbouring ids; return their lengths.

    The rest may stand after any whole window, so both cuts are tried.
    """
    rest = len(own) % window
    pieces, start, rest_seen = [], 0, rest == 0
    while start < len(own):
        if _are_neighbours(own[start : start + window], window, num_samples):
            length = window
        else:
            assert not rest_seen and _are_neighbours(own[start : start + rest], rest, num_samples)
            length, rest_seen = rest, True
        pieces.append(length)
        start += length
    return pieces


def _are_neighbours(ids: np.ndarray, length: int, num_samples: int) -> bool:
    if len(ids) != length:
        return False
    moved = np.sort((ids - ids[0]) % num_samples)
    gaps = np.diff(np.append(moved, num_samples))
    return len(np.unique(ids)) == length and gaps.max() >= num_samples - length + 1


# Shuffle quality. Each figure is compared with the same figure of ideal permutations
# (numpy's), in units of their standard deviation; seeds are fixed, so nothing here is by chance.

NUM_SAMPLES, NUM_CLASSES, BATCH = 40_000, 100, 256
LAGS = (1, 2, 16, 64, 255, 256, 257, 1024)
LAYOUTS = [(256, 1024), (256, 64), (64, 128), (16, 0), (1, 0)]
"""Lanes and windows; a lane has 156 to 40,000 samples."""


def figures(ids: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return what is measured of one epoch's order."""
    shown = labels[ids]
    whole = shown[: len(shown) // BATCH * BATCH].reshape(-1, BATCH)
    found = {f"same label at lag {lag}": np.mean(shown[:-lag] == shown[lag:]) for lag in LAGS}
    found["displacement"] = np.mean(np.abs(ids - np.arange(len(ids))))
    found["classes in a batch"] = np.mean([len(np.unique(batch)) for batch in whole])
    return {name: float(value) for name, value in found.items()}


@pytest.fixture(scope="module")
def ideal() -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of each figure over 60 ideal permutations."""
    rng = np.random.default_rng(11)
    labels = permuted_labels()
    every = [figures(rng.permutation(NUM_SAMPLES), labels) for _ in range(60)]
    columns = {name: np.array([one[name] for one in every]) for name in every[0]}
    return {name: (float(v.mean()), float(v.std(ddof=1))) for name, v in columns.items()}


def permuted_labels() -> np.ndarray:
    """Return labels as they lie in shards that were permuted when written."""
    return np.random.default_rng(5).permutation(np.arange(NUM_SAMPLES) * NUM_CLASSES // NUM_SAMPLES)


@pytest.mark.parametrize(("lanes", "window"), LAYOUTS)
def test_an_epoch_is_shuffled_like_an_ideal_permutation(ideal, lanes, window):
    """Of the mean over 8 epochs, every figure lies within 3 sigma of ideal permutations."""
    order, labels = Order(NUM_SAMPLES, 0, lanes, window), permuted_labels()
    offsets = np.arange(NUM_SAMPLES)
    every = [figures(order.sample_ids(epoch, offsets), labels) for epoch in range(8)]
    for name, (mean, sigma) in ideal.items():
        ours = np.mean([one[name] for one in every])
        assert abs(ours - mean) < 3 * sigma, f"{name}: {ours:.4f}, ideal {mean:.4f} +- {sigma:.4f}"


def walk(num_samples: int, lanes: int, window: int, rng: np.random.Generator) -> np.ndarray:
    """Return the ids of an epoch whose lanes and windows are those of the order, and whose
    permutations are ideal ones."""
    ids, start = np.empty(num_samples, np.int64), 0
    for lane in range(lanes):
        length = len(ids[lane::lanes])
        own, size = np.arange(start, start + length), window or length
        windows = [rng.permutation(own[n : n + size]) for n in range(0, length, size)]
        ids[lane::lanes] = np.concatenate([windows[n] for n in rng.permutation(len(windows))])
        start += length
    return ids


def distance(ids: np.ndarray, lag: int) -> float:
    """Return how far apart ids at a lag are, in the mean; id 0 follows the last."""
    apart = np.abs(ids[lag:] - ids[:-lag])
    return float(np.minimum(apart, len(ids) - apart).mean())


@pytest.mark.parametrize(("lanes", "window"), LAYOUTS)
def test_samples_that_follow_each_other_lie_as_far_apart_as_in_ideal_permutations(lanes, window):
    """In a lane, one after the other (the inside of windows) and a window later (their order)."""
    order, rng = Order(NUM_SAMPLES, 0, lanes, window), np.random.default_rng(7)
    ours = [order.sample_ids(epoch, np.arange(NUM_SAMPLES)) for epoch in range(8)]
    ideals = [walk(NUM_SAMPLES, lanes, window, rng) for _ in range(40)]
    has_windows = 0 < window < NUM_SAMPLES // lanes
    for ahead in (1, window if has_windows else 10):
        found, expected = (
            np.array([distance(ids, lanes * ahead) for ids in epochs]) for epochs in (ours, ideals)
        )
        assert abs(found.mean() - expected.mean()) < 3 * expected.std(ddof=1), f"{ahead} ahead"


def test_the_figures_would_find_a_bad_shuffle(ideal):
    """A shuffle buffer over samples sorted by class, as streaming loaders do it, is far off."""
    rng = np.random.default_rng(0)
    labels = np.arange(NUM_SAMPLES) * NUM_CLASSES // NUM_SAMPLES
    buffered = np.argsort(np.arange(NUM_SAMPLES) + rng.uniform(0, 1000, NUM_SAMPLES))
    found = figures(buffered, labels)
    off = {name for name, (mean, sigma) in ideal.items() if abs(found[name] - mean) > 3 * sigma}
    assert off >= {"same label at lag 1", "displacement", "classes in a batch"}


@pytest.mark.parametrize(
    ("num_samples", "lanes", "window"),
    [(160_000, 64, 1024), (128_117, 64, 400), (40_000, 16, 0), (65_536, 64, 512)],
)
def test_epochs_do_not_resemble_each_other(num_samples, lanes, window):
    """When a sample comes says nothing about when it comes in the next epoch.

    Windows move as wholes, so the correlation of two epochs of W windows has a sigma of about
    1 / sqrt(W). Of 15 pairs the squares of the z-scores add up to 15 +- 5.5.
    """
    order, offsets = Order(num_samples, 0, lanes, window), np.arange(num_samples)
    places = np.empty((6, num_samples))
    for epoch, place in enumerate(places):
        place[order.sample_ids(epoch, offsets)] = offsets
    correlations = np.asarray(np.corrcoef(places))[np.triu_indices(6, 1)]
    per_lane = num_samples / lanes
    sigma = 1 / np.sqrt(num_samples / min(window, per_lane)) if window else num_samples**-0.5
    assert np.square(correlations / sigma).sum() < 15 + 3 * 5.5


def test_a_batch_of_one_epoch_scatters_over_the_next():
    """Of 256 samples that came together, as many meet again as by chance: 256 * 255 / N pairs."""
    order, offsets = Order(NUM_SAMPLES, 0, lanes=256, window=1024), np.arange(NUM_SAMPLES)
    batch_of = np.empty((5, NUM_SAMPLES), np.int64)
    for epoch, row in enumerate(batch_of):
        row[order.sample_ids(epoch, offsets)] = offsets // BATCH
    met = []
    for before, after in zip(batch_of, batch_of[1:], strict=False):
        counts = np.unique(before * NUM_SAMPLES + after, return_counts=True)[1]
        met.append(float((counts * (counts - 1)).sum() / 2))
    expected = NUM_SAMPLES * (BATCH - 1) / 2 * (BATCH / NUM_SAMPLES)
    assert abs(np.mean(met) - expected) < 3 * np.sqrt(expected / len(met))
