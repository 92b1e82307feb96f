"""`python -m launch COMMAND ...`: parse and call; the commands decide everything else."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

MISUSE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns 0 done, 1 failed, 2 wrong use, 75 saved and to be continued."""
    options = _parser().parse_args(arguments)
    from launch.cluster import NoAnswer
    from launch.rollcall import Absent
    from pipeline.spec import Misuse

    try:
        return options.run(options)
    except Misuse as error:
        print(f"error: {error}", file=sys.stderr)
        return MISUSE
    except (NoAnswer, Absent) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


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

    preflight = commands.add_parser("preflight", help="check a config before it is queued")
    preflight.add_argument("--ranks", type=_count, help="default: what launch/NAME.sh asks for")
    preflight.add_argument("config", type=Path)
    preflight.add_argument("overrides", nargs="*", help="key=value")
    preflight.set_defaults(run=_preflight)

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


def _supervise(options: argparse.Namespace) -> int:
    from launch.supervise import supervise

    return supervise([options.job, *options.rest], options.local)


def _submit(options: argparse.Namespace) -> int:
    from launch.submit import submit

    return submit(options.files, options.dry_run, options.wait)


def _preflight(options: argparse.Namespace) -> int:
    from launch.preflight import preflight

    return preflight(options.config, options.overrides, options.ranks)


def _demo(options: argparse.Namespace) -> int:
    from launch.demo import demo

    return demo()


if __name__ == "__main__":
    sys.exit(main())
