"""The lock pins every dependency by version alone, and the tooling's files are what they say."""

import os
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.]+)")


def pins(lock: str) -> dict[str, str]:
    """Read a lock: normalised name to version.

    Raises:
        ValueError: a line is not `name==version` (an address, a local path, a range, an option).
    """
    found = {}
    for number, line in enumerate(lock.splitlines(), 1):
        if line.startswith("#"):
            continue
        match = PIN.fullmatch(line)
        if not match:
            raise ValueError(f"line {number} is not name==version: {line}")
        found[canonicalize_name(match[1])] = match[2]
    return found


def unlocked(requirements: list[str], locked: dict[str, str]) -> list[str]:
    """Name the requirements that the lock leaves open or contradicts."""
    found = []
    for requirement in map(Requirement, requirements):
        version = locked.get(canonicalize_name(requirement.name))
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{requirement}: locked is {version}")
    return found


def test_the_lock_pins_every_dependency_by_version_alone(repo: Path) -> None:
    project = tomllib.loads((repo / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    locked = pins((repo / "requirements.lock").read_text("utf-8"))
    assert not unlocked(wanted, locked)
    assert "effnet-cluster" not in locked


@pytest.mark.parametrize(
    "line", ["torch @ https://host/torch", "-e .", "torch>=2", "file:///x.whl", "--hash=x", ""]
)
def test_a_lock_line_with_more_than_a_version_is_refused(line: str) -> None:
    assert pins("# made by hand\nnumpy==2.0\n") == {"numpy": "2.0"}
    with pytest.raises(ValueError, match="line 2"):
        pins(f"numpy==2.0\n{line}\n")


def test_a_dependency_that_is_not_locked_is_found() -> None:
    assert not unlocked(["torch>=2.11"], {"torch": "2.15.0"})
    assert unlocked(["torch>=2.11"], {"torch": "2.10.0"})
    assert unlocked(["torch>=2.11"], {})


def test_what_a_person_or_a_machine_starts_is_executable(repo: Path) -> None:
    started = [repo / ".ci/run", repo / "slurm/testbed"]
    assert not [path for path in started if not os.access(path, os.X_OK)]


def test_the_licence_is_the_one_that_is_named(repo: Path) -> None:
    project = tomllib.loads((repo / "pyproject.toml").read_text("utf-8"))["project"]
    text = (repo / "LICENSE").read_text("utf-8")
    assert project["license"] == "Apache-2.0"
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
