"""The command line of data preparation.

    python -m data_prep synthetic digits data/digits-raw
    python -m data_prep build data/digits-raw data/digits --holdout 0.2
    python -m data_prep verify data/digits

Exit codes: 0 done, 1 failed, 2 wrong use. Heavy imports are late, so that --help is quick.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from data_prep import build_command

_COMMANDS = "build verify show index labels synthetic"
_MAX_PROBLEMS = 100


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = _parser().parse_args(arguments)
    if args.command is None:
        _parser().print_help()
        return 2
    from data_prep.failure import Failed
    from pipeline.spec import Failure, Misuse

    try:
        return args.run(args)
    except Misuse as error:
        print(f"data_prep: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read our output, say `| head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Failed, Failure, OSError) as error:
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

    def command(
        name: str, summary: str, run: Callable[[argparse.Namespace], int]
    ) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=summary, description=f"{summary.capitalize()}.")
        one.set_defaults(run=run)
        return one

    build = command("build", "build shards from folders or archives of images", _build)
    build_command.add_options(build)
    _add_readers(command)
    one = command("synthetic", "write a small real image set", _synthetic)
    one.add_argument("kind", choices=["digits"], help="scikit-learn's digits as 32x32 JPEGs")
    one.add_argument("out", type=Path, metavar="OUT")
    return parser


def _add_readers(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands that read shards or label spaces."""
    one = command("verify", "check shards against their manifest, bit by bit", _verify)
    one.add_argument("folder", type=Path, metavar="DIR")
    one.add_argument("--decode", action="store_true", help="decode every image, too")
    build_command.add_workers(one)
    one = command("show", "show what a folder of shards holds", _show)
    one.add_argument("folder", type=Path, metavar="DIR")
    one.add_argument(
        "--html",
        nargs="?",
        const=Path(),
        type=Path,
        metavar="FILE",
        help="write a page with images and histograms, too (DIR/show.html)",
    )
    one = command("index", "index webdataset tars made by others, in place", _index)
    one.add_argument("folder", type=Path, metavar="DIR")
    one.add_argument(
        "--split", nargs="+", default=[], metavar="NAME=GLOB", help="train='*-train-*.tar' ..."
    )
    classes = one.add_mutually_exclusive_group()
    classes.add_argument("--classes-file", type=Path, help="names, one a line, in index order")
    classes.add_argument("--label-space", metavar="NAME", help="a published one, see `labels`")
    one.add_argument("--label-field", default="", metavar="FIELD", help="of key.json, the label")
    one.add_argument("--name", help="of the data set; default: the name of DIR")
    build_command.add_workers(one)
    one = command("labels", "list the published label spaces, or compare two", _labels)
    what = "a published name, a folder of shards, or a file with a class a line"
    one.add_argument("a", nargs="?", metavar="A", help=what)
    one.add_argument("b", nargs="?", metavar="B", help="the one to compare it with")


def _build(args: argparse.Namespace) -> int:
    from data_prep.build import build, dry_run, run_stage
    from data_prep.show import describe
    from data_prep.stages import WHOLE
    from pipeline.spec import Misuse

    if args.element is not None and args.stage is None:
        raise Misuse("--element is a share of one stage; name it with --stage check or write")
    job = build_command.read_job(args)
    if args.dry_run:
        print(dry_run(job))
        return 0
    if args.stage is None:
        build(job)
    elif not run_stage(job, args.stage, args.element or WHOLE):
        return 0
    print(describe(args.out))
    return 0


def _verify(args: argparse.Namespace) -> int:
    from data_prep.verify import verify

    num_samples, problems = verify(args.folder, args.workers, args.decode)
    for problem in problems[:_MAX_PROBLEMS]:
        print(problem)
    if problems:
        print(f"{args.folder}: {len(problems)} problems; get or build these shards again")
        return 1
    print(f"{args.folder}: {num_samples:,} images, all as in the manifest")
    return 0


def _show(args: argparse.Namespace) -> int:
    from data_prep.show import describe

    print(describe(args.folder))
    if args.html is not None:
        from data_prep.contact import write_page

        target = args.folder / "show.html" if args.html == Path() else args.html
        write_page(args.folder, target)
        print(f"page       {target}")
    return 0


def _index(args: argparse.Namespace) -> int:
    from data_prep.index_tars import index_tars
    from data_prep.layouts.folders import read_classes
    from data_prep.show import describe
    from pipeline.data.labels import published

    pairs = build_command.read_pairs(args.split) or {}
    globs = {split: glob for glob, split in pairs.items()}
    classes = read_classes(args.classes_file) if args.classes_file else ()
    if args.label_space:
        classes = published(args.label_space).classes
    name = args.name or args.folder.resolve().name
    index_tars(args.folder, globs, classes, name, args.workers, args.label_field)
    print(describe(args.folder))
    return 0


def _labels(args: argparse.Namespace) -> int:
    from data_prep.labels_command import run_labels

    print(run_labels(args.a, args.b))
    return 0


def _synthetic(args: argparse.Namespace) -> int:
    from data_prep.synthetic import write_digits

    count = write_digits(args.out)
    print(f"{args.out}: {count:,} digits in 10 classes, 32x32 px JPEG")
    return 0


if __name__ == "__main__":
    sys.exit(main())
