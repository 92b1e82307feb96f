"""How much memory the stages of a build take for millions of images.

    python benchmarks/prep_memory.py                  # 4 million: 5 minutes, 6 GB of disk
    python benchmarks/prep_memory.py --millions 14    # as many as ImageNet-21k has: 20 min, 20 GB
    python benchmarks/prep_memory.py --image-kb 110   # as large as ImageNet's: 2 min, 5 GB

The source is a tar of class tars with a JPEG of 8x8 px for each image, every one another; the
commands are those of a real build, stage by stage. Printed is the peak of the anonymous memory
(RssAnon, what no other process can share) of all processes of a stage, for all images and for
half of them: the difference is what an image costs. Writing takes one of 40 elements. Half of the
source should be over 1 GB, as a smaller tar is listed by one task in its own memory.

With --image-kb the JPEGs are filled up with comments, and what is compared is shards of 256 MB
with shards of 1 GB, 2 GB of images in all: what a byte costs, in checking and in writing.
"""

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
IMAGES_PER_CLASS = 1300
BLOCK = 512
LOOK_S = 0.02
STAGES = {
    "list": (),
    "check": (),
    "arrange": (),
    "write": ("--element", "0/40"),
}


LARGE_STAGES = {"list": (), "check": (), "arrange": (), "write": ()}
LARGE_BYTES = 2 << 30
LARGE_SHARDS_MB = 256, 1024


def main() -> None:
    """Measure two builds, and print a line for each stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--millions", type=float, default=4.0, help="images (4)")
    parser.add_argument("--workers", type=int, default=1, help="processes of each stage (1)")
    parser.add_argument("--folder", type=Path, help="where to work (a temporary folder)")
    parser.add_argument("--image-kb", type=int, help="images of this size, 2 GB of them")
    options = parser.parse_args()
    if options.image_kb:
        compare_shards(options.folder, options.image_kb << 10, options.workers)
    else:
        compare_counts(options.folder, options.millions, options.workers)


def compare_counts(parent: Path | None, millions: float, workers: int) -> None:
    """Build half and then all of some millions of the smallest images."""
    counts = [round(millions * 1e6 * part) for part in (0.5, 1.0)]
    peaks = []
    for count in counts:
        with tempfile.TemporaryDirectory(dir=parent) as folder:
            source = Path(folder) / "train.tar"
            write_source(source, count, smallest_jpeg(BLOCK))
            print(f"{count:,} images")
            more = ["--check", "header", "--shard-samples", "2500"]
            peaks.append(measure(source, Path(folder) / "out", workers, more, STAGES))
    print(f"peak RssAnon, {workers} workers: {counts[0]:,} and {counts[1]:,} images")
    for stage in STAGES:
        few, many = (peak[stage] for peak in peaks)
        slope = (many - few) / (counts[1] - counts[0])
        print(f"{stage:8} {few / 1e6:8.1f} MB {many / 1e6:8.1f} MB   {slope:6.1f} bytes an image")


def compare_shards(parent: Path | None, image_bytes: int, workers: int) -> None:
    """Build the same large images into small and into large shards."""
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        source, count = Path(folder) / "train.tar", LARGE_BYTES // image_bytes
        write_source(source, count, smallest_jpeg(image_bytes))
        peaks = []
        for shard_mb in LARGE_SHARDS_MB:
            print(f"{count:,} images of {image_bytes / 1e3:.0f} kB, shards of {shard_mb} MB")
            out = Path(folder) / "out"
            more = ["--shard-mb", str(shard_mb)]
            peaks.append(measure(source, out, workers, more, LARGE_STAGES))
            shutil.rmtree(out)
    shown = " and ".join(f"{shard_mb} MB" for shard_mb in LARGE_SHARDS_MB)
    print(f"peak RssAnon, {workers} workers: shards of {shown}")
    for stage in LARGE_STAGES:
        small, large = (peak[stage] for peak in peaks)
        print(f"{stage:8} {small / 1e6:8.1f} MB {large / 1e6:8.1f} MB")


def measure(
    source: Path, out: Path, workers: int, more: list[str], stages: dict[str, tuple[str, ...]]
) -> dict[str, int]:
    """Build a source with options `more`; returns the peak of each stage in bytes."""
    base = [sys.executable, "-m", "data_prep", "build", str(source), str(out)]
    base += ["--workers", str(workers), *more]
    peaks = {}
    for stage, element in stages.items():
        start_s = time.monotonic()
        peaks[stage] = run_watched([*base, "--stage", stage, *element])
        took_s = time.monotonic() - start_s
        print(f"  {stage}: {took_s:.0f} s, {peaks[stage] / 1e6:.1f} MB")
    return peaks


def run_watched(command: list[str]) -> int:
    """Run a command to its end; returns the highest sum of its processes' RssAnon in bytes."""
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(anonymous_bytes(pid) for pid in family(process.pid)))
        time.sleep(LOOK_S)
    said = process.communicate()[1].decode(errors="replace")
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}\n{said[-2000:]}")
    return peak


