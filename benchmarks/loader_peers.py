"""The contestants of `loader.py` that go from tar to batch, each in a process of its own.

    python benchmarks/loader_peers.py "webdataset + torchvision"

It says its versions, then takes requests, a JSON object a line: {folder, px, images}. For each it
opens its loader with one worker, drops some batches, and answers with the images, seconds of
processors (all its processes) and of the clock of the next ones. Batches are uint8. Imports are
late, so that DALI may run in an environment that has nothing else.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, NamedTuple

from loader_table import DALI, OURS, OURS_RANDAUGMENT, TIMM, WEBDATASET

BATCH = 64
DROPPED = 2
"""Batches at the start of a turn that are not counted: workers start, buffers fill."""
MAGNITUDE = 9.0
SHUFFLED, SHUFFLED_AT_START = 256, 64
"""Samples in the peers' shuffle buffers; the usual thousands would only delay a turn's start."""
ENDLESS = 1_000_000
LOCAL = "local:"
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
"""Of a crop; everyone's defaults."""


class Settings(NamedTuple):
    """What our loader is told of a step."""

    px: int
    randaugment: float
    micro_batches: int = 1


class Plan(NamedTuple):
    """Every step alike."""

    settings: Settings
    total_steps: int = ENDLESS

    def at(self, step: int, /) -> Settings:
        """Return the settings of `step`."""
        return self.settings


def crop_of(px: int) -> Any:
    """Return torchvision's random crop."""
    from torchvision.transforms import RandomResizedCrop

    return RandomResizedCrop(px, scale=AREA, ratio=RATIO)


def ours(folder: Path, px: int) -> Iterator[int]:
    """Crop and flip."""
    return _ours(folder, px, 0.0)


def ours_randaugment(folder: Path, px: int) -> Iterator[int]:
    """Crop, flip and the official RandAugment."""
    return _ours(folder, px, MAGNITUDE)


def _ours(folder: Path, px: int, magnitude: float) -> Iterator[int]:
    from pipeline.data.augment import AugmentSpec
    from pipeline.data.index import SplitIndex
    from pipeline.data.loader import TrainLoader
    from pipeline.data.loading import LoaderSpec
    from pipeline.data.manifest import load_manifest
    from pipeline.data.order import Order

    index = SplitIndex(folder, load_manifest(folder), "train")
    spec = LoaderSpec(workers=1, lanes=4, window=SHUFFLED)
    order = Order(len(index), 0, spec.lanes, spec.window)
    plan = Plan(Settings(px, magnitude))
    augment = AugmentSpec(kind="randaugment" if magnitude else "none")
    loader = TrainLoader(index, order, plan, BATCH, 0, 1, augment, 0, spec)
    try:
        for batches in loader.steps(0):
            yield sum(len(batch.images) for batch in batches)
            del batches
    finally:
        loader.close()


def _open_local_files() -> None:
    """Let webdataset open URLs `local:PATH`; in its safe mode it opens no files by itself."""
    os.environ["WDS_SECURE"] = "1"
    from webdataset.gopen import gopen_schemes

    def open_file(url: str, mode: str = "rb", bufsize: int = -1) -> IO[bytes]:
        return open(url.removeprefix(LOCAL), mode, bufsize)

    gopen_schemes[LOCAL.rstrip(":")] = open_file


