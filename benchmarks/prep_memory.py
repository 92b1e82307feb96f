"""How much memory the stages of a build take for millions of images.

    python benchmarks/prep_memory.py                  # 4 million: 5 minutes, 6 GB of disk
    python benchmarks/prep_memory.py --millions 14    # as many as ImageNet-21k has: 20 min, 20 GB

The source is a tar of class tars with a JPEG of 8x8 px for each image, every one another; the
commands are those of a real build, stage by stage. Printed is the peak of the anonymous memory
(RssAnon, what no other process can share) of all processes of a stage, for all images and for
half of them: the difference is what an image costs. Writing takes one of 40 elements. Half of the
source should be over 1 GB, as a smaller tar is listed by one task in its own memory.
"""

import argparse
import io
import os
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


def main() -> None:
    """Build half and then all of the images, and print a line for each stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--millions", type=float, default=4.0, help="images (4)")
    parser.add_argument("--workers", type=int, default=1, help="processes of each stage (1)")
    parser.add_argument("--folder", type=Path, help="where to work (a temporary folder)")
    options = parser.parse_args()
    counts = [round(options.millions * 1e6 * part) for part in (0.5, 1.0)]
    peaks = []
    for count in counts:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            peaks.append(measure(Path(folder), count, options.workers))
    print(f"peak RssAnon, {options.workers} workers: {counts[0]:,} and {counts[1]:,} images")
    for stage in STAGES:
        few, many = (peak[stage] for peak in peaks)
        slope = (many - few) / (counts[1] - counts[0])
        print(f"{stage:8} {few / 1e6:8.1f} MB {many / 1e6:8.1f} MB   {slope:6.1f} bytes an image")


def measure(folder: Path, count: int, workers: int) -> dict[str, int]:
    """Build `count` images in `folder`; returns the peak of each stage in bytes."""
    source = folder / "train.tar"
    write_source(source, count)
    base = [sys.executable, "-m", "data_prep", "build", str(source), str(folder / "out")]
    base += ["--check", "header", "--shard-samples", "2500", "--workers", str(workers)]
    peaks = {}
    for stage, more in STAGES.items():
        start_s = time.monotonic()
        peaks[stage] = run_watched([*base, "--stage", stage, *more])
        took_s = time.monotonic() - start_s
        print(f"  {count:,} images, {stage}: {took_s:.0f} s, {peaks[stage] / 1e6:.1f} MB")
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


def write_source(path: Path, count: int) -> None:
    """Write a tar of class tars, IMAGES_PER_CLASS in each, `count` images in all."""
    jpeg = smallest_jpeg()
    with path.open("wb") as file:
        for cls, start in enumerate(range(0, count, IMAGES_PER_CLASS)):
            size = min(IMAGES_PER_CLASS, count - start)
            members = class_tar(cls, np.arange(start, start + size), jpeg)
            file.write(header(f"n{cls:08d}.tar", len(members)))
            file.write(members)
        file.write(bytes(2 * BLOCK))


def class_tar(cls: int, numbers: np.ndarray, jpeg: bytes) -> bytes:
    """Return a tar of `n00000000_00000000.JPEG` ..., each with its number in a comment."""
    marker = b"\xff\xfe\x00\x0a"  # a comment of 8 bytes, after the start of the image
    image = jpeg[:2] + marker + bytes(8) + jpeg[2:]
    assert len(image) <= BLOCK
    name = f"n{cls:08d}_{0:08d}.JPEG"
    blocks = np.zeros((len(numbers), 2 * BLOCK), np.uint8)
    blocks[:, :BLOCK] = np.frombuffer(header(name, len(image)), np.uint8)
    blocks[:, BLOCK : BLOCK + len(image)] = np.frombuffer(image, np.uint8)
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


def smallest_jpeg() -> bytes:
    """Return a grey JPEG of 8x8 px."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 127).save(buffer, "JPEG", optimize=True)
    return buffer.getvalue()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
