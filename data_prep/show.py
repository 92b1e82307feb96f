"""`show`: what a data set holds and how it came about, as a table for people."""

from pathlib import Path
from statistics import median

from pipeline.data.manifest import Holdout, Manifest, Notes, Split, load_manifest

_TOP = 10
_RULES = {
    "none": "nothing",
    "fraction": "{value:g} of the images of each class, drawn by seed {seed}",
    "count": "{value:g} images of each class, drawn by seed {seed}",
    "first": "the first {value:g} images of each class by name",
    "folders": "a folder of the source",
    "source": "a source of its own",
    "official": "the official lists",
    "unknown": "as found",
}
_ORIENTATION = {
    "keep": "EXIF orientation ignored, pixels as stored",
    "apply": "turned upright by EXIF orientation",
}


def describe(folder: Path) -> str:
    """Return the table of a data set; Misuse where it has no manifest."""
    manifest = load_manifest(folder)
    lines = [f"{manifest.name}  ({folder})"]
    lines += [f"  {name:<11}{text}" for name, text in facts(manifest)]
    lines += ["", f"  {'split':<8}{'images':>12}{'shards':>8}{'GB':>9}{'images per class':>32}"]
    lines += [_row(name, split) for name, split in manifest.splits.items()]
    for what, notes in fates(manifest).items():
        lines += _notes(what, notes)
    return "\n".join(lines)


def facts(manifest: Manifest) -> list[tuple[str, str]]:
    """Return what there is to say of a data set as a whole: pairs of a word and a text."""
    known = [
        ("made by", _origin(manifest)),
        ("manifest", f"sha256 {manifest.digest()}"),
        ("classes", _classes(manifest)),
        ("held out", _holdouts(manifest)),
        ("checks", _checks(manifest)),
        ("transcode", _transcode(manifest)),
        ("bytes", _bytes(manifest)),
        ("duplicates", _duplicates(manifest)),
        ("order", "members of a sample lie apart: webdataset itself would drop such samples")
        if manifest.interleaved
        else ("", ""),
    ]
    return [(name, text) for name, text in known if text]


def fates(manifest: Manifest) -> dict[str, Notes]:
    """Return what befell images, by fate, in the order in which people ask."""
    return {
        "rejected": manifest.rejected,
        "dropped": manifest.dropped,
        "repaired": manifest.repaired,
        "noted": manifest.noted,
    }


def _origin(manifest: Manifest) -> str:
    if not manifest.layout:
        return f"{manifest.tool} (index), from tars made elsewhere"
    sources = " and ".join(manifest.sources) or "unknown sources"
    return f"{manifest.tool}, layout {manifest.layout}, seed {manifest.seed}, from {sources}"


def _classes(manifest: Manifest) -> str:
    space = manifest.labels
    first = ", ".join(space.text(index) for index in range(min(_TOP, len(space))))
    more = ", ..." if len(space) > _TOP else ""
    return f"{len(space):,}: {first}{more}  (label space {space.name}, {space.digest()[:12]})"


def _holdouts(manifest: Manifest) -> str:
    return "; ".join(f"{name}: {_rule(hold)}" for name, hold in manifest.holdouts.items()) or "none"


def _rule(hold: Holdout) -> str:
    return _RULES[hold.rule].format(value=hold.value, seed=hold.seed)


def _checks(manifest: Manifest) -> str:
    rules = manifest.clean
    if not manifest.layout:
        field = rules.get("label_field")
        return "headers only" + (f", labels from the field '{field}' of key.json" if field else "")
    decode = {"full": "every image decoded", "header": "headers only"}
    parts = [decode.get(str(rules.get("decode")), "")]
    parts += [_ORIENTATION.get(str(rules.get("orientation")), "")]
    if isinstance(side := rules.get("min_side"), int) and side > 1:
        parts.append(f"no side under {side} px")
    return ", ".join(part for part in parts if part)


def _transcode(manifest: Manifest) -> str:
    rules = manifest.transcode
    if rules.get("kind") == "resize":
        return f"short side {rules.get('short_px')} px, JPEG quality {rules.get('quality')}"
    if rules.get("kind") == "lossless":
        restarts = ", with restart intervals" if rules.get("restarts") else ""
        return f"lossless (same pixels, optimised Huffman tables{restarts})"
    return "none: good JPEGs are stored byte for byte" if rules else ""


def _bytes(manifest: Manifest) -> str:
    before, after = manifest.bytes_before, manifest.bytes_after
    if not after:
        return ""
    stored = f"{amount(after)} of images"
    return (
        f"{stored}, {after / before:.1%} of {amount(before)} in the sources" if before else stored
    )


def _duplicates(manifest: Manifest) -> str:
    counted = {
        "merged into one sample": manifest.merged_duplicates,
        "dropped from train because a held-out split has them": manifest.leaks,
        "in eval and in train at once": manifest.eval_twins,
    }
    parts = [f"{count:,} {what}" for what, count in counted.items() if count]
    others = (other.partition(":") for other in manifest.against)
    parts += [f"compared with {splits} of data set {digest[:12]}" for digest, _, splits in others]
    return "; ".join(parts)


def amount(num_bytes: int) -> str:
    """Return a number of bytes for people."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes} bytes"


def spread(split: Split) -> str:
    """Return how many images the classes of a split have."""
    counts = [count for count in split.class_counts if count]
    text = f"{min(counts)} to {max(counts)}, median {median(counts):g}" if counts else "none"
    empty = len(split.class_counts) - len(counts)
    return f"{text}, {empty} empty" if empty else text


def _row(name: str, split: Split) -> str:
    gb = split.num_bytes / 1e9
    images, shards = f"{split.num_samples:>12,}", f"{len(split.shards):>8,}"
    return f"  {name:<8}{images}{shards}{gb:>9.3f}{spread(split):>32}"


def _notes(what: str, notes: Notes) -> list[str]:
    if not notes.count:
        return ["", f"  {what}: none"]
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in notes.by_reason.items())
    lines = ["", f"  {what}: {notes.count:,} ({kinds})"]
    lines += [f"    {note.file}: {note.reason}" for note in notes.first[:_TOP]]
    left = notes.count - min(_TOP, len(notes.first))
    return [*lines, f"    ... and {left:,} more, see rejects.jsonl"] if left else lines
