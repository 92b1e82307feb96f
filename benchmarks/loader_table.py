"""What a run of `loader.py` measured, kept block by block, and the tables made of it.

Rates are images per second of processor time; a ratio is the median of the ratios of the blocks
that two contestants made of the same images or in the same round.
"""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ORIGINAL, LOSSLESS, SMALL = "as they are", "lossless", "short side 400"
DATA = (ORIGINAL, LOSSLESS, SMALL)
PILLOW, OURS, OURS_RANDAUGMENT = "Pillow + torchvision", "ours", "ours + RandAugment"
WEBDATASET, TIMM, DALI = "webdataset + torchvision", "timm + RandAugment", "DALI"
TORCHVISION, OURS_OFFICIAL = "torchvision v2", "ours, official"
FULL_DECODE, READ = "libjpeg-turbo, whole image", "index + pread + crc32c"
GPU_RATE_AT_300_PX = 1100.0
"""Images/s that one GPU trains on at 300 px: an assumption, as no published figure is at hand."""


class Cell(NamedTuple):
    """What was measured: part of the benchmark, image size, contestant, data set."""

    part: str
    px: int
    who: str
    data: str


class Block(NamedTuple):
    """One turn of a contestant; processor time is that of all its processes."""

    images: int
    cpu_s: float
    wall_s: float


class Row(NamedTuple):
    """A comparison, with the ratios asked for and aimed at, one for each data set."""

    title: str
    part: str
    peer: str
    own: str
    asked: tuple[float, ...]
    aim: tuple[float, ...] = ()


ROWS = (
    Row(
        "Pillow + torchvision to uint8, crop and flip",
        *("decode", PILLOW, OURS),
        asked=(2.0, 2.6, 3.5),
        aim=(2.4, 3.2, 4.0),
    ),
    Row(
        "webdataset + torchvision, tar to uint8 batch, 1 worker",
        *("loader", WEBDATASET, OURS),
        asked=(2.3, 2.8, 3.5),
        aim=(2.6, 3.5, 4.5),
    ),
    Row(
        "timm's wds reader and loader with its RandAugment, 1 worker",
        *("loader", TIMM, OURS_RANDAUGMENT),
        asked=(3.0, 4.0, 5.0),
        aim=(4.0, 5.0, 6.0),
    ),
    Row(
        "DALI's CPU pipeline, fused crop decode, 1 thread",
        *("loader", DALI, OURS),
        asked=(1.6, 2.2, 3.0),
    ),
    Row(
        "RandAugment alone, torchvision's operations, v2 on Pillow",
        *("augment", TORCHVISION, OURS),
        asked=(3.0,),
        aim=(4.0,),
    ),
)


class Results:
    """The blocks of a run, the pixel differences, and what cannot be told in figures."""

    def __init__(self) -> None:
        self.blocks: dict[Cell, list[Block]] = {}
        self.pixels: dict[tuple[int, str], dict[str, float]] = {}
        self.versions: dict[str, str] = {}
        self.missing: dict[str, str] = {}
        self.machine = ""

    def add(self, cell: Cell, block: Block) -> None:
        """Keep one block."""
        self.blocks.setdefault(cell, []).append(block)

    def rate(self, cell: Cell) -> float | None:
        """Return the median images/s of a core, None where it was not measured."""
        blocks = self.blocks.get(cell)
        return statistics.median(b.images / b.cpu_s for b in blocks) if blocks else None

    def ratio(self, own: Cell, peer: Cell) -> float | None:
        """Return how many times faster `own` is, None where one was not measured."""
        pairs = list(zip(self.blocks.get(own, []), self.blocks.get(peer, []), strict=False))
        times = [theirs.cpu_s / theirs.images * mine.images / mine.cpu_s for mine, theirs in pairs]
        return statistics.median(times) if times else None

    def sizes(self, part: str) -> list[int]:
        """Return the image sizes of a part, rising."""
        return sorted({cell.px for cell in self.blocks if cell.part == part})

    def to_json(self, arguments: Sequence[str]) -> str:
        """Return everything, and the command line's arguments."""
        values = {
            "arguments": list(arguments),
            "machine": self.machine,
            "versions": self.versions,
            "missing": self.missing,
            "pixels": [{"px": px, "data": data, **v} for (px, data), v in self.pixels.items()],
            "blocks": [
                {**cell._asdict(), "images_cpu_s_wall_s": blocks}
                for cell, blocks in self.blocks.items()
            ],
        }
        return json.dumps(values) + "\n"


def load(path: Path) -> Results:
    """Read what `Results.to_json` returned."""
    values, results = json.loads(path.read_text()), Results()
    results.versions, results.missing = values["versions"], values["missing"]
    results.machine = values["machine"]
    for entry in values["pixels"]:
        results.pixels[entry.pop("px"), entry.pop("data")] = entry
    for entry in values["blocks"]:
        blocks = [Block(*block) for block in entry.pop("images_cpu_s_wall_s")]
        results.blocks[Cell(**entry)] = blocks
    return results


def ratios(results: Results, row: Row, px: int) -> list[float | None]:
    """Return the ratios of a row: ours on each data set to the peer on shards as they are."""
    peer = Cell(row.part, px, row.peer, ORIGINAL)
    return [
        results.ratio(Cell(row.part, px, row.own, data), peer) for data in DATA[: len(row.asked)]
    ]


def print_table(results: Results, gpu_rates: dict[int, float]) -> None:
    """Print all tables of a run."""
    print("on one core of " + results.machine)
    print("versions: " + ", ".join(f"{name} {v}" for name, v in results.versions.items()))
    for row in ROWS:
        _print_row(results, row)
    _print_official(results)
    _print_pixels(results)
    _print_limits(results)
    _print_cores(results, gpu_rates)


