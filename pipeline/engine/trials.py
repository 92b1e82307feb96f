"""How large a micro-batch fits: tried on this device with the real step, before there is a run.

The global batch stays what it is; only the number of micro-batches that make it up changes. Memory
grows in a straight line with the images of a micro-batch, so a trial of a small one tells which
large one to try next, and few trials fail.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import psutil
import torch

from pipeline.engine.step import Stepper
from pipeline.engine.warmup import is_out_of_memory, rehearse
from pipeline.plan.plan import SMALLEST_MIX, StepPlan
from pipeline.spec import Misuse

TIMED = 2
SAMPLED_EVERY_S = 0.002


class Trial(NamedTuple):
    """A micro-batch of `batch` images that fitted: the most memory it took, and its speed."""

    batch: int
    peak_bytes: int
    images_s: float


class Peak:
    """The most bytes in use inside a `peak_memory` block; `bytes` is set as it ends."""

    bytes = 0


def micro_batch_counts(global_batch: int, world: int, lanes: int, mixes: bool) -> list[int]:
    """Return the numbers of micro-batches that a stage may have, largest first.

    They divide the global batch and the loader's lanes, all ranks get equally many, and where
    images are mixed a micro-batch has partners enough.

    Raises:
        Misuse: there is none; names the numbers that exclude each other.
    """
    smallest = SMALLEST_MIX if mixes else 1
    counts = [
        count
        for count in range(global_batch // smallest, 0, -1)
        if global_batch % count == 0 and count % world == 0 and lanes % count == 0
    ]
    if not counts:
        raise Misuse(
            f"batch.global_size {global_batch}, loader.lanes {lanes}, {world} ranks: no number of "
            f"micro-batches divides the first two and is shared equally by the ranks; use a number "
            "of ranks that divides both"
        )
    return counts


def measure_micro_batch(
    stepper: Stepper,
    at: Callable[[int], StepPlan],
    global_batch: int,
    counts: Sequence[int],
    limit_bytes: int,
) -> Trial:
    """Find the largest micro-batch of a stage that stays under `limit_bytes`.

    Args:
        stepper: warmed up, so that gradients and the optimizer's state are there.
        at: the stage's step plan for a number of micro-batches.
        counts: numbers of micro-batches to choose from, largest first.
        limit_bytes: of the GPU's memory, or of this process on a CPU; at rest included.

    Raises:
        Misuse: not even the smallest micro-batch fits.
    """
    with peak_memory(stepper.world.device) as rest:
        pass
    sizes = [global_batch // count for count in counts]
    plans = dict(zip(sizes, map(at, counts), strict=True))
    best = try_size(stepper, plans[sizes[0]], sizes[0], limit_bytes)
    if best is None:
        raise Misuse(
            f"field 'stages.{plans[sizes[0]].stage}.px' is {plans[sizes[0]].px}: not even "
            f"{sizes[0]} images fit into {limit_bytes / 2**30:.2f} GiB; take a smaller model, "
            "smaller images, more ranks or more memory"
        )
    before, sizes = Trial(0, rest.bytes, 0.0), sizes[1:]
    while promising := _promising(sizes, before, best, rest.bytes, limit_bytes):
        trial = try_size(stepper, plans[promising[-1]], promising[-1], limit_bytes)
        if trial is None:
            sizes = [size for size in sizes if size < promising[-1]]
        else:
            before, best = best, trial
    return best


def try_size(stepper: Stepper, plan: StepPlan, batch: int, limit_bytes: int) -> Trial | None:
    """Rehearse a micro-batch of `batch` images; None where it takes more than `limit_bytes`."""
    device = stepper.world.device
    times: list[float] = []
    try:
        with torch.compiler.set_stance("force_eager"), peak_memory(device) as peak:
            for _ in range(1 + TIMED):
                started = time.perf_counter()
                rehearse(stepper, plan, batch)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                times.append(time.perf_counter() - started)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
    fits = peak.bytes <= limit_bytes
    return Trial(batch, peak.bytes, batch / min(times[1:])) if fits else None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Watch memory while the block runs: what torch holds on a GPU, else this process's."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device)
        return
    process, over = psutil.Process(), threading.Event()

    def watch() -> None:
        while not over.wait(SAMPLED_EVERY_S):
            peak.bytes = max(peak.bytes, process.memory_info().rss)

    peak.bytes = process.memory_info().rss
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()


def _promising(
    sizes: list[int], before: Trial, best: Trial, rest_bytes: int, limit_bytes: int
) -> list[int]:
    """Return the sizes over the best one that a straight line keeps under the limit.

    The line goes through the last two trials; noise may make it no flatter than half the slope
    from the memory at rest.
    """
    latest = (best.peak_bytes - before.peak_bytes) / (best.batch - before.batch)
    overall = (best.peak_bytes - rest_bytes) / best.batch
    slope = max(latest, overall / 2, 0)
    return [
        size
        for size in sizes
        if size > best.batch and best.peak_bytes + slope * (size - best.batch) <= limit_bytes
    ]
