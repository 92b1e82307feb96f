"""`verify`: is a data set what its manifest says, down to the last bit?

sha256 of every file finds any flipped bit; the crc32c of each image, the index and the walk through
the tar tell which sample it hit. 199 of 200 flipped bits in a JPEG decode without any error, so
nothing less than checksums will do.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_prep.clean import CleanRules
from data_prep.inventory import check_files, rejected_names
from data_prep.pool import Progress, run
from data_prep.verify_shard import MAX_PROBLEMS, Checked, Task, check_shard
from pipeline.data.manifest import FILE, REJECTS, Manifest, Split, load_manifest
from pipeline.spec import Misuse


def verify(folder: Path, workers: int, decode: bool = False) -> tuple[int, list[str]]:
    """Check a data set; return how many samples it has and what is wrong with it.

    Args:
        folder: of the manifest.
        workers: processes.
        decode: whether to decode every image, too.

    Raises:
        Misuse: there is no manifest, so that there is nothing to check against.
        Failed: a worker died.
    """
    try:
        manifest = load_manifest(folder)
    except Misuse as error:
        if (folder / FILE).is_file():
            return 0, [str(error)]
        raise
    problems = check_files(folder, manifest)
    num_samples = num_bytes = 0
    for name in manifest.splits:
        summary = _Summary(folder, manifest, name)
        with Progress(f"verify {name}", "images", manifest.splits[name].num_samples) as progress:
            for checked in run(check_shard, _tasks(folder, manifest, name, decode), workers):
                summary.add(checked)
                progress.add(checked.num_samples)
        problems += summary.problems()
        num_samples += summary.num_samples
        num_bytes += summary.num_image_bytes
    if not problems and manifest.bytes_after not in (0, num_bytes):
        problems.append(
            f"{folder / FILE}: field 'bytes_after' is {manifest.bytes_after:,}, but the images "
            f"have {num_bytes:,} bytes"
        )
    return num_samples, problems


def _tasks(folder: Path, manifest: Manifest, name: str, decode: bool) -> Iterator[Task]:
    foreign = not manifest.layout
    rejected = rejected_names(folder / REJECTS) if foreign else {}
    for number, shard in enumerate(manifest.splits[name].shards):
        yield Task(
            folder,
            number,
            shard,
            num_classes=len(manifest.labels),
            rejected=rejected.get(shard.file, ()),
            foreign=foreign,
            interleaved=manifest.interleaved,
            label_field=str(manifest.clean.get("label_field") or ""),
            decode=_rules(manifest) if decode else None,
        )


def _rules(manifest: Manifest) -> CleanRules:
    """Return the rules to decode by; small images may come from large ones by a resize."""
    limits = {key: value for key, value in manifest.clean.items() if key == "max_pixels"}
    return CleanRules.parse(limits, FILE)


class _Summary:
    """What was found in the shards of one split."""

    def __init__(self, folder: Path, manifest: Manifest, name: str) -> None:
        self._folder, self._name = folder, name
        self._split: Split = manifest.splits[name]
        self._is_foreign = not manifest.layout
        self._counts = np.zeros(len(manifest.labels), np.int64)
        self._found: dict[int, list[str]] = {}
        self._keys: list[np.ndarray] = []
        self._shards: list[np.ndarray] = []
        self.num_samples = self.num_image_bytes = 0

    def add(self, checked: Checked) -> None:
        """Take in one shard; shards finish in any order."""
        self.num_samples += checked.num_samples
        self.num_image_bytes += checked.num_image_bytes
        self._keys.append(checked.keys)
        self._shards.append(np.full(len(checked.keys), checked.number, np.uint32))
        if checked.problems:
            self._found[checked.number] = checked.problems
        if len(checked.class_counts) == len(self._counts):
            self._counts += checked.class_counts

    def problems(self) -> list[str]:
        """Return all problems, in the order of the shards."""
        problems = [problem for number in sorted(self._found) for problem in self._found[number]]
        problems += self._double_keys()
        return problems or self._wrong_counts()

    def _wrong_counts(self) -> list[str]:
        wrong = np.flatnonzero(self._counts != np.array(self._split.class_counts))
        return [
            f"{self._folder / FILE}: split '{self._name}' claims {self._split.class_counts[c]} "
            f"images of class {c}, its shards hold {self._counts[c]}"
            for c in wrong[:MAX_PROBLEMS].tolist()
        ]

    def _double_keys(self) -> list[str]:
        """Name a key that stands in two shards; within one, the walk through it finds them.

        Builds number their keys; others may well begin anew in every tar.
        """
        if not self._keys or self._is_foreign:
            return []
        keys, shards = np.concatenate(self._keys), np.concatenate(self._shards)
        order = np.argsort(keys, kind="stable")
        twins = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
        first, second = shards[order[twins]], shards[order[twins + 1]]
        crossing = np.flatnonzero(first != second)
        if not len(crossing):
            return []
        at = sorted((int(first[crossing[0]]), int(second[crossing[0]])))
        one, other = (self._folder / self._split.shards[number].file for number in at)
        several = f"{len(crossing)} keys" if len(crossing) > 1 else "a key"
        return [f"{one} and {other}: {several} of '{self._name}' in two shards (double samples)"]
