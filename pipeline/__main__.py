"""`python -m pipeline JOB ...`: parse, build, run, close; the jobs decide everything else.

Imports are late on purpose: `--help` must answer at once, and a wrong config must be refused
before torch is loaded.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.spec import Failure, Misuse

Run = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one job; returns the process exit code (0 done, 1 failed, 2 wrong use, 75 saved)."""
    options = _options(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        code = int(options.run(options))
        sys.stdout.flush()
        return code
    except Misuse as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Failure as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse; overrides may also stand behind options, where argparse does not look for them."""
    parser = _parser()
    options, late = parser.parse_known_args(arguments)
    strange = [word for word in late if word.startswith("-") or "=" not in word]
    if strange or (late and not hasattr(options, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(strange or late)}")
    if late:
        options.overrides = [*options.overrides, *late]
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__)
    jobs = parser.add_subparsers(title="jobs", metavar="JOB", required=True)

    plan = _job(jobs, "plan", _plan, "print a config's stages, sizes, rates and cost")
    _config(plan)
    _hardware(plan)
    train = _job(jobs, "train", _train, "train a config (one process per rank)")
    _config(train)
    train.add_argument(
        "--accept-changes", action="store_true", help="resume although the recipe changed"
    )

    evaluate = _job(jobs, "evaluate", _evaluate, "score a registered model or a run's weights")
    evaluate.add_argument("model", help="models:/NAME@alias, a package folder or a run folder")
    evaluate.add_argument("data", help="folder or URL of shards")
    evaluate.add_argument("--split", default="eval")
    evaluate.add_argument("--px", type=int, help="image size (default: the model's own)")
    evaluate.add_argument("--batch", type=int, default=128)
    evaluate.add_argument("--cache", default="", help="folder for the shards of a URL")

    transfer = _job(jobs, "transfer", _transfer, "finetune a model on a suite of tasks")
    transfer.add_argument("model", help="models:/NAME@alias or a package folder")
    transfer.add_argument("suite", type=Path, help="YAML file: the tasks")
    transfer.add_argument("overrides", nargs="*", help="key=value of the suite: name, overrides")
    transfer.add_argument("--only", action="append", help="run just this task (repeatable)")

    predict = _job(jobs, "predict", _predict, "name what is on images")
    predict.add_argument("images", nargs="+", type=Path)
    predict.add_argument("--model", required=True, help="models:/NAME@alias or package folder")
    predict.add_argument("--top", type=int, default=5)

    export = _job(jobs, "export", _export, "write a registered model's package to a folder")
    export.add_argument("model", help="models:/NAME@alias or a run folder")
    export.add_argument("folder", type=Path)

    port = _job(jobs, "port", _port, "make a package of weights from elsewhere")
    _config(port)
    port.add_argument("--to", required=True, type=Path, help="a new folder")

    register = _job(jobs, "register", _register, "register the package of a finished run")
    register.add_argument("run_folder", type=Path)

    promote = _job(jobs, "promote", _promote, "make a registered version the champion")
    promote.add_argument("model", help="models:/NAME/VERSION or models:/NAME@alias")

    sync = _job(jobs, "sync", _sync, "send what a run could not send to MLflow")
    sync.add_argument("run_folder", type=Path)

    report = _job(jobs, "report", _report, "write one HTML page about runs")
    report.add_argument("run_folders", nargs="+", type=Path)
    report.add_argument("--output", type=Path, default=Path("report.html"))
    report.add_argument("--title", default="Training report")
    report.add_argument("--transfer", type=Path, help="transfer.json of a transfer job")
    return parser


def _job(jobs: Any, name: str, run: Run, text: str) -> argparse.ArgumentParser:
    parser = jobs.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run)
    return parser


def _config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="a file of configs/")
    parser.add_argument("overrides", nargs="*", help="key=value, for example lr.peak=0.1")


def _hardware(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what it would cost (docs/planning.md)")
    group.add_argument("--gpu", help="a card, for example h100; others are named where it is wrong")
    group.add_argument("--nodes", type=int, help="nodes of the cluster (default: 1)")
    group.add_argument("--gpus-per-node", type=int, help="default: 8")
    group.add_argument("--network-gbit", type=float, help="of a node, all adapters (default: 400)")
    group.add_argument("--rates", type=Path, help="YAML file of measured images/s")
    group.add_argument("--scale", metavar="A..B", help="numbers of cards to compare, as 1..512")
    group.add_argument("--plot", type=Path, help="SVG file for the curve of --scale")
    group = parser.add_argument_group("what fits into this node, found by trial")
    group.add_argument("--measure", action="store_true", help="print the largest micro-batches")
    group.add_argument("--ranks", type=int, help="that will share the run (default: 1)")
    group.add_argument("--memory-gib", type=float, help="of a rank (default: what is here)")


def _plan(options: argparse.Namespace) -> int:
    from pipeline.jobs.plan import Hardware, Measuring, plan

    if not options.measure and (options.ranks, options.memory_gib) != (None, None):
        raise Misuse("--ranks and --memory-gib are of --measure; add it")
    trial = Measuring(1 if options.ranks is None else options.ranks, options.memory_gib)
    hardware = Hardware(
        gpu=options.gpu,
        nodes=options.nodes,
        gpus_per_node=options.gpus_per_node,
        network_gbit=options.network_gbit,
        rates=options.rates,
        scale=options.scale,
        plot=options.plot,
    )
    return plan(options.config, options.overrides, hardware, trial if options.measure else None)


def _train(options: argparse.Namespace) -> int:
    from pipeline.jobs.train import train

    return train(options.config, options.overrides, options.accept_changes)


def _evaluate(options: argparse.Namespace) -> int:
    from pipeline.jobs.evaluate import evaluate

    where = options.model, options.data, options.split
    return evaluate(*where, options.px, options.batch, options.cache)


def _transfer(options: argparse.Namespace) -> int:
    from pipeline.jobs.transfer import transfer

    return transfer(options.model, options.suite, options.only, options.overrides)


def _predict(options: argparse.Namespace) -> int:
    from pipeline.jobs.predict import predict

    return predict(options.model, options.images, options.top)


def _export(options: argparse.Namespace) -> int:
    from pipeline.jobs.export import export

    return export(options.model, options.folder)


def _port(options: argparse.Namespace) -> int:
    from pipeline.jobs.port import port

    return port(options.config, options.overrides, options.to)


def _register(options: argparse.Namespace) -> int:
    from pipeline.jobs.register import register

    return register(options.run_folder)


def _promote(options: argparse.Namespace) -> int:
    from pipeline.jobs.register import promote

    return promote(options.model)


def _sync(options: argparse.Namespace) -> int:
    from pipeline.jobs.sync import sync

    return sync(options.run_folder)


def _report(options: argparse.Namespace) -> int:
    from pipeline.jobs.report import report

    return report(options.run_folders, options.output, options.title, options.transfer)


if __name__ == "__main__":
    sys.exit(main())
