"""What a GPU can take over from the loader's cores: decoding, augmenting, and copies beside work.

    python benchmarks/gpu_loader.py                       # all parts, about two minutes
    python benchmarks/gpu_loader.py --parts augment --px 128 300

decode   a core: crop-only decoding; and what it does for the GPU instead (headers, draws, bytes);
         the GPU: nvJPEG, crop, resize, flip
augment  RandAugment, two layers at magnitude 15: a core image by image, the device by micro-batches
copy     a step's micro-batches copied on the stream that computes, or a step ahead on another

The contestants take turns; figures are medians, images/s (copy: ms a step). Without a GPU the
device's rows are torch on one CPU core, in processor time: they prove the code, they say nothing of
a GPU, and the table says so.
"""

import argparse
import os
import statistics
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from pipeline.data.augment import AugmentSpec, Draw, draw
from pipeline.data.batches import MicroBatch, pack_ops
from pipeline.data.decode import decode_crop
from pipeline.data.decode_device import decode_rows, encode, row_bytes
from pipeline.data.ops import apply_ops
from pipeline.data.ops_device import apply_ops_batch
from pipeline.data.transfer import copy as copy_batch
from pipeline.data.transfer import sent_ahead
from pipeline.plan.draws import Stream, keyed

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("EFFV2_TEST_DATA", ROOT.parent / "shared" / "data"))
SPEC = AugmentSpec()
MAGNITUDE = 15.0
COPY_STEPS, COPY_BATCHES = 30, 2

Job = Callable[[], object]


def main() -> None:
    """Run the parts that were asked for on the GPU, or without one on the CPU."""
    parts = {"decode": decode, "augment": augment, "copy": copy}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, default=DATA, help="folder of the sample (%(default)s)"
    )
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--px", type=int, nargs="+", default=[128, 224, 300, 380])
    parser.add_argument("--batch", type=int, default=128, help="images of a micro-batch (128)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contestant (5)")
    options = parser.parse_args()
    sample = options.data / "imagenet-sample.tar"
    if not sample.is_file() and "decode" in options.parts:
        parser.error(f"{sample}: no such file; give its folder with --data, or leave out decode")
    torch.set_num_threads(1)
    options.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.device.type == "cuda":
        print(f"device: {torch.cuda.get_device_name()}")
    else:
        print("NO GPU HERE: rows named 'device' are torch on one CPU core and say nothing of a GPU")
    for part in options.parts:
        parts[part](options)


def decode(options: argparse.Namespace) -> None:
    """Decode a micro-batch of the sample's images."""
    files = list(_files(options.data / "imagenet-sample.tar", options.batch))
    for px in options.px:
        pixels = np.empty((len(files), px, px, 3), np.uint8)
        rows = np.empty((len(files), row_bytes(px)), np.uint8)
        _each(files, px, encode, rows)
        jobs: dict[str, Job] = {
            "a core decodes": lambda px=px, out=pixels: _each(files, px, decode_crop, out),
            "a core prepares": lambda px=px, out=rows: _each(files, px, encode, out),
            "device decodes": lambda rows=rows: decode_rows(torch.from_numpy(rows), options.device),
        }
        _report(f"decode {px} px", jobs, len(files), options)


def augment(options: argparse.Namespace) -> None:
    """Apply the draws of a micro-batch to smooth random images."""
    for px in options.px:
        images = _pictures(options.batch, px)
        ops = [_drawn(number, px).ops for number in range(options.batch)]
        packed, there = pack_ops(ops), torch.from_numpy(images).to(options.device)
        jobs: dict[str, Job] = {
            "a core": lambda images=images, ops=ops: [
                apply_ops(image, own) for image, own in zip(images.copy(), ops, strict=True)
            ],
            "device": lambda there=there, packed=packed: apply_ops_batch(there, packed),
        }
        _report(f"augment {px} px", jobs, options.batch, options)


def copy(options: argparse.Namespace) -> None:
    """Multiply matrices for each step while, or after, its images are copied."""
    if options.device.type != "cuda":
        print("copy: not measured, there is no GPU")
        return
    matrix = torch.randn(8192, 8192, device=options.device, dtype=torch.bfloat16)
    for px in options.px:
        images = torch.from_numpy(_pictures(options.batch, px)).pin_memory()
        jobs: dict[str, Job] = {
            "work alone": lambda: _work(matrix, ([] for _ in range(COPY_STEPS))),
            "copied in line": lambda images=images: _work(
                matrix, ([copy_batch(b, options.device) for b in s] for s in _steps(images))
            ),
            "copied ahead": lambda images=images: _work(
                matrix, sent_ahead(_steps(images), options.device, copy_batch)
            ),
        }
        times = _times(jobs, options)
        for name, took_s in times.items():
            print(f"copy {px} px      {name:18s} {1000 * took_s / COPY_STEPS:9.2f} ms a step")


def _work(matrix: torch.Tensor, steps: Iterator[list[MicroBatch]]) -> None:
    total = torch.zeros((), device=matrix.device)
    for batches in steps:
        for batch in batches:
            total += batch.images[:, 0, 0].float().mean()
        for _ in range(4):
            total += (matrix @ matrix).float().mean()
        total.item()  # a step's end, as where a loss scale is read


def _steps(images: torch.Tensor) -> Iterator[list[MicroBatch]]:
    labels, ids = torch.zeros(len(images), 1, dtype=torch.int64), torch.arange(len(images))
    for step in range(COPY_STEPS):
        yield [MicroBatch(step, part, images, labels, ids) for part in range(COPY_BATCHES)]


def _each(
    files: list[bytes], px: int, function: Callable[..., Draw], out: np.ndarray
) -> list[Draw]:
    return [
        function(data, px, SPEC, MAGNITUDE, keyed(Stream.AUGMENT, 0, number), row)
        for number, (data, row) in enumerate(zip(files, out, strict=True))
    ]


def _drawn(number: int, px: int) -> Draw:
    return draw(500, 400, px, SPEC, MAGNITUDE, keyed(Stream.AUGMENT, 0, number))


def _pictures(count: int, px: int) -> np.ndarray:
    small = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 255
    large = torch.nn.functional.interpolate(small, size=(px, px), mode="bilinear")
    return large.permute(0, 2, 3, 1).contiguous().to(torch.uint8).numpy()


def _files(tar: Path, count: int) -> Iterator[bytes]:
    with tarfile.open(tar) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith((".jpg", ".JPEG")) else None
            if file is not None:
                yield file.read()
                count -= 1
            if count == 0:
                return


def _report(title: str, jobs: dict[str, Job], images: int, options: argparse.Namespace) -> None:
    times = _times(jobs, options)
    first = next(iter(times.values()))
    for name, took_s in times.items():
        print(f"{title:16s} {name:18s} {images / took_s:9.0f} images/s  {first / took_s:6.2f}x")


def _times(jobs: dict[str, Job], options: argparse.Namespace) -> dict[str, float]:
    """Return the median seconds of each job; they take turns, after one round that is not kept."""
    clock = time.perf_counter if options.device.type == "cuda" else time.process_time
    took: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(options.rounds + 1):
        for name, job in jobs.items():
            _settle(options.device)
            started = clock()
            job()
            _settle(options.device)
            took[name].append(clock() - started)
    return {name: statistics.median(times[1:]) for name, times in took.items()}


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
