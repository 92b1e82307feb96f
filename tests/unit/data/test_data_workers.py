"""Batches by worker processes: in order, in bounded memory, never a hang, errors with names."""

import faulthandler
import gc
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data.batches import Demand
from pipeline.data.crew import LoaderFailed
from pipeline.data.index_files import map_array
from pipeline.data.loading import LoaderSpec
from pipeline.data.reader import BrokenSample
from pipeline.data.worker import Piece
from pipeline.data.workers import Feed
from pipeline.spec import Misuse

MB = 1_000_000


class Job:
    """Makes batches of `size` one-pixel images of the ticket's value; says who made which piece."""

    def __init__(self, size: int = 8, piece_images: int = 4) -> None:
        self.size, self.piece_images = size, piece_images

    def shape(self, ticket: int) -> tuple[int]:
        return (self.size,)

    def make(self, ticket: int, piece: Piece, out: Any) -> Any:
        out[:] = ticket % 256
        return piece, os.getpid()

    def finish(self, ticket: int, images: torch.Tensor, parts: Any) -> Any:
        return ticket, images, parts


class Refuse(Job):
    def make(self, ticket, piece, out):
        if ticket == 5:
            raise BrokenSample("shard x: sample 'y'")
        if ticket == 6:
            raise Misuse("field z")
        if ticket == 7:
            raise KeyError("a bug")
        return super().make(ticket, piece, out)


class SleepAtThree(Job):
    def make(self, ticket, piece, out):
        time.sleep(60 if ticket == 3 else 0)
        return super().make(ticket, piece, out)


class CutUnderTheMap(Job):
    """Reads a mapped index that is cut meanwhile."""

    path: Path

    def make(self, ticket, piece, out):
        faulthandler.disable()  # that of the test runner prints pages
        array = map_array(self.path, np.dtype("i8"), "numbers")
        os.truncate(self.path, 4096)
        return int(array[-1])


class Hoard(Job):
    """Each worker takes 64 MB for itself, and fills a slot of as much."""

    def make(self, ticket, piece, out):
        out[:] = 1
        self.kept = np.ones(64 * MB, np.uint8)


class Settings(Job):
    def make(self, ticket, piece, out):
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
        deaf = all(signal.getsignal(number) is signal.SIG_IGN for number in numbers)
        return torch.get_num_threads(), deaf


@pytest.fixture
def feed() -> Iterator[Callable[..., Feed]]:
    """Make a feed of a job; settings of the loader by name."""
    feeds = []

    def make(job: Any = None, at_once: int = 1, **settings: Any) -> Feed:
        job = job or Job()
        spec = LoaderSpec(**{"workers": 2, "timeout_s": 60, **settings})
        feeds.append(Feed(job, spec, Demand(job.size, at_once, job.size)))
        return feeds[-1]

    yield make
    for made in feeds:
        made.close()
    assert not children()


def children() -> list[int]:
    return [process.pid or 0 for process in multiprocessing.active_children()]


def numbers(results: Iterable[Any]) -> list[int]:
    """Return the tickets of batches, after a look at their pixels."""
    found = []
    for ticket, images, _ in results:
        assert (images == ticket % 256).all()
        found.append(ticket)
    return found


