"""Fixtures that every room's tests share."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from pipeline.run.folder import RunFolder
from pipeline.tracking.events import read_events
from tests import shares

# What is tested here is behaviour; a busy machine makes any example slow.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
REPO = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(shares)


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """Give back what a test changed of the signals, which others and their processes would have."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the checkout."""
    return REPO


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images; tests that want them skip where it is missing."""
    folder = Path(os.environ.get("EFFV2_TEST_DATA", REPO.parent / "shared" / "data"))
    if not (folder / "imagenet-sample.tar").is_file():
        pytest.skip(f"no real images at {folder}; set EFFV2_TEST_DATA to a folder with them")
    return folder


def losses(folder: RunFolder) -> dict[int, float]:
    """Return the loss of every step, as the run itself recorded it (the last time it ran)."""
    found: dict[int, float] = {}
    for event in read_events(folder.spool):
        if event.kind == "metrics" and "train/loss" in event.values["values"]:
            found[event.values["step"]] = float(event.values["values"]["train/loss"])
    return found


@pytest.fixture(scope="session")
def read_losses() -> Callable[[RunFolder], dict[int, float]]:
    """The function that returns the loss of every step of a run."""
    return losses


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of scikit-learn's digits, as the demo makes them."""
    base = tmp_path_factory.mktemp("digits")
    for command in (
        ["synthetic", "digits", str(base / "raw")],
        ["build", str(base / "raw"), str(base / "shards"), "--holdout", "0.2"],
    ):
        subprocess.run(
            [sys.executable, "-m", "data_prep", *command], cwd=REPO, check=True, timeout=120
        )
    return base / "shards"
