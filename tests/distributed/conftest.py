"""Real ranks: processes that join one process group and run `python -m pipeline` jobs."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.run.folder import RunFolder
from tests.distributed.ranks import Ranks, Starters

CONFIG = "configs/demo.yaml"


@dataclass
class Launcher:
    """Starts ranks of `python -m pipeline train` on this host."""

    runs: Path
    data: Path
    starters: Starters
    started: list[Ranks] = field(default_factory=list)

    def folder(self, name: str) -> RunFolder:
        return RunFolder(self.runs / name)

    def start(self, name: str, world: int, *overrides: str) -> Ranks:
        words = ["pipeline", "train", CONFIG, f"name={name}", f"runs={self.runs}"]
        words += [f"data={self.data}", "tracking.enabled=false", *overrides]
        self.runs.mkdir(exist_ok=True)
        self.started.append(self.starters.start(words, world, self.runs / f"{name}.log"))
        return self.started[-1]

    def run(self, name: str, world: int, *overrides: str) -> RunFolder:
        """Run to the end; anything but success fails the test with the log."""
        self.start(name, world, *overrides).finish()
        return self.folder(name)

    def run_once(self, name: str, world: int, *overrides: str) -> RunFolder:
        """Run to the end, or return what an earlier call with this name ran."""
        folder = self.folder(name)
        return folder if folder.path.is_dir() else self.run(name, world, *overrides)


@pytest.fixture(scope="package")
def starters() -> Iterator[Starters]:
    starters = Starters()
    yield starters
    starters.close()


@pytest.fixture
def launcher(tmp_path: Path, digits: Path, starters: Starters) -> Iterator[Launcher]:
    """Starts this test's ranks; what is left of them ends with the test."""
    yield from launching(Launcher(tmp_path / "runs", digits, starters))


@pytest.fixture(scope="module")
def references(
    tmp_path_factory: pytest.TempPathFactory, digits: Path, starters: Starters
) -> Iterator[Launcher]:
    """Starts ranks whose undisturbed runs several tests of a file compare theirs with."""
    yield from launching(Launcher(tmp_path_factory.mktemp("references") / "runs", digits, starters))


def launching(launcher: Launcher) -> Iterator[Launcher]:
    yield launcher
    for ranks in launcher.started:
        ranks.kill()
