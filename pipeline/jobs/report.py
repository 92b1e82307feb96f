"""`pipeline report`: one self-contained HTML page about runs, and a transfer suite if there is one.

Works while a run goes on and after its shards are gone; pictures appear where the shards are.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.data.reader import ShardReader
from pipeline.data.sources import open_index, open_manifest
from pipeline.jobs.disk import naming_disk
from pipeline.recipe import load_recorded
from pipeline.report.collect import read_run, read_transfer
from pipeline.report.page import write_report
from pipeline.run.folder import DONE, RunFolder
from pipeline.spec import Failure, Misuse


def report(folders: Sequence[Path], output: Path, title: str, transfer: Path | None) -> int:
    """Write the page to `output` and say where it is.

    Raises:
        Misuse: a folder is no run, or `transfer` is no result of a transfer job.
        Failure: the disk does not take the page.
    """
    runs = [RunFolder(path.resolve()) for path in folders]
    reports = [read_run(folder, _images(folder)) for folder in runs]
    suite = read_transfer(transfer) if transfer is not None else None
    with naming_disk(output):
        page = write_report(output, title, reports, suite)
    print(f"report: {page}")
    return DONE


def _images(folder: RunFolder) -> Callable[[int], bytes] | None:
    """Return the function from a sample id of the run's eval split to its JPEG, if it is there."""
    data = load_recorded(folder).data
    try:
        index = open_index(data.path, data.shards, open_manifest(data.path, data.shards), data.eval)
    except (Misuse, Failure):
        return None
    return ShardReader(index).read
