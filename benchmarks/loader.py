"""How fast images come from shards, beside what people use now, in one run on one core.

    python benchmarks/loader.py --json run.json --plot run.svg   # under 8 minutes; see --help
    python benchmarks/loader.py --from-json run.json             # the tables of a run once more

decode   bytes to uint8 pixels: crop, resize, flip; with and without RandAugment; pixel differences
augment  RandAugment alone on decoded crops
loader   tar to batch with one worker, contestants in processes of their own (`loader_peers.py`)
limit    whole images by libjpeg-turbo; samples read and checked but not decoded

The real images of --data are built into three sets of shards: as they are, losslessly transcoded,
short side 400. Contestants take turns on the same images, all pinned to one core; figures are of
processor time, which a busy machine changes little.
"""

import argparse
import io
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from loader_peers import CONTESTANTS, MAGNITUDE, Peer, PeerEnded, crop_of
from loader_plot import plot
from loader_table import (
    DALI,
    DATA,
    FULL_DECODE,
    LOSSLESS,
    ORIGINAL,
    OURS,
    OURS_OFFICIAL,
    OURS_RANDAUGMENT,
    PILLOW,
    READ,
    SMALL,
    TORCHVISION,
    Block,
    Cell,
    Results,
    load,
    print_table,
)
from PIL import Image
from simplejpeg import decode_jpeg
from torchvision import transforms
from torchvision.transforms import functional, v2

from pipeline.data import decode as decoding
from pipeline.data import ops, policies
from pipeline.data.augment import AugmentSpec, draw
from pipeline.data.decode import decode_train, open_rgb
from pipeline.data.index import SplitIndex
from pipeline.data.manifest import load_manifest
from pipeline.data.reader import ShardReader
from pipeline.plan.draws import Stream, keyed

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = Path(os.environ.get("EFFV2_TEST_DATA", ROOT.parent / "shared" / "data"))
FOLDERS = {ORIGINAL: "original", LOSSLESS: "lossless", SMALL: "short400"}
TRANSCODE = {ORIGINAL: "none", LOSSLESS: "lossless", SMALL: "resize:400"}
BLOCK_IMAGES = 24
PLAIN, OFFICIAL = AugmentSpec(kind="none"), AugmentSpec()
LAYERS = 2

Job = Callable[[int], object]
"""Does its work on the image of a number."""


class Sets(NamedTuple):
    """Folders, and the images of each set in the same order."""

    folders: dict[str, Path]
    images: dict[str, list[bytes]]


def main() -> None:
    """Run the parts that were asked for, or read a run, and print its tables."""
    parts = {"limit": limit, "decode": decode, "augment": augment, "loader": loader}
    options = _options(list(parts))
    if options.from_json:
        results = load(options.from_json)
    else:
        results = _run([parts[part] for part in options.parts], options)
    print_table(results, dict(options.gpu_rate))
    if options.json:
        options.json.write_text(results.to_json(sys.argv[1:]))
    if options.plot:
        options.plot.write_text(plot(results))


def _options(parts: list[str]) -> argparse.Namespace:
    cores = sorted(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, default=SAMPLE, help="folder of the sample (%(default)s)")
    add("--data-folder", type=Path, help="keep the three sets here (a temporary folder)")
    add("--parts", nargs="+", choices=parts, default=parts)
    add("--px", type=int, nargs="+", help="of decode (128 192 224 300 380)")
    add("--loader-px", type=int, nargs="+", help="of loader and augment (128 300)")
    add("--images", type=int, help="of a round (240; loader: twice as many)")
    add("--rounds", type=int, help="turns of each contestant (3)")
    add("--quick", action="store_true", help="under 90 s, and rougher")
    add("--core", type=int, choices=cores, default=cores[-1], help="to run on (%(default)s)")
    add("--dali-python", default=sys.executable, help="Python of an environment with DALI")
    add("--gpu-rate", type=_rate, nargs="+", default=[], metavar="PX=IMAGES_S", help="measured")
    add("--json", type=Path, help="write all blocks here")
    add("--from-json", type=Path, help="measure nothing, read what --json wrote")
    add("--plot", type=Path, help="draw the ratios here, as SVG")
    options = parser.parse_args()
    options.px = options.px or ([128, 300] if options.quick else [128, 192, 224, 300, 380])
    options.loader_px = options.loader_px or ([128] if options.quick else [128, 300])
    options.images = options.images or (72 if options.quick else 240)
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.sample = options.data / "imagenet-sample.tar"
    if not options.from_json and not options.sample.is_file():
        parser.error(f"{options.sample}: no such file; give its folder with --data")
    return options


