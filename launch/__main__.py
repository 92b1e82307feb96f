"""`python -m launch COMMAND ...`: parse and call; the commands decide everything else."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

MISUSE = 2
_PREP = "submit prep"
"""A command of two words; a config of that name is `submit ./prep`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns 0 done, 1 failed, 2 wrong use, 75 saved and to be continued."""
    words, build = _split(list(sys.argv[1:] if arguments is None else arguments))
    options = _parser().parse_args(words)
    options.build = build
    from launch.cluster import NoAnswer
    from launch.rollcall import Absent
    from pipeline.spec import Failure, Misuse

    try:
        return options.run(options)
    except Misuse as error:
        print(f"error: {error}", file=sys.stderr)
        return MISUSE
    except (NoAnswer, Absent, Failure) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Return the words for the parser and, of `submit prep ... -- BUILD`, those of the build."""
    if words[:2] != _PREP.split():
        return words, []
    end = words.index("--") if "--" in words else len(words)
    return [_PREP, *words[2:end]], words[end + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m launch", description=__doc__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    supervise = commands.add_parser("supervise", help="run a pipeline job inside a SLURM job")
    supervise.add_argument("--local", type=_count, metavar="RANKS", help="without SLURM")
    _job(supervise)

    local = commands.add_parser("local", help="run a pipeline job as processes of this host")
    local.add_argument("--ranks", type=_count, required=True, dest="local", metavar="RANKS")
    _job(local)

    submit = commands.add_parser("submit", help="submit a chain of jobs that wait for each other")
    submit.add_argument("files", nargs="+", type=Path, help="a chain, or configs in their order")
    submit.add_argument("--dry-run", action="store_true", help="show the jobs, submit nothing")
    submit.add_argument("--wait", action="store_true", help="follow the jobs until all have ended")
    submit.set_defaults(run=_submit)

    prep = commands.add_parser(
        _PREP,
        help="submit a build of shards as arrays of jobs",
        usage="python -m launch submit prep [options] -- SOURCE OUT [options of data_prep build]",
    )
    add = prep.add_argument
    add("--elements", type=_count, default=8, metavar="K", help="jobs that share the work (8)")
    add("--array-limit", type=_count, default=0, metavar="L", help="at most L of them at once")
    add("--cpus", type=_count, default=8, metavar="C", help="processes and cores of each (8)")
    add("--time", metavar="T", help="limit of each, as sbatch reads it (24 hours)")
    add("--mem", metavar="M", help="memory of each, as sbatch reads it")
    add("--partition", metavar="P", help="default: slurm/site.env's, or the cluster's")
    add("--dry-run", action="store_true", help="check and show the jobs, submit nothing")
    add("--wait", action="store_true", help="follow the jobs until all have ended")
    prep.set_defaults(run=_prep)

    preflight = commands.add_parser("preflight", help="check a config before it is queued")
    preflight.add_argument("--ranks", type=_count, help="default: what launch/NAME.sh asks for")
    preflight.add_argument("config", type=Path)
    preflight.add_argument("overrides", nargs="*", help="key=value")
    preflight.set_defaults(run=_preflight)

    status = commands.add_parser("status", help="how runs are: state, step, time left, failures")
    status.add_argument("runs", nargs="+", metavar="RUN", help="a name below runs/, or a folder")
    status.add_argument("--json", action="store_true", help="for programs: one object a line")
    status.add_argument("--watch", type=_seconds, metavar="S", help="again every S seconds")
    status.set_defaults(run=_status)

    demo = commands.add_parser("demo", help="everything once, small: shards to report")
    demo.set_defaults(run=_demo)
    return parser


def _job(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", help="the pipeline's job: train, transfer, evaluate ...")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="its arguments")
    parser.set_defaults(run=_supervise)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return number


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: expected seconds above 0")
    return seconds


def _supervise(options: argparse.Namespace) -> int:
    from launch.supervise import supervise

    return supervise([options.job, *options.rest], options.local)


def _submit(options: argparse.Namespace) -> int:
    from launch.submit import submit

    return submit(options.files, options.dry_run, options.wait)


def _prep(options: argparse.Namespace) -> int:
    from launch.prep import prep_of, submit_prep

    asked = {"cpus_per_task": options.cpus, "time": options.time, "mem": options.mem,
             "partition": options.partition}  # fmt: skip
    prep = prep_of(options.build, options.elements, options.array_limit, asked)
    return submit_prep(prep, options.dry_run, options.wait)


def _preflight(options: argparse.Namespace) -> int:
    from launch.preflight.command import preflight

    return preflight(options.config, options.overrides, options.ranks)


def _status(options: argparse.Namespace) -> int:
    from launch.status import status

    return status(options.runs, options.json, options.watch)


def _demo(options: argparse.Namespace) -> int:
    from launch.demo import demo

    return demo()


if __name__ == "__main__":
    sys.exit(main())