@pytest.mark.parametrize("workers", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("size", [1, 8, 9])
def test_batches_come_in_the_order_of_the_tickets(feed, workers, size):
    results = feed(Job(size), workers=workers, prefetch=1).batches(range(40))
    assert numbers(results) == list(range(40))
    assert not children()


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_all_ways_to_start_workers_reach_the_same_memory(feed, method):
    results = feed(workers=2, start_method=method).batches(range(6))
    assert numbers(results) == list(range(6))


@pytest.mark.parametrize(
    ("size", "sizes"), [(3, [3]), (8, [4, 4]), (9, [3, 3, 3]), (10, [3, 3, 4])]
)
def test_a_batch_is_made_in_pieces_of_about_one_size(feed, size, sizes):
    for _, _, parts in feed(Job(size)).batches(range(3)):
        pieces = [piece for piece, _ in parts]
        assert [piece.stop - piece.start for piece in pieces] == sizes
        assert [piece.start for piece in pieces[1:]] == [piece.stop for piece in pieces[:-1]]


def test_several_workers_make_one_batch(feed):
    _, _, parts = next(feed(workers=2).batches(range(9)))
    assert len({pid for _, pid in parts}) == 2


def test_whole_tickets_go_to_workers_in_turn_where_a_job_wants_that(feed):
    made = list(feed(Job(piece_images=0), workers=3).batches(range(12)))
    assert [[piece.worker for piece, _ in parts] for _, _, parts in made] == [[0], [1], [2]] * 4
    by_worker = [{parts[0][1] for _, _, parts in made[n::3]} for n in range(3)]
    assert [len(pids) for pids in by_worker] == [1, 1, 1]
    assert len(set.union(*by_worker)) == 3


def test_an_endless_line_of_tickets_is_drawn_only_a_little_ahead(feed):
    drawn = []

    def tickets():
        for number in range(10**9):
            drawn.append(number)
            yield number

    results = feed(Job(4), prefetch=3).batches(tickets())
    assert numbers(next(results) for _ in range(5)) == list(range(5))
    assert len(drawn) <= 5 + 2 * 3
    results.close()
    assert not children()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("at_once", [1, 6])
def test_memory_is_used_again_and_stays_within_the_footprint(feed, workers, at_once):
    made = feed(workers=workers, at_once=at_once)
    results = made.batches(range(300))
    most = made.footprint().slots
    for first in range(0, 300, at_once):
        batches = [next(results) for _ in range(at_once)]
        assert numbers(batches) == list(range(first, first + at_once))
        assert len(made._ring._memory) <= most
    assert next(results, None) is None


@pytest.mark.parametrize("workers", [0, 2])
def test_who_keeps_batches_finds_them_as_they_were(feed, workers):
    kept = list(feed(workers=workers).batches(range(60)))
    assert numbers(kept) == list(range(60))
    ours = kept[7][1][2:5].numpy()
    del kept
    assert (ours == 7).all()


def test_the_next_step_is_made_while_the_one_before_is_in_use(feed):
    """All that the caller takes together is made meanwhile, though it lets go late."""
    made = feed(Job(4), at_once=8, prefetch=1)
    results = made.batches(range(64))
    step = None
    for _ in range(4):
        step = [next(results) for _ in range(8)]
        in_the_making = made._ring.in_use - len(step)
        assert in_the_making >= 7
    assert len(made._ring._memory) <= made.footprint().slots


def test_a_feed_can_start_again_and_uses_the_same_memory(feed):
    made = feed()
    results = made.batches(range(10**6))
    next(results)
    before = children()
    ring = made._ring
    assert numbers(made.batches(range(4))) == [0, 1, 2, 3]
    assert made._ring is ring and not set(before) & set(children())
    assert next(results, None) is None


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_come_back_as_they_were_raised_and_in_their_turn(feed, workers):
    results = feed(Refuse(), workers=workers).batches(range(3, 10))
    assert numbers(next(results) for _ in range(2)) == [3, 4]
    with pytest.raises(BrokenSample, match=r"^shard x: sample 'y'$"):
        next(results)
    assert not children()
    with pytest.raises(Misuse, match=r"^field z$"):
        next(feed(Refuse(), workers=workers).batches([6]))


def test_a_bug_in_a_worker_comes_with_its_traceback(feed):
    with pytest.raises(
        LoaderFailed, match=r"worker crashed:\n(.|\n)*in make(.|\n)*KeyError: 'a bug'"
    ):
        next(feed(Refuse()).batches([7]))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_ticket_that_is_refused_stops_nothing_before_it(feed, workers):
    def tickets():
        yield from range(3)
        raise Misuse("stage 2")

    results = feed(workers=workers).batches(tickets())
    assert numbers(next(results) for _ in range(3)) == [0, 1, 2]
    with pytest.raises(Misuse, match="stage 2"):
        next(results)


def test_workers_have_one_thread_and_ignore_the_signals_of_the_trainer(feed):
    results = feed(Settings()).batches([0, 1])
    assert [parts for _, _, parts in results] == [[(1, True)] * 2] * 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
def test_signals_to_the_workers_stop_nothing(feed, number):
    results = feed().batches(range(100))
    assert next(results)[0] == 0
    for pid in children():
        os.kill(pid, number)
    assert numbers(results) == list(range(1, 100))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker_is_a_named_error_and_no_hang(feed, workers):
    results = feed(workers=workers).batches(range(10**9))
    next(results)
    pid = children()[-1]
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(LoaderFailed, match=rf"worker {pid} died \(killed by signal 9\)"):
        for _ in results:
            pass
    assert not children()


def test_a_mapped_index_that_is_cut_is_not_taken_for_a_lack_of_memory(feed, tmp_path):
    job = CutUnderTheMap()
    job.path = tmp_path / "a.idx.npy"
    np.save(job.path, np.arange(10**6))
    with pytest.raises(LoaderFailed, match=r"signal 7\).*was cut.*data_prep verify") as error:
        next(feed(job).batches([0]))
    assert "points at memory" not in str(error.value)


def test_a_worker_that_hangs_is_a_named_error_after_the_timeout(feed):
    results = feed(SleepAtThree(), workers=1, timeout_s=1).batches(range(10))
    with pytest.raises(
        LoaderFailed, match=r"no worker answered in time: 3 .*loader.timeout_s is 1"
    ):
        list(results)
    assert not children()  # although it sleeps and ignores SIGTERM


def test_a_stopped_worker_is_named_with_what_it_does(feed):
    results = feed(workers=2, timeout_s=1).batches(range(10**9))
    next(results)
    pid = children()[0]
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(LoaderFailed, match=rf"{pid} \(is stopped, owes \d+\)"):
        for _ in results:
            pass
    assert not children()


def test_nothing_is_left_open_when_feeds_come_and_go(feed):
    def use() -> int:
        made = feed()
        next(made.batches(range(100)))
        made.close()
        gc.collect()  # what earlier tests left for it must not close in between
        return len(list(Path("/proc/self/fd").iterdir()))

    first = use()
    assert max(use() for _ in range(4)) <= first


def test_the_footprint_counts_what_workers_have_of_their_own_and_nothing_else(feed):
    """Not what they share with this process since the fork, and not the slots.

    Of the ballast nothing; of other memory what counting references has touched since.
    """
    ballast = np.ones(400 * MB, np.uint8)
    made = feed(Hoard(64 * MB, piece_images=0), at_once=2)
    assert made.footprint().workers_bytes == 0
    results = made.batches(range(2))
    made_by_both = [next(results) for _ in range(2)]  # the pixels: nobody else has touched them
    footprint = made.footprint()
    assert 2 * 64 * MB < footprint.workers_bytes < 2 * (64 + 300) * MB
    assert f"at most {footprint.slots} slots" in str(footprint) and "2 workers" in str(footprint)
    assert ballast.all() and len(made_by_both) == 2


def test_the_global_random_state_is_left_alone(feed):
    state = torch.get_rng_state()
    list(feed(workers=1).batches(range(3)))
    assert torch.equal(state, torch.get_rng_state())