def _rate(text: str) -> tuple[int, float]:
    px, _, rate = text.partition("=")
    return int(px), float(rate)


def _run(
    parts: Sequence[Callable[[Sets, argparse.Namespace, Results], None]],
    options: argparse.Namespace,
) -> Results:
    os.sched_setaffinity(0, {options.core})
    torch.set_num_threads(1)
    results = Results()
    packages = ("torch", "torchvision", "pillow", "simplejpeg", "numpy")
    results.versions = {package: version(package) for package in packages}
    results.machine = f"{_processor()}, core {options.core}, load {os.getloadavg()[0]:.1f}"
    decoding.warn_if_slow()
    with tempfile.TemporaryDirectory() as temporary:
        sets = _sets(options, Path(options.data_folder or temporary))
        for part in parts:
            start_s = time.perf_counter()
            part(sets, options, results)
            _say(f"{part.__name__}: {time.perf_counter() - start_s:.0f} s")
    return results


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "?")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _sets(options: argparse.Namespace, folder: Path) -> Sets:
    """Build the sets that are not there yet and read their images, sorted by key."""
    folders = {name: folder / FOLDERS[name] for name in DATA}
    for name, out in folders.items():
        if not (out / "manifest.json").is_file():
            words = ["build", str(options.sample), str(out), "--transcode", TRANSCODE[name]]
            subprocess.run(
                [sys.executable, "-m", "data_prep", *words],
                check=True,
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
            )
    images = {name: _images(out) for name, out in folders.items()}
    assert len(set(map(len, images.values()))) == 1, "the sets hold other images; build them anew"
    return Sets(folders, images)


def _images(folder: Path) -> list[bytes]:
    index = SplitIndex(folder, load_manifest(folder), "train")
    reader = ShardReader(index)
    found = {index.key(n).partition("-")[2]: reader.read(n) for n in range(len(index))}
    reader.close()
    return [found[name] for name in sorted(found)]


def limit(sets: Sets, options: argparse.Namespace, results: Results) -> None:
    """Decode whole images; read samples without decoding them."""
    jobs: dict[Cell, Job] = {}
    for name, images in sets.images.items():
        index = SplitIndex(sets.folders[name], load_manifest(sets.folders[name]), "train")
        read = ShardReader(index).read
        jobs[Cell("limit", 0, FULL_DECODE, name)] = lambda n, images=images: decode_jpeg(images[n])
        jobs[Cell("limit", 0, READ, name)] = read
    take_turns(jobs, len(sets.images[ORIGINAL]), options, results)


def decode(sets: Sets, options: argparse.Namespace, results: Results) -> None:
    """Decode, crop, resize and flip; every sample with a generator of its own, as in training."""
    for px in options.px:
        take_turns(_decode_jobs(sets, px), len(sets.images[ORIGINAL]), options, results)
        compare_pixels(sets, px, options.images, results)


