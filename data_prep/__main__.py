"""The command line of data preparation.

    python -m data_prep synthetic digits data/digits-raw
    python -m data_prep build data/digits-raw data/digits --holdout 0.2
    python -m data_prep verify data/digits

Exit codes: 0 done, 1 failed, 2 wrong use. Heavy imports are late, so that --help is quick.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

_COMMANDS = "build verify show index synthetic"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = _parser().parse_args(arguments)
    if args.command is None:
        _parser().print_help()
        return 2
    from data_prep.failure import Failed
    from pipeline.spec import Misuse

    try:
        return args.run(args)
    except Misuse as error:
        print(f"data_prep: {error}", file=sys.stderr)
        return 2
    except (Failed, OSError) as error:
        print(f"data_prep: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("data_prep: stopped; the same command goes on from here", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep", description="Raw images to shards for training."
    )
    commands = parser.add_subparsers(dest="command", metavar=f"{{{_COMMANDS.replace(' ', ',')}}}")
    _add_build(commands)
    one = commands.add_parser("verify", help="check shards against their manifest, bit by bit")
    one.add_argument("folder", type=Path, metavar="DIR")
    one.add_argument("--decode", action="store_true", help="decode every image, too")
    _add_workers(one)
    one.set_defaults(run=_verify)
    one = commands.add_parser("show", help="show what a folder of shards holds")
    one.add_argument("folder", type=Path, metavar="DIR")
    one.set_defaults(run=_show)
    one = commands.add_parser("index", help="index webdataset tars made by others")
    one.add_argument("folder", type=Path, metavar="DIR")
    one.add_argument(
        "--split", nargs="+", default=[], metavar="NAME=GLOB", help="train='*-train-*.tar' ..."
    )
    one.add_argument("--classes-file", type=Path, help="class names, one a line, in index order")
    one.add_argument("--name", help="of the data set; default: the name of DIR")
    _add_workers(one)
    one.set_defaults(run=_index)
    one = commands.add_parser("synthetic", help="write a small real image set")
    one.add_argument("kind", choices=["digits"], help="scikit-learn's digits as 32x32 JPEGs")
    one.add_argument("out", type=Path, metavar="OUT")
    one.set_defaults(run=_synthetic)
    return parser


def _add_build(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    one = commands.add_parser("build", help="build shards from a folder, a .tar or a .tar.gz")
    add = one.add_argument
    add("source", type=Path, metavar="SOURCE", help="class folders, or a tar of images")
    add("out", type=Path, metavar="OUT", help="folder of shards; rerun to continue")
    add(
        "--split",
        nargs="+",
        metavar="NAME=FOLDER",
        help="folders that are splits (train=train eval=val), or none; default: found by name",
    )
    add("--holdout", default="none", metavar="FRACTION", help="eval share of each class, or none")
    add("--eval-source", type=Path, metavar="SRC", help="the eval split's own folder or tar")
    add("--eval-labels", type=Path, metavar="FILE", help="lines `file class` for a flat SRC")
    add("--classes", default="", metavar="A,B,C", help="keep only these classes")
    add("--per-class", type=int, metavar="K", help="at most K images a class in train")
    add("--merge-duplicates", action="store_true", help="equal files: one sample, all labels")
    add("--allow-empty", action="store_true", help="keep classes without a usable image")
    add("--names", type=Path, metavar="FILE", help="lines `class name for people`")
    add("--shard-mb", type=float, default=256.0, metavar="MB", help="size of a shard (256)")
    add("--shard-samples", type=int, metavar="N", help="images a shard, instead of a size")
    add("--seed", type=int, default=0, help="of holdout, choice and order (0)")
    add("--name", help="of the data set; default: the name of OUT")
    _add_workers(one)
    one.set_defaults(run=_build)


def _add_workers(parser: argparse.ArgumentParser) -> None:
    count = len(os.sched_getaffinity(0))
    parser.add_argument(
        "--workers", type=_positive, default=count, metavar="N", help=f"processes ({count})"
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not 1 or more")
    return int(text)


def _build(args: argparse.Namespace) -> int:
    from data_prep.build import Job, build
    from data_prep.classes import read_labels, read_names
    from data_prep.options import BuildSpec
    from data_prep.show import describe
    from pipeline.spec import Misuse

    if args.eval_labels and not args.eval_source:
        raise Misuse("--eval-labels names the classes of --eval-source, which is missing")
    values = {
        "name": args.name or args.out.resolve().name,
        "splits": _pairs(args.split),
        "holdout": 0.0 if args.holdout == "none" else args.holdout,
        "classes": [name.strip() for name in args.classes.split(",") if name.strip()],
        "per_class": args.per_class,
        "shard_mb": args.shard_mb,
        "shard_samples": args.shard_samples,
        "seed": args.seed,
        "merge_duplicates": args.merge_duplicates,
        "allow_empty": args.allow_empty,
        "eval_labels": read_labels(args.eval_labels) if args.eval_labels else None,
        "names": read_names(args.names) if args.names else None,
    }
    spec = BuildSpec.parse(values, "command line")
    build(Job(args.source, args.eval_source, args.out, spec, args.workers))
    print(describe(args.out))
    return 0


def _pairs(words: list[str] | None) -> dict[str, str] | None:
    """Turn `train=A eval=B` into {A: train, B: eval}; `none` into {}."""
    from pipeline.spec import Misuse

    if words is None or words == ["none"]:
        return None if words is None else {}
    pairs: dict[str, str] = {}
    for word in words:
        split, equals, folder = word.partition("=")
        if not (split and equals and folder) or folder in pairs:
            raise Misuse(f"--split: '{word}' is not NAME=FOLDER with a folder of its own, or none")
        pairs[folder] = split
    return pairs


def _verify(args: argparse.Namespace) -> int:
    from data_prep.verify import verify

    num_samples, problems = verify(args.folder, args.workers, args.decode)
    for problem in problems[:100]:
        print(problem)
    if problems:
        print(f"{args.folder}: {len(problems)} problems; get or build these shards again")
        return 1
    print(f"{args.folder}: {num_samples:,} images, all as in the manifest")
    return 0


def _show(args: argparse.Namespace) -> int:
    from data_prep.show import describe

    print(describe(args.folder))
    return 0


def _index(args: argparse.Namespace) -> int:
    from data_prep.classes import read_classes
    from data_prep.index_tars import index_tars
    from data_prep.show import describe

    globs = {split: glob for glob, split in (_pairs(args.split) or {}).items()}
    classes = read_classes(args.classes_file) if args.classes_file else ()
    name = args.name or args.folder.resolve().name
    index_tars(args.folder, globs, classes, name, args.workers)
    print(describe(args.folder))
    return 0


def _synthetic(args: argparse.Namespace) -> int:
    from data_prep.synthetic import write_digits

    count = write_digits(args.out)
    print(f"{args.out}: {count:,} digits in 10 classes, 32x32 px JPEG")
    return 0


if __name__ == "__main__":
    sys.exit(main())
