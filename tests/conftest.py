"""Fixtures that every room's tests share."""

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent


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
