"""`show`: what a folder of shards holds, as a table for people."""

from pathlib import Path
from statistics import median

from pipeline.data.manifest import Manifest, Notes, Split, load_manifest

_TOP = 10


def describe(folder: Path) -> str:
    """Return the table of a folder of shards; Misuse where it has no manifest."""
    manifest = load_manifest(folder)
    lines = [
        f"{manifest.name}  ({folder})",
        f"  made by    {manifest.tool}, seed {manifest.seed}, from {_list(manifest.sources)}",
        f"  manifest   sha256 {manifest.digest()}",
        f"  classes    {_classes(manifest)}",
        f"  eval split {_holdout(manifest)}",
        "",
        f"  {'split':<8}{'images':>12}{'shards':>8}{'GB':>9}{'images per class':>32}",
        *(_row(name, split) for name, split in manifest.splits.items()),
    ]
    if manifest.merged_duplicates:
        lines += ["", f"  {manifest.merged_duplicates} duplicates were merged into one sample"]
    lines += _notes("repaired", manifest.repaired)
    lines += _notes("rejected", manifest.rejected)
    return "\n".join(lines)


def _list(names: tuple[str, ...]) -> str:
    return " and ".join(names) or "tars made elsewhere"


def _classes(manifest: Manifest) -> str:
    space = manifest.labels
    first = ", ".join(space.text(index) for index in range(min(_TOP, len(space))))
    more = ", ..." if len(space) > _TOP else ""
    return f"{len(space)}: {first}{more}  (sha256 {space.digest()[:12]})"


def _holdout(manifest: Manifest) -> str:
    if manifest.holdout.rule == "fraction":
        text = f"{manifest.holdout.fraction:g} of the images of each class, drawn by the seed"
    else:
        text = {
            "none": "none",
            "folders": "a folder of the source",
            "source": "a source of its own",
            "unknown": "as found",
        }[manifest.holdout.rule]
    twins = (
        f"; {manifest.eval_twins} of its images are also in train" if manifest.eval_twins else ""
    )
    return text + twins


def _row(name: str, split: Split) -> str:
    counts = [count for count in split.class_counts if count]
    spread = f"{min(counts)} to {max(counts)}, median {median(counts):g}" if counts else "none"
    empty = len(split.class_counts) - len(counts)
    spread += f", {empty} empty" if empty else ""
    gb = split.num_bytes / 1e9
    return f"  {name:<8}{split.num_samples:>12,}{len(split.shards):>8,}{gb:>9.3f}{spread:>32}"


def _notes(what: str, notes: Notes) -> list[str]:
    if not notes.count:
        return ["", f"  {what}: none"]
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in notes.by_reason.items())
    lines = ["", f"  {what}: {notes.count:,} ({kinds})"]
    lines += [f"    {note.file}: {note.reason}" for note in notes.first[:_TOP]]
    left = notes.count - min(_TOP, len(notes.first))
    return [*lines, f"    ... and {left:,} more"] if left else lines
