"""How fast images become shards, beside what people use now, on the same files in the same run.

    python benchmarks/prep.py                     # all three parts: about 10 minutes on 2 cores
    python benchmarks/prep.py --parts resize      # one of copy, resize, small
    python benchmarks/prep.py --data DIR          # a folder with imagenet-sample.tar

copy    a build, one process, against webdataset's ShardWriter fed by the same folder or tar; the
        build also shuffles, checks, digests and indexes what it writes, and syncs it to the disk
resize  to a short side of 256 px, quality 90: one image in one process, against Pillow
small   100,000 files of CIFAR's size in one build

The contestants take turns; ratios are of medians. "cpu" is processor time, which a busy machine
does not change much.
"""

import argparse
import io
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from simplejpeg import decode_jpeg

from data_prep.clean import CleanRules, check
from data_prep.transcode import TranscodeSpec, transcode

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("EFFV2_TEST_DATA", ROOT.parent / "shared" / "data"))
NUM_SMALL = 100_000
SHORT_PX, QUALITY = 256, 90
OUT = "OUT"
"""Stands in a command for the folder to make."""


class Contest(NamedTuple):
    """A command, and which other one it is compared with."""

    name: str
    command: list[str]
    peer: str = ""


def main() -> None:
    """Run the parts that were asked for."""
    parts = {"copy": copy, "resize": resize, "small": small}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, default=DATA, help="folder of the sample (%(default)s)"
    )
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--repeat", type=int, default=5, help="copies of each image to copy (5)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contestant (3)")
    parser.add_argument("--folder", type=Path, help="where to work (a temporary folder)")
    options = parser.parse_args()
    sample = options.data / "imagenet-sample.tar"
    if not sample.is_file() and {"copy", "resize"} & set(options.parts):
        parser.error(f"{sample}: no such file; give its folder with --data, or --parts small")
    for part in options.parts:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            parts[part](options, Path(folder))
        print(flush=True)


def copy(options: argparse.Namespace, folder: Path) -> None:
    """Copy images of full size from a tar and from a folder."""
    images = list(members(options.data / "imagenet-sample.tar"))
    tree, tar = folder / "tree", folder / "images.tar"
    count = total = 0
    with tarfile.open(tar, "w") as archive:
        for turn, (number, (name, data)) in itertools.product(
            range(options.repeat), enumerate(images)
        ):
            path = tree / f"c{number % 10}" / f"{turn}_{Path(name).name}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            archive.add(path, path.relative_to(tree).as_posix())
            count, total = count + 1, total + len(data)
    contests = [
        Contest("build, tar, headers", build(tar, "--check", "header"), "ShardWriter, tar"),
        Contest("ShardWriter, tar", peer(tar)),
        Contest("build, folder, headers", build(tree, "--check", "header"), "ShardWriter, folder"),
        Contest("ShardWriter, folder", peer(tree)),
        Contest("build, tar, all decoded", build(tar), "ShardWriter, tar, Pillow decodes"),
        Contest("ShardWriter, tar, Pillow decodes", peer(tar, "--decode")),
    ]
    print(f"copy: {count:,} images, {total / 1e6:,.0f} MB, medians of {options.rounds}")
    compare(contests, count, options.rounds, folder)


def small(options: argparse.Namespace, folder: Path) -> None:
    """Copy 100,000 files of 32x32 px."""
    tar = folder / "small.tar"
    with tarfile.open(tar, "w") as archive:
        for number, data in enumerate(itertools.islice(small_images(options.data), NUM_SMALL)):
            info = tarfile.TarInfo(f"c{number % 10}/{number:06d}.jpg")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    cores = str(len(os.sched_getaffinity(0)))
    contests = [
        Contest("build, all decoded", build(tar), "ShardWriter, tar, Pillow decodes"),
        Contest("ShardWriter, tar, Pillow decodes", peer(tar, "--decode")),
        Contest("build, headers", build(tar, "--check", "header"), "ShardWriter, tar"),
        Contest("ShardWriter, tar", peer(tar)),
        Contest(f"build, all decoded, {cores} workers", build(tar, "--workers", cores)),
    ]
    print(f"small: {NUM_SMALL:,} images, one turn")
    compare(contests, NUM_SMALL, 1, folder)