def judge(ratio: float, asked: float, aim: float | None) -> str:
    """Return in a word what a ratio reaches."""
    if ratio < asked:
        return "SHORT"
    return "aim" if aim is not None and ratio >= aim else "asked"


def _print_row(results: Results, row: Row) -> None:
    if not results.sizes(row.part):
        return
    wanted = " ".join(f"{value:.1f}x" for value in row.asked)
    aimed = " ".join(f"{value:.1f}x" for value in row.aim) or "none"
    print(f"\nagainst {row.title}; asked {wanted}, aim {aimed}")
    for who in {row.peer, row.own} & set(results.missing):
        print(f"  {who} is not measured, or not to the end: {results.missing[who]}")
    data = DATA[: len(row.asked)]
    print("    px   peer/s" + "".join(f"{name:>26}" for name in data) + "   same shards")
    for px in results.sizes(row.part):
        peers = [Cell(row.part, px, row.peer, name) for name in data]
        owns = [Cell(row.part, px, row.own, name) for name in data]
        found = ratios(results, row, px)
        aims = row.aim or (None,) * len(data)
        if all(ratio is None for ratio in found):
            continue
        cells = [
            _reached(ratio, asked, aim, results.rate(own))
            for ratio, own, asked, aim in zip(found, owns, row.asked, aims, strict=True)
        ]
        same = [results.ratio(own, peer) for own, peer in zip(owns, peers, strict=True)]
        line = f"{px:6d} {_whole(results.rate(peers[0]))}" + "".join(f"{c:>26}" for c in cells)
        print(line + "   " + " ".join(_times(ratio) for ratio in same))


def _reached(ratio: float | None, asked: float, aim: float | None, rate: float | None) -> str:
    if ratio is None:
        return "-"
    return f"{_whole(rate)}/s {ratio:5.2f}x {judge(ratio, asked, aim):5s}"


def _print_official(results: Results) -> None:
    for px in results.sizes("augment"):
        own = Cell("augment", px, OURS_OFFICIAL, ORIGINAL)
        ratio = results.ratio(own, Cell("augment", px, TORCHVISION, ORIGINAL))
        if ratio is not None:
            print(
                f"{px:6d} the official operations instead: {_whole(results.rate(own))}/s"
                f" {ratio:5.2f}x"
            )


def _print_pixels(results: Results) -> None:
    if not results.pixels:
        return
    print(
        "\nmean absolute difference to torchvision's pixels, same box, of 255: mean over images"
        " (largest of an image)"
    )
    print("    px" + "".join(f"{name:>20}" for name in DATA) + "   short side 400, to the original")
    for px in sorted({px for px, _ in results.pixels}):
        found = [results.pixels.get((px, name)) for name in DATA]
        cells = [f"{f['mean']:.4f} ({f['largest']:.3f})" if f else "-" for f in found]
        other = found[-1]["to_original"] if found[-1] else float("nan")
        print(f"{px:6d}" + "".join(f"{cell:>20}" for cell in cells) + f"   {other:.2f}")


def _print_limits(results: Results) -> None:
    for who in (FULL_DECODE, READ):
        rates = [results.rate(Cell("limit", 0, who, name)) for name in DATA]
        if any(rates):
            print(f"\nlimit: {who}, images/s: " + _named(rates))


def _print_cores(results: Results, gpu_rates: dict[int, float]) -> None:
    """Print how many cores feed a GPU; sizes that the loader did not run are estimated."""
    kept = kept_by_loader(results)
    sizes = sorted({*results.sizes("decode"), *results.sizes("loader")})
    if not sizes or kept is None:
        return
    print(
        f"\ncores for one GPU, tar to batch with RandAugment (* from decode and augment alone,"
        f" of which the loader keeps {kept:.2f})"
    )
    heads = "".join(f"{name:>20}" for name in (*DATA, "(timm)"))
    print("    px      GPU images/s" + heads)
    for px in sizes:
        given = gpu_rates.get(px)
        rate = given or GPU_RATE_AT_300_PX * (300 / px) ** 2
        cells = [_cores(results, px, name, rate, kept) for name in DATA]
        peer = results.rate(Cell("loader", px, TIMM, ORIGINAL))
        cells.append(f"{rate / peer:.1f}" if peer else "-")
        source = "given" if given else "assumed"
        print(f"{px:6d} {rate:9,.0f} {source:8s}" + "".join(f"{cell:>20}" for cell in cells))


def kept_by_loader(results: Results) -> float | None:
    """Return which part of decode and augment's rate the loader keeps, median of all measured."""
    shares = []
    for cell, blocks in results.blocks.items():
        alone = results.rate(cell._replace(part="decode"))
        if cell.part == "loader" and cell.who == OURS_RANDAUGMENT and blocks and alone:
            shares.append((results.rate(cell) or 0.0) / alone)
    return statistics.median(shares) if shares else None


def _cores(results: Results, px: int, data: str, rate: float, kept: float) -> str:
    measured = results.rate(Cell("loader", px, OURS_RANDAUGMENT, data))
    if measured:
        return f"{rate / measured:.1f}"
    alone = results.rate(Cell("decode", px, OURS_RANDAUGMENT, data))
    return f"{rate / alone / kept:.1f}*" if alone else "-"


def _named(rates: Sequence[float | None]) -> str:
    return ", ".join(f"{name} {_whole(r).strip()}" for name, r in zip(DATA, rates, strict=True))


def _whole(value: float | None) -> str:
    return f"{value:8,.0f}" if value else "       -"


def _times(ratio: float | None) -> str:
    return f"{ratio:.2f}x" if ratio else "-"