def webdataset(folder: Path, px: int) -> Iterator[int]:
    """The tutorial's way: decode to Pillow, torchvision's crop and flip, batches of its loader."""
    _open_local_files()
    from torchvision import transforms
    from webdataset.compat import WebDataset, WebLoader

    steps = [crop_of(px), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
    transform = transforms.Compose(steps)
    tars = [LOCAL + tar for tar in _tars(folder)]
    data: Any = WebDataset(tars, shardshuffle=False, empty_check=False)
    data = (
        data.shuffle(SHUFFLED, initial=SHUFFLED_AT_START)
        .decode("pilrgb")
        .to_tuple("jpg", "cls")
        .map_tuple(transform, _same)
        .batched(BATCH, partial=False)
        .repeat()
    )
    for images, _ in WebLoader(data, batch_size=None, num_workers=1):
        yield len(images)


def timm(folder: Path, px: int) -> Iterator[int]:
    """Its reader, transforms and collation up to the uint8 batch; normalising is the device's.

    The more usual rand-m9-mstd0.5-inc1 ends an epoch: it asks Pillow 13 for 0 bits.
    """
    _open_local_files()
    os.environ.update(WDS_SHUFFLE_SIZE=str(SHUFFLED), WDS_INITIAL_SIZE=str(SHUFFLED_AT_START))
    import torch
    from timm.data import create_dataset, create_loader

    dataset: Any = create_dataset(
        "wds/",
        root=f"{LOCAL}{folder}",
        split="train",
        is_training=True,
        batch_size=BATCH,
        num_samples=ENDLESS,
    )
    loader: Any = create_loader(
        dataset,
        input_size=(3, px, px),
        batch_size=BATCH,
        is_training=True,
        interpolation="bilinear",
        color_jitter=0.0,
        auto_augment=f"rand-m{MAGNITUDE:.0f}-mstd0.5",
        num_workers=1,
        device=torch.device("cpu"),
        pin_memory=False,
    )
    for images, _ in loader.loader:
        assert images.dtype == torch.uint8
        yield len(images)


def dali(folder: Path, px: int) -> Iterator[int]:
    """The fused random crop decode, antialiased resize and flip, on one thread."""
    from nvidia.dali import fn, pipeline_def, types  # pyright: ignore[reportMissingImports]

    @pipeline_def(batch_size=BATCH, num_threads=1, device_id=None, seed=0)
    def graph() -> Any:
        jpegs, labels = fn.readers.webdataset(
            paths=_tars(folder),
            ext=["jpg", "cls"],
            random_shuffle=True,
            initial_fill=SHUFFLED,
            name="tars",
        )
        images = fn.decoders.image_random_crop(
            jpegs,
            device="cpu",
            output_type=types.RGB,
            random_area=AREA,
            random_aspect_ratio=RATIO,
        )
        images = fn.resize(images, resize_x=px, resize_y=px, antialias=True)
        return fn.flip(images, horizontal=fn.random.coin_flip()), labels

    pipeline: Any = graph()
    pipeline.build()
    while True:
        images, _ = pipeline.run()
        yield len(images.as_array())


def _same(value: Any) -> Any:
    return value


def _tars(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.glob("train/*.tar"))]


class Contestant(NamedTuple):
    """How a contestant is opened, and the packages whose versions matter; the first is its own."""

    batches: Callable[[Path, int], Iterator[int]]
    packages: tuple[str, ...]


CONTESTANTS = {
    OURS: Contestant(ours, ("torch", "numpy")),
    OURS_RANDAUGMENT: Contestant(ours_randaugment, ("torch", "numpy")),
    WEBDATASET: Contestant(webdataset, ("webdataset", "torchvision", "pillow")),
    TIMM: Contestant(timm, ("timm", "webdataset")),
    DALI: Contestant(dali, ("nvidia-dali-cuda130", "nvidia-dali-cuda120")),
}


class PeerEnded(Exception):
    """A contestant that cannot take part, or failed; the message says why."""


class Peer:
    """A contestant's process, seen from the benchmark.

    Raises:
        PeerEnded: its package is missing, or it failed.
    """

    def __init__(self, python: str, who: str) -> None:
        self._process = subprocess.Popen(
            [python, __file__, who],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        about = self._answer()
        if "missing" in about:
            self.close()
            raise PeerEnded(about["missing"])
        self.versions: dict[str, str] = about["versions"]

    def turn(self, folder: Path, px: int, images: int) -> tuple[int, float, float]:
        """Have so many images loaded; returns images, seconds of processors and of the clock.

        Raises:
            PeerEnded: it failed.
        """
        assert self._process.stdin is not None
        request = {"folder": str(folder), "px": px, "images": images}
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PeerEnded(f"its process ended with code {self._process.wait()}; see above")
        return json.loads(line)


def main() -> None:
    """Answer requests until there are no more; exit with 1 where a loader fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=CONTESTANTS)
    contestant = CONTESTANTS[parser.parse_args().name]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    found = {package: _version(package) for package in contestant.packages}
    found = {package: found_version for package, found_version in found.items() if found_version}
    if not found:
        missing = " or ".join(contestant.packages)
        print(json.dumps({"missing": f"no {missing} in {sys.prefix}"}), file=answers)
        return
    print(json.dumps({"versions": found}), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        block = _turn(contestant, Path(request["folder"]), request["px"], request["images"])
        print(json.dumps(block), file=answers)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _turn(contestant: Contestant, folder: Path, px: int, images: int) -> tuple[int, float, float]:
    """Return (images, seconds of processors, seconds by the clock) of one turn."""
    batches: Any = contestant.batches(folder, px)
    with closing(batches):
        for _ in range(DROPPED):
            next(batches)
        cpu_s, wall_s, count = _cpu_s(), time.perf_counter(), 0
        while count < images:
            count += next(batches)
        return count, _cpu_s() - cpu_s, time.perf_counter() - wall_s


def _cpu_s() -> float:
    """Return the processor time of this process and of those it started."""
    return time.process_time() + sum(_task_s(pid) for pid in _offspring(os.getpid()))


def _offspring(pid: int) -> Iterator[int]:
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            yield child
            yield from _offspring(child)


def _task_s(pid: int) -> float:
    """Return the time that all threads of a process ran; exact to the ns, where /stat has 10 ms."""
    paths = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(path.read_text().split()[0]) for path in paths) / 1e9


if __name__ == "__main__":
    main()