def family(pid: int) -> Iterator[int]:
    """Yield a process and all that it started, as far as they still run."""
    yield pid
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        children = [
            child for thread in threads for child in (thread / "children").open().read().split()
        ]
    except OSError:
        return
    for child in children:
        yield from family(int(child))


def anonymous_bytes(pid: int) -> int:
    """Return the RssAnon of a process; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))


def write_source(path: Path, count: int, jpeg: bytes) -> None:
    """Write a tar of class tars, IMAGES_PER_CLASS in each, `count` images like `jpeg` in all."""
    with path.open("wb") as file:
        for cls, start in enumerate(range(0, count, IMAGES_PER_CLASS)):
            size = min(IMAGES_PER_CLASS, count - start)
            members = class_tar(cls, np.arange(start, start + size), jpeg)
            file.write(header(f"n{cls:08d}.tar", len(members)))
            file.write(members)
        file.write(bytes(2 * BLOCK))


def class_tar(cls: int, numbers: np.ndarray, jpeg: bytes) -> bytes:
    """Return a tar of `n00000000_00000000.JPEG` ..., each with its number in its comment."""
    name = f"n{cls:08d}_{0:08d}.JPEG"
    padded = -(-len(jpeg) // BLOCK) * BLOCK
    blocks = np.zeros((len(numbers), BLOCK + padded), np.uint8)
    blocks[:, :BLOCK] = np.frombuffer(header(name, len(jpeg)), np.uint8)
    blocks[:, BLOCK : BLOCK + len(jpeg)] = np.frombuffer(jpeg, np.uint8)
    digits = 48 + numbers[:, None] // 10 ** np.arange(7, -1, -1) % 10
    blocks[:, 10:18] = digits
    blocks[:, BLOCK + 6 : BLOCK + 14] = digits
    blocks[:, 148:156] = 32  # the checksum counts its own place as spaces
    sums = blocks[:, :BLOCK].sum(axis=1, dtype=np.int64)
    blocks[:, 148:154] = 48 + (sums[:, None] >> np.arange(15, -1, -3)) % 8
    blocks[:, 154] = 0
    return blocks.tobytes() + bytes(2 * BLOCK)


def header(name: str, size: int) -> bytes:
    """Return the ustar header of a plain file."""
    fields = bytearray(BLOCK)
    fields[: len(name)] = name.encode()
    fields[100:108] = b"0000644\0"
    fields[108:124] = b"0000000\0" * 2
    fields[124:136] = b"%011o\0" % size
    fields[136:148] = b"%011o\0" % 0
    fields[148:157] = b" " * 8 + b"0"
    fields[257:265] = b"ustar\x0000"
    fields[148:156] = b"%06o\0 " % sum(fields)
    return bytes(fields)


def smallest_jpeg(num_bytes: int) -> bytes:
    """Return a grey JPEG of 8x8 px, filled up to about `num_bytes` at most with comments.

    The first comment is of 8 bytes, from byte 6 on.
    """
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 127).save(buffer, "JPEG", optimize=True)
    jpeg = buffer.getvalue()
    comments = b"\xff\xfe\x00\x0a" + bytes(8)
    left = num_bytes - len(jpeg) - len(comments)
    assert left >= 0, f"{num_bytes} bytes are too few for a JPEG"
    while left > 4:
        size = min(left, 65_537)  # a marker, two bytes of length, and what these count
        comments += b"\xff\xfe" + (size - 2).to_bytes(2, "big") + b"x" * (size - 4)
        left -= size
    return jpeg[:2] + comments + jpeg[2:]


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
