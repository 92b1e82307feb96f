"""How one run of the tests is shared out to workers (`make test`), and what the whole run tells.

A file is a share, and all that starts ranks is one: the tests on the SLURM testbed, which mostly
wait, then those of ranks on this host. It comes first, then files with slow tests, so that the
small files level the workers' ends. One process runs all in pytest's own order.
"""

import os
import sqlite3
from collections.abc import Iterator, Set
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

from tests.architecture.sources import report_sizes

WHOLE = ("tests/slurm/", "tests/distributed/")
"""Folders whose tests share a cluster or warm processes, and each take the machine's cores."""
RANKS = "ranks"


class Shares(LoadFileScheduling):
    """Hands out files, and the folders of WHOLE together in one piece."""

    def _split_scope(self, nodeid: str) -> str:
        return share_of(nodeid)


def share_of(nodeid: str) -> str:
    """Name the share that a test belongs to."""
    return RANKS if nodeid.startswith(WHOLE) else nodeid.partition("::")[0]


def place(nodeid: str, slow: Set[str]) -> int:
    """Return where a test stands: WHOLE, then the shares with `slow` tests, then the others."""
    whole = [index for index, folder in enumerate(WHOLE) if nodeid.startswith(folder)]
    return whole[0] if whole else len(WHOLE) + (share_of(nodeid) not in slow)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        slow = {share_of(item.nodeid) for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: place(item.nodeid, slow))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Shares | None:
    if config.getoption("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False  # the items' own order counts
    return Shares(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """Let only pytest-cov measure the workers.

    This process's coverage asks for its own in whatever is started, which in a worker would be a
    second one that writes its file while the others are already combined.
    """
    os.environ.pop("COVERAGE_PROCESS_CONFIG", None)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtestloop(session: pytest.Session) -> Iterator[None]:
    """Leave out what killed processes have half written, before pytest-cov combines it all."""
    result = yield
    config = session.config
    if not hasattr(config, "workerinput") and config.getoption("cov_source", None):
        data = Path(os.environ.get("COVERAGE_FILE", config.rootpath / ".coverage"))
        halves = drop_halves(data.parent)
        if halves:
            print(f"\ncoverage: {halves} half-written files of killed processes are left out")
    return result


def drop_halves(folder: Path) -> int:
    """Delete the coverage files that sqlite cannot read; returns how many there were."""
    halves = [path for path in folder.glob(".coverage.*") if not _whole(path)]
    for path in halves:
        path.unlink(missing_ok=True)
    return len(halves)


def _whole(path: Path) -> bool:
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            database.execute("select version from coverage_schema")
            return database.execute("pragma quick_check(1)").fetchone() == ("ok",)
    except sqlite3.Error:
        return False


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report the sizes that are goals, where the rules of the house were checked."""
    reports = [report for group in terminalreporter.stats.values() for report in group]
    if any(getattr(r, "nodeid", "").startswith("tests/architecture/") for r in reports):
        report_sizes(terminalreporter)