def resize(options: argparse.Namespace, folder: Path) -> None:
    """Resize each image with every contestant in turn, in this process."""
    spec = TranscodeSpec.parse(
        {"kind": "resize", "short_px": SHORT_PX, "quality": QUALITY}, "benchmark"
    )
    lossless = TranscodeSpec.parse({"kind": "lossless"}, "benchmark")
    headers = CleanRules.parse({"decode": "header"}, "benchmark")
    contests: dict[str, Callable[[bytes], object]] = {
        "build's resize": lambda data: transcode(check(data, headers), spec),
        "Pillow BOX": lambda data: pillow_resize(data, Image.Resampling.BOX),
        "Pillow BILINEAR": lambda data: pillow_resize(data, Image.Resampling.BILINEAR),
        "Pillow BICUBIC": lambda data: pillow_resize(data, Image.Resampling.BICUBIC),
        "Pillow LANCZOS": lambda data: pillow_resize(data, Image.Resampling.LANCZOS),
        "libjpeg decodes": lambda data: decode_jpeg(data),
        "build's lossless": lambda data: transcode(check(data, headers), lossless),
    }
    images = [data for _, data in members(options.data / "imagenet-sample.tar")]
    took_ns = {name: [0] * len(images) for name in contests}
    for number, data in enumerate(images):
        for name, run in contests.items():
            start_ns = time.process_time_ns()
            run(data)
            took_ns[name][number] = time.process_time_ns() - start_ns
    own = sum(took_ns["build's resize"])
    print(f"resize: {len(images)} images, short side {SHORT_PX} px, quality {QUALITY}, one core")
    for name, times in took_ns.items():
        mean_ms = sum(times) / len(times) / 1e6
        print(f"{name:20} {mean_ms:7.2f} ms an image   {sum(times) / own:5.2f} x the build's")


def pillow_resize(data: bytes, how: Image.Resampling) -> bytes:
    """Resize as most scripts do: decode, convert, resize, save; nothing is enlarged."""
    image = Image.open(io.BytesIO(data))
    scale = min(1.0, SHORT_PX / min(image.size))
    width, height = (round(side * scale) for side in image.size)
    buffer = io.BytesIO()
    image.convert("RGB").resize((width, height), how).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def compare(contests: Sequence[Contest], count: int, rounds: int, folder: Path) -> None:
    """Let the contestants take turns and print a line for each."""
    walls: dict[str, list[float]] = {contest.name: [] for contest in contests}
    cpus: dict[str, list[float]] = {contest.name: [] for contest in contests}
    for _ in range(rounds):
        for contest in contests:
            wall_s, cpu_s = timed(contest.command, folder / "out")
            walls[contest.name].append(wall_s)
            cpus[contest.name].append(cpu_s)
    for contest in contests:
        wall_s, cpu_s = (statistics.median(times[contest.name]) for times in (walls, cpus))
        line = f"{contest.name:34} {wall_s:6.1f} s, cpu {cpu_s:6.1f} s, "
        line += f"{count / cpu_s:7,.0f}/s a core"
        if contest.peer:
            wall, cpu = (statistics.median(times[contest.peer]) for times in (walls, cpus))
            line += f"   peer/build: {wall / wall_s:.2f} by the clock, {cpu / cpu_s:.2f} cpu"
        print(line)


def timed(command: list[str], out: Path) -> tuple[float, float]:
    """Run a command that makes `out`, remove it; returns seconds by the clock and of processors."""
    os.sync()
    start_s = time.perf_counter()
    words = [str(out) if word == OUT else word for word in command]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - start_s
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command}: exit code {process.returncode}\n{said[-2000:]}")
    shutil.rmtree(out)
    return wall_s, usage.ru_utime + usage.ru_stime


def build(source: Path, *options: str) -> list[str]:
    """Return the command of a build; one process where the options do not say otherwise."""
    words = [sys.executable, "-m", "data_prep", "build", str(source), OUT]
    return [*words, "--workers", "1", *options]


def peer(source: Path, *options: str) -> list[str]:
    """Return the command that writes the same images with webdataset."""
    script = Path(__file__).with_name("prep_peers.py")
    return [sys.executable, str(script), str(source), OUT, *options]


def members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of the files in a tar."""
    with tarfile.open(path, "r|*") as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None:
                yield member.name, file.read()


def small_images(data: Path) -> Iterator[bytes]:
    """Yield CIFAR-10's images again and again, or noise where they are missing."""
    cifar = data / "cifar10-jpeg.tar.gz"
    if cifar.is_file():
        images = [image for _, image in members(cifar)]
        return itertools.cycle(images)
    return map(noise, itertools.count())


def noise(seed: int) -> bytes:
    """Return a JPEG of 32x32 px, another for each seed."""
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
