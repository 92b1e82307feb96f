"""Which tars of a folder make which split: as the user says, as `_info.json` says, or by folder."""

import json
import os
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

from pipeline.data.manifest import FILE, INFO, Shard
from pipeline.spec import Misuse

EVAL_NAMES = ("eval", "validation", "valid", "val", "test")
"""The first of these that timm's `_info.json` has becomes the split `eval`."""
_MAX_INFO_BYTES = 64 << 20


def find_splits(folder: Path, globs: dict[str, str]) -> dict[str, list[str]]:
    """Return the tars of each split, sorted, as paths below `folder`.

    Args:
        folder: where the tars lie.
        globs: split -> pattern of paths below `folder`. Empty: the splits of timm's `_info.json`;
            without one subfolders are splits and tars at the top are train.

    Raises:
        Misuse: no tars, tars that `_info.json` names are missing, patterns that fit no or the same
            tars, or a manifest that is there already.
    """
    if not folder.is_dir():
        raise Misuse(f"{folder}: no such folder")
    if not os.access(folder, os.W_OK):
        raise Misuse(f"{folder}: cannot be written; index and manifest go beside the tars")
    if (folder / FILE).exists():
        raise Misuse(f"{folder / FILE}: is there already; remove it to index these tars again")
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.tar"))
    if not files:
        raise Misuse(f"{folder}: no tar in it; give the folder of webdataset shards")
    for file in files:
        _check_name(folder, file)
    if globs:
        return _by_pattern(folder, globs, files)
    if told := read_info(folder):
        _check_there(folder, [file for split in told.values() for file in split], set(files))
        return {_plain(name, told): sorted(its) for name, its in told.items()}
    splits: dict[str, list[str]] = {}
    for file in files:
        top, slash, _ = file.partition("/")
        splits.setdefault(top if slash else "train", []).append(file)
    return splits


def read_info(folder: Path) -> dict[str, dict[str, int]]:
    """Return split -> tar -> number of samples, as `_info.json` says; nothing where there is none.

    The format is that of timm.data.readers.reader_wds.

    Raises:
        Misuse: the file is broken.
    """
    path = folder / INFO
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > _MAX_INFO_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes are too many")
        splits = json.loads(path.read_bytes())["splits"]
        return {
            str(name): {
                str(file): int(count)
                for file, count in zip(its["filenames"], its["shard_lengths"], strict=True)
            }
            for name, its in splits.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Misuse(
            f"{path}: not the shard list of timm's reader ({type(error).__name__}: {error}); "
            "name the splits with --split NAME=PATTERN, or move the file away"
        ) from None


def _check_name(folder: Path, file: str) -> None:
    """Refuse a name that no manifest can hold before any work is done."""
    digests = {"sha256": "", "index_sha256": "", "labels_sha256": ""}
    Shard.parse({"file": file, "num_samples": 0, "num_bytes": 0, **digests}, str(folder / file))


def _by_pattern(folder: Path, globs: dict[str, str], files: list[str]) -> dict[str, list[str]]:
    splits = {
        split: [file for file in files if fnmatch(file, glob)] for split, glob in globs.items()
    }
    for split, glob in globs.items():
        if not splits[split]:
            raise Misuse(f"--split: no tar below {folder} matches {split}={glob}")
    counts = Counter(file for its in splits.values() for file in its)
    for file, count in counts.items():
        if count > 1:
            names = " and ".join(split for split, its in splits.items() if file in its)
            raise Misuse(f"--split: {file} matches the patterns of {names}")
    return splits


def _check_there(folder: Path, told: list[str], files: set[str]) -> None:
    missing = [file for file in told if file not in files]
    if missing:
        raise Misuse(
            f"{folder / INFO}: names {len(told)} tars, {len(missing)} of them are missing, the "
            f"first is {missing[0]}; get them, or name the splits with --split NAME=PATTERN"
        )
    twice = [file for file, count in Counter(told).items() if count > 1]
    if twice:
        raise Misuse(f"{folder / INFO}: names {twice[0]} in two splits; use --split NAME=PATTERN")


def _plain(name: str, told: dict[str, dict[str, int]]) -> str:
    chosen = next((known for known in EVAL_NAMES if known in told), "")
    return "eval" if name == chosen else name
