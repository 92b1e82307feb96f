"""What the rules of the house are checked on: the files of this checkout, parsed once."""

import os
from pathlib import Path

import pytest

from tests.architecture.sources import PRODUCT, REPO, Source, files_of


@pytest.fixture(scope="session")
def files() -> list[Path]:
    """Every file of the project, as paths from the root of the checkout."""
    return files_of(REPO)


@pytest.fixture(scope="session")
def sources(files: list[Path]) -> list[Source]:
    """Every Python file of the project, tests included."""
    paths = [path for path in files if path.suffix == ".py"]
    return [Source.of(path.as_posix(), (REPO / path).read_text("utf-8")) for path in paths]


@pytest.fixture(scope="session")
def product(sources: list[Source]) -> list[Source]:
    """The Python files that are not tests."""
    return [source for source in sources if source.room in PRODUCT]


@pytest.fixture(scope="session")
def source_of() -> type[Source]:
    """Builds a `Source` of a made-up file, for tests that a rule can fail."""
    return Source


@pytest.fixture(scope="session")
def clean_env() -> dict[str, str]:
    """The environment without coverage's variables, which would slow and crowd what is timed."""
    return {key: value for key, value in os.environ.items() if not key.startswith("COV")}
