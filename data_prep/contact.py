"""`show --html`: one page with images and their labels, histograms, and what befell images.

The page is one file that loads nothing and runs no script; whatever comes from the data is escaped
or encoded anew, because names and images are those of strangers.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_prep import histograms
from data_prep.show import amount, facts, fates, spread
from data_prep.thumbnails import Thumbnail, draw
from pipeline.data.index import SplitIndex, read_index
from pipeline.data.manifest import Manifest, Notes, load_manifest
from pipeline.report.svg import text_of
from pipeline.run.files import write_atomically

NUM_FIRST, NUM_OTHERS = 60, 24
"""Images shown of the first split, and of each of the others."""
_MAX_LISTED = 50
_MAX_LABELS = 4
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLE = """
:root { color-scheme: light dark; --page: #f7f7f5; --card: #fff; --ink: #1d1d1b; --muted: #66665f;
  --grid: #e7e6e1; --edge: #deddd7; --bar: #2463c4; --mark: #b4560a; --bad: #bb3327; }
@media (prefers-color-scheme: dark) { :root { --page: #141413; --card: #1e1e1c; --ink: #ecebe6;
  --muted: #a5a49c; --grid: #33332f; --edge: #373732; --bar: #77abff; --mark: #f0a25c;
  --bad: #f58b80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 14px; }
h2 { font-size: 1.3rem; margin: 40px 0 12px; }
.muted, figcaption span { color: var(--muted); font-weight: normal; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 18px; margin: 18px 0; }
dt { color: var(--muted); }
dd { margin: 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(138px, 1fr)); gap: 10px; }
.tile, figure, details, .sheet div { background: var(--card); border: 1px solid var(--edge);
  border-radius: 10px; }
.tile { padding: 10px 14px 12px; }
.tile b { display: block; font-size: 1.4rem; line-height: 1.25; font-weight: 650; }
.tile span { color: var(--muted); font-size: .82rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(400px, 100%), 1fr));
  gap: 14px; align-items: start; }
figure { margin: 0; padding: 12px 14px; }
figcaption { font-weight: 600; font-size: .95rem; padding-bottom: 8px; }
svg { display: block; width: 100%; height: auto; font-family: inherit; }
svg text { fill: var(--muted); font-size: 11.5px; font-variant-numeric: tabular-nums; }
svg .value { fill: var(--ink); }
.bar { fill: var(--bar); }
.grid, .base { stroke: var(--grid); fill: none; }
.base { stroke: var(--muted); }
.median { stroke: var(--mark); stroke-width: 1.5; stroke-dasharray: 4 3; fill: none; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(132px, 1fr)); gap: 10px; }
.sheet div { padding: 6px 6px 8px; font-size: .8rem; line-height: 1.3; }
.sheet img, .sheet i { display: block; width: 100%; aspect-ratio: 1; object-fit: contain;
  margin-bottom: 5px; border-radius: 5px; background: var(--page); }
