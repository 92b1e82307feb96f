"""The options of `build`, and how they become a job."""

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data_prep.stages import Element, Job

STAGES = ("list", "check", "arrange", "write", "finish")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add all options of `build` to a parser."""
    add = parser.add_argument
    add("source", type=Path, metavar="SOURCE", help="class folders, an archive, or archives")
    add("out", type=Path, metavar="OUT", help="folder of shards; rerun to continue")
    _add_images(parser.add_argument_group("which images"))
    _add_cleaning(parser.add_argument_group("what happens to them"))
    _add_shards(parser.add_argument_group("the shards"))
    _add_running(parser.add_argument_group("how it runs"))


def add_workers(parser: "argparse.ArgumentParser | argparse._ArgumentGroup") -> None:
    """Add --workers; all processors unless said otherwise."""
    count = len(os.sched_getaffinity(0))
    parser.add_argument(
        "--workers", type=_positive, default=count, metavar="N", help=f"processes ({count})"
    )


def read_job(args: argparse.Namespace) -> "Job":
    """Turn parsed options into a job.

    Raises:
        Misuse: an option is wrong; the message names it.
    """
    from data_prep.options import BuildSpec
    from data_prep.sources import Source
    from data_prep.stages import EVAL_PREFIX, Job
    from pipeline.spec import Misuse

    if args.eval_labels and not args.eval_source:
        raise Misuse("--eval-labels names the classes of --eval-source, which is missing")
    if args.eval_source and args.layout != "folders":
        raise Misuse(
            f"--eval-source goes with --layout folders; {args.layout} finds its splits itself, "
            "so put all its archives into SOURCE"
        )
    sources = [Source(args.source)]
    if args.eval_source:
        sources.append(Source(args.eval_source, EVAL_PREFIX))
    spec = BuildSpec.parse(_values(args), "command line")
    return Job(tuple(sources), args.out, spec, args.workers, args.scratch)


def read_element(text: str) -> "Element":
    """Read `K/N` as element K of N, counted from 0."""
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not K/N with K from 0 to N - 1")
    return int(number), int(count)


def read_pairs(words: Sequence[str] | None) -> dict[str, str] | None:
    """Turn `train=A eval=B` into {A: train, B: eval}; `none` into {}.

    Raises:
        Misuse: a word is no pair, or a folder is named twice.
    """
    from pipeline.spec import Misuse

    if words is None or list(words) == ["none"]:
        return None if words is None else {}
    pairs: dict[str, str] = {}
    for word in words:
        split, equals, folder = word.partition("=")
        if not (split and equals and folder) or folder in pairs:
            raise Misuse(f"--split: '{word}' is not NAME=FOLDER with a folder of its own, or none")
        pairs[folder] = split
    return pairs


def _add_images(group: "argparse._ArgumentGroup") -> None:
    add = group.add_argument
    add("--layout", default="folders", metavar="NAME", help="what SOURCE is, say imagenet1k")
    add(
        "--split",
        nargs="+",
        metavar="NAME=FOLDER",
        help="folders that are splits (train=train eval=val), or none; default: found by name",
    )
    add(
        "--holdout",
        action="append",
        default=[],
        metavar="[SPLIT=]RULE",
        help="what a split (eval) takes from train: 0.2 of each class, 25 of each, first:50 by "
        "name, or none; may be given for several splits",
    )
    add("--eval-source", type=Path, metavar="SRC", help="the eval split's own folder or tar")
    add("--eval-labels", type=Path, metavar="FILE", help="lines `file class` for a flat SRC")
    add("--classes", default="", metavar="A,B,C", help="keep only these classes")
    add("--label-space", default="", metavar="NAME", help="a published one; default: the classes")
    add("--names", type=Path, metavar="FILE", help="lines `class name for people`")
    add("--per-class", type=int, metavar="K", help="at most K images a class in train")
    add("--allow-empty", action="store_true", help="keep classes without a usable image")
    add(
        "--duplicates",
        choices=("keep", "merge", "drop"),
        default="keep",
        help="equal files: all, one sample with all labels, or the first (keep)",
    )
    add(
        "--against",
        action="append",
        default=[],
        metavar="DIR[:SPLIT,...]",
        help="leave out the images of these shards, of eval unless told; may be repeated",
    )
    add("--near-duplicates", type=int, default=0, metavar="BITS", help="by perceptual hash (0)")


def _add_cleaning(group: "argparse._ArgumentGroup") -> None:
    add = group.add_argument
    add(
        "--transcode",
        default="none",
        metavar="HOW",
        help="none, lossless, or resize:PX[:qQUALITY] of the short side, say resize:256:q90 (none)",
    )
    add(
        "--orientation",
        choices=("keep", "apply"),
        default="keep",
        help="pixels as stored, or turned as their EXIF tag says (keep)",
    )
    add(
        "--check",
        choices=("full", "header"),
        default="full",
        help="decode every image, or look at its markers only (full)",
    )
    add("--min-side", type=int, default=1, metavar="PX", help="smaller images are rejected (1)")


def _add_shards(group: "argparse._ArgumentGroup") -> None:
    add = group.add_argument
    add("--shard-mb", type=float, default=256.0, metavar="MB", help="size of a shard (256)")
    add("--shard-samples", type=int, metavar="N", help="images a shard, instead of a size")
    add("--seed", type=int, default=0, help="of holdout, choice and order (0)")
    add("--name", help="of the data set; default: the name of OUT")


def _add_running(group: "argparse._ArgumentGroup") -> None:
    add = group.add_argument
    add_workers(group)
    add("--scratch", type=Path, metavar="DIR", help="for what goes when the shards are there (OUT)")
    add("--stage", choices=STAGES, help="only this one; default: all, one after another")
    add(
        "--element",
        type=read_element,
        metavar="K/N",
        help="share K of N of stage check or write, counted from 0",
    )
    add("--dry-run", action="store_true", help="check sources and options, and do nothing")


def _values(args: argparse.Namespace) -> dict[str, object]:
    """Return the fields of a BuildSpec."""
    from data_prep.layouts.folders import read_labels, read_names
    from data_prep.transcode import TranscodeSpec

    return {
        "name": args.name or _name_of(args.out),
        "layout": args.layout,
        "splits": read_pairs(args.split),
        "eval_labels": read_labels(args.eval_labels) if args.eval_labels else None,
        "classes": [name.strip() for name in args.classes.split(",") if name.strip()],
        "label_space": args.label_space,
        "names": read_names(args.names) if args.names else None,
        "per_class": args.per_class,
        "shard_mb": args.shard_mb,
        "shard_samples": args.shard_samples,
        "seed": args.seed,
        "allow_empty": args.allow_empty,
        "duplicates": args.duplicates,
        "against": args.against,
        "near_duplicates": args.near_duplicates,
        "holdouts": _holdouts(args.holdout),
        "clean": {
            "decode": args.check,
            "orientation": args.orientation,
            "min_side": args.min_side,
        },
        "transcode": TranscodeSpec.read(args.transcode),
    }


def _name_of(out: Path) -> str:
    """Return the folder's name as a name of a data set: other characters become `-`."""
    return re.sub(r"[^\w.+-]+", "-", out.resolve().name).strip("-.+") or "shards"


def _holdouts(texts: Sequence[str]) -> dict[str, object]:
    """Read `0.2`, `minival=25` or `eval=first:50`, each for a split of its own."""
    from data_prep.options import Hold
    from data_prep.population import EVAL
    from pipeline.spec import Misuse

    holdouts: dict[str, object] = {}
    for text in texts:
        split, equals, rule = text.rpartition("=")
        split = split if equals else EVAL
        if split in holdouts:
            raise Misuse(f"--holdout {text}: split {split} has a rule already; give it one")
        if rule != "none":
            holdouts[split] = Hold.read(rule, f"--holdout {text}")
    return holdouts


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not 1 or more")
    return int(text)