def _decode_jobs(sets: Sets, px: int) -> dict[Cell, Job]:
    out = np.empty((px, px, 3), np.uint8)
    steps = [crop_of(px), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
    transform = transforms.Compose(steps)

    def theirs(images: list[bytes], number: int) -> None:
        transform(Image.open(io.BytesIO(images[number])).convert("RGB"))

    def ours(images: list[bytes], spec: AugmentSpec, number: int) -> None:
        decode_train(images[number], px, spec, MAGNITUDE, _rng(number), out)

    jobs: dict[Cell, Job] = {}
    for name, images in sets.images.items():
        jobs[Cell("decode", px, PILLOW, name)] = partial(theirs, images)
        jobs[Cell("decode", px, OURS, name)] = partial(ours, images, PLAIN)
        jobs[Cell("decode", px, OURS_RANDAUGMENT, name)] = partial(ours, images, OFFICIAL)
    return jobs


def _rng(number: int) -> np.random.Generator:
    return keyed(Stream.AUGMENT, 0, 0, number)


def compare_pixels(sets: Sets, px: int, count: int, results: Results) -> None:
    """Compare with torchvision's crop and resize of the same box: in the same file, and for the
    resized set also in the original file."""
    for name, images in sets.images.items():
        same, other = [], []
        for number in range(0, len(images), max(1, len(images) // count)):
            own = decode_train(images[number], px, PLAIN, 0.0, _rng(number)).astype(np.int16)
            image = open_rgb(images[number])
            box, flip, _ = draw(*image.size, px, PLAIN, 0.0, _rng(number))
            same.append(np.abs(own - _reference(image, box, flip, px)).mean())
            original = open_rgb(sets.images[ORIGINAL][number])
            scale = original.width / image.width
            box = tuple(round(side * scale) for side in box)
            other.append(np.abs(own - _reference(original, box, flip, px)).mean())
        found = {"mean": np.mean(same), "largest": np.max(same), "to_original": np.mean(other)}
        results.pixels[px, name] = {key: float(value) for key, value in found.items()}


def _reference(image: Image.Image, box: tuple[int, ...], flip: bool, px: int) -> np.ndarray:
    left, top, right, bottom = box
    place = top, left, bottom - top, right - left
    shown = functional.resized_crop(image, *place, size=[px, px], antialias=True)  # pyright: ignore
    return np.asarray(functional.hflip(shown) if flip else shown)


def augment(sets: Sets, options: argparse.Namespace, results: Results) -> None:
    """Draw and apply two layers of RandAugment on crops of real images."""
    images = sets.images[ORIGINAL][: options.images]
    for px in options.loader_px:
        arrays = [decode_train(image, px, PLAIN, 0.0, _rng(n)) for n, image in enumerate(images)]
        take_turns(_augment_jobs(arrays, px), len(arrays), options, results)


def _augment_jobs(arrays: list[np.ndarray], px: int) -> dict[Cell, Job]:
    pictures = [Image.fromarray(array) for array in arrays]
    transform = v2.RandAugment(num_ops=LAYERS, magnitude=round(MAGNITUDE))
    rng = _rng(0)

    def torchvisions(number: int) -> None:
        drawn = policies.randaugment_torchvision(px, MAGNITUDE, LAYERS, rng, False)
        ops.apply_ops(arrays[number].copy(), drawn)

    def official(number: int) -> None:
        ops.apply_ops(arrays[number].copy(), policies.randaugment(px, MAGNITUDE, LAYERS, rng))

    jobs: dict[str, Job] = {
        TORCHVISION: lambda number: transform(pictures[number]),
        OURS: torchvisions,
        OURS_OFFICIAL: official,
    }
    return {Cell("augment", px, who, ORIGINAL): job for who, job in jobs.items()}


def take_turns(
    jobs: dict[Cell, Job], num_images: int, options: argparse.Namespace, results: Results
) -> None:
    """Let all jobs work on the same blocks of images, each time another one first."""
    cells = list(jobs)
    for job in jobs.values():
        job(0)
    for round_ in range(options.rounds):
        numbers = np.random.default_rng(round_).permutation(num_images)[: options.images].tolist()
        for start in range(0, len(numbers), BLOCK_IMAGES):
            cells = [*cells[1:], cells[0]]
            for cell in cells:
                block = _timed(jobs[cell], numbers[start : start + BLOCK_IMAGES])
                results.add(cell, block)


def _timed(job: Job, numbers: Sequence[int]) -> Block:
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    for number in numbers:
        job(number)
    cpu_s = time.process_time() - cpu_s
    return Block(len(numbers), cpu_s, time.perf_counter() - wall_s)


def loader(sets: Sets, options: argparse.Namespace, results: Results) -> None:
    """Load batches from the tars with each contestant; one that fails is left out from then on."""
    with ExitStack() as stack:
        peers: dict[str, Peer] = {}
        for who in CONTESTANTS:
            with _left_out(who, results):
                peer = Peer(options.dali_python if who == DALI else sys.executable, who)
                stack.callback(peer.close)
                results.versions |= peer.versions
                peers[who] = peer
        rounds = itertools.product(options.loader_px, range(options.rounds), peers.items())
        for px, _, (who, peer) in rounds:
            for name, folder in sets.folders.items():
                if who in results.missing:
                    break
                with _left_out(who, results):
                    block = Block(*peer.turn(folder.resolve(), px, 2 * options.images))
                    results.add(Cell("loader", px, who, name), block)


@contextmanager
def _left_out(who: str, results: Results) -> Iterator[None]:
    try:
        yield
    except (PeerEnded, OSError) as error:
        results.missing[who] = str(error)
        _say(f"{who}: {error}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