.sheet i { color: var(--bad); padding: 12px; font-style: normal; }
.sheet img.tiny { image-rendering: pixelated; }
.sheet small { display: block; color: var(--muted); font-variant-numeric: tabular-nums; }
details { margin: 8px 0; padding: 8px 14px; }
summary { cursor: pointer; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; width: 100%; }
td, th { text-align: left; padding: 4px 14px 4px 0; border-bottom: 1px solid var(--grid);
  vertical-align: top; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
@media (max-width: 560px) { dl { display: block; } dd { margin-bottom: 8px; }
  .sheet { grid-template-columns: repeat(auto-fill, minmax(96px, 1fr)); } }
"""


def write_page(folder: Path, target: Path) -> None:
    """Write the page of a data set, atomically.

    The same data set gives the same page: images are drawn by the seed of the manifest.

    Raises:
        Misuse: there is no manifest, or an index is missing or damaged.
    """
    manifest = load_manifest(folder)
    parts = [
        _tiles(manifest),
        _pairs(facts(manifest)),
        *_sheets(folder, manifest),
        _classes(manifest),
        _sizes(folder, manifest),
        _fates(manifest),
    ]
    name = text_of(manifest.name)
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}</title><style>{_STYLE}</style></head>"
        f"<body><main><h1>{name}</h1>{''.join(parts)}</main></body></html>\n"
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, page)


def _tiles(manifest: Manifest) -> str:
    tiles = [
        (f"{split.num_samples:,}", f"{name}, in {_counted(len(split.shards), 'shard')}")
        for name, split in manifest.splits.items()
    ]
    tiles += [(f"{manifest.num_classes:,}", "classes")]
    tiles += [(amount(sum(s.num_bytes for s in manifest.splits.values())), "in shards")]
    if manifest.bytes_before:
        share = manifest.bytes_after / manifest.bytes_before
        tiles += [(f"{share:.1%}", f"of the sources' {amount(manifest.bytes_before)} of images")]
    cells = (
        f'<div class="tile"><b>{text_of(b)}</b><span>{text_of(t)}</span></div>' for b, t in tiles
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _pairs(pairs: list[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<dt>{text_of(n)}</dt><dd>{text_of(t)}</dd>' for n, t in pairs)}</dl>"


def _sheets(folder: Path, manifest: Manifest) -> Iterator[str]:
    for number, name in enumerate(manifest.splits):
        index = SplitIndex(folder, manifest, name)
        count = NUM_OTHERS if number else NUM_FIRST
        cells = [_cell(one, manifest) for one in draw(index, count, manifest.seed)]
        drawn = f"{len(cells):,} of {len(index):,} images, drawn by seed {manifest.seed}"
        yield (
            f'<h2>{text_of(name)} <small class="muted">{drawn}</small></h2>'
            f'<div class="sheet">{"".join(cells)}</div>'
        )


def _cell(one: Thumbnail, manifest: Manifest) -> str:
    names = [manifest.labels.text(label) for label in one.labels[:_MAX_LABELS]]
    names += ["\u2026"] if len(one.labels) > _MAX_LABELS else []
    label = text_of(", ".join(names))
    tiny = ' class="tiny"' if max(one.width, one.height) <= 64 else ""
    image = f'<img src="{one.data_uri}" alt="{label}" loading="lazy"{tiny}>'
    shown = f"<i>{text_of(one.problem)}</i>" if one.problem else image
    return (
        f'<div title="{text_of(one.key)}">{shown}{label}'
        f"<small>{one.width}\u00d7{one.height}, {amount(one.num_bytes)}</small></div>"
    )


def _classes(manifest: Manifest) -> str:
    names = [manifest.labels.text(index) for index in range(manifest.num_classes)]
    drawn = (
        f"<figure><figcaption>{text_of(name)} <span>{text_of(spread(split))}</span>"
        f"</figcaption>{histograms.classes(split.class_counts, names)}"
        f"{_extremes(split.class_counts, names)}</figure>"
        for name, split in manifest.splits.items()
    )
    return f'<h2>Images per class</h2><div class="charts">{"".join(drawn)}</div>'


def _extremes(counts: tuple[int, ...], names: list[str]) -> str:
    """Return the largest and smallest classes by name, where the drawing has no room for names."""
    if len(counts) <= histograms.MAX_BARS:
        return ""
    order = sorted(range(len(counts)), key=lambda index: (-counts[index], index))
    rows = "".join(
        f'<tr><td>{text_of(names[index])}</td><td class="number">{counts[index]:,}</td></tr>'
        for index in [*order[:5], *order[-5:]]
    )
    table = f'<div class="wide"><table><tbody>{rows}</tbody></table></div>'
    return f"<details><summary>The five largest and smallest</summary>{table}</details>"


def _sizes(folder: Path, manifest: Manifest) -> str:
    short_sides, num_bytes = _measure(folder, manifest)
    drawn = []
    for what, unit, values in (("Short side", "px", short_sides), ("Size", "bytes", num_bytes)):
        if not len(values):
            continue
        svg = histograms.sizes(values, unit) or f"<p>All have {values[0]:,} {unit}.</p>"
        said = f"{values.min():,} to {values.max():,} {unit}"
        drawn.append(f"<figure><figcaption>{what} <span>{said}</span></figcaption>{svg}</figure>")
    return f'<h2>Sizes</h2><div class="charts">{"".join(drawn)}</div>' if drawn else ""


def _measure(folder: Path, manifest: Manifest) -> tuple[np.ndarray, np.ndarray]:
    """Return (N,) short sides in px and (N,) bytes of all images: 6 bytes an image."""
    sides, sizes = [np.zeros(0, np.uint16)], [np.zeros(0, np.uint32)]
    for split in manifest.splits.values():
        for shard in split.shards:
            entries = read_index(folder / shard.index_file)
            sides.append(np.minimum(entries["width"], entries["height"]))
            sizes.append(np.array(entries["size"]))
    return np.concatenate(sides), np.concatenate(sizes)


def _fates(manifest: Manifest) -> str:
    """Return the table of reasons, and the first files of each fate behind a click."""
    happened = {what: notes for what, notes in fates(manifest).items() if notes.count}
    if not happened:
        return "<h2>What befell images</h2><p>Nothing: all that was found is stored as it came.</p>"
    rows = "".join(
        f"<tr><td>{text_of(what)}</td><td>{text_of(kind)}</td>"
        f'<td class="number">{count:,}</td></tr>'
        for what, notes in happened.items()
        for kind, count in sorted(notes.by_reason.items(), key=lambda item: -item[1])
    )
    heads = '<tr><th>What</th><th>Why</th><th class="number">Images</th></tr>'
    files = "".join(_files(what, notes) for what, notes in happened.items())
    return (
        f'<h2>What befell images</h2><div class="wide"><table><thead>{heads}</thead>'
        f"<tbody>{rows}</tbody></table></div>{files}"
    )


def _files(what: str, notes: Notes) -> str:
    listed = "".join(
        f"<tr><td>{text_of(note.file)}</td><td>{text_of(note.reason)}</td></tr>"
        for note in notes.first[:_MAX_LISTED]
    )
    more = notes.count - min(len(notes.first), _MAX_LISTED)
    rest = f"<p>... and {more:,} more, see rejects.jsonl</p>" if more else ""
    return (
        f"<details><summary>Files that were {text_of(what)}: {notes.count:,}</summary>"
        f'<div class="wide"><table><tbody>{listed}</tbody></table></div>{rest}</details>'
    )
