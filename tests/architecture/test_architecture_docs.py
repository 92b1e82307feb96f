"""The pages tell the truth: links resolve, and every command that they name exists."""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
TARGET = re.compile(r"^([a-z]+):", re.M)
MAKE = re.compile(r"(?:^|[`\n])\s*(?:\w+=\S+ )*make ([a-z]+)")
SUBCOMMAND = re.compile(r"python -m (pipeline|launch|data_prep) ([a-z]+(?:\|[a-z]+)*)")
FILE = re.compile(r"(?<![\w/.-])((?:launch|slurm|configs|docs|tests)/[\w/.-]*\w)")


@dataclass(frozen=True)
class Truth:
    """What exists: the checkout, its make targets, the subcommands of each package."""

    root: Path
    targets: frozenset[str]
    subcommands: dict[str, frozenset[str]]


def lies(page: Path, truth: Truth) -> list[str]:
    """Name the links, commands and files of a page that lead nowhere."""
    text = page.read_text("utf-8")
    links = [link for link in LINK.findall(text) if "://" not in link]
    found = [f"link {link}" for link in links if not (page.parent / link).exists()]
    found += [f"make {name}" for name in MAKE.findall(text) if name not in truth.targets]
    for package, names in SUBCOMMAND.findall(text):
        known = truth.subcommands[package]
        found += [f"python -m {package} {n}" for n in names.split("|") if n not in known]
    named = {name for name in FILE.findall(text) if "NAME" not in name}
    found += [f"file {name}" for name in sorted(named) if not (truth.root / name).exists()]
    return [f"{page.name}: {item} does not exist" for item in found]


@pytest.fixture(scope="module")
def truth(repo: Path, clean_env: dict[str, str]) -> Truth:
    """The truth about this checkout, subcommands taken from each package's own help."""
    subcommands = {}
    for package in ("pipeline", "launch", "data_prep"):
        command = [sys.executable, "-m", package, "--help"]
        done = subprocess.run(
            command, cwd=repo, env=clean_env, capture_output=True, text=True, check=True
        )
        subcommands[package] = frozenset(re.findall(r"^ {2,6}([a-z]+)\b", done.stdout, re.M))
    targets = frozenset(TARGET.findall((repo / "Makefile").read_text("utf-8")))
    return Truth(repo, targets, subcommands)


def test_no_page_names_what_does_not_exist(repo: Path, truth: Truth) -> None:
    pages = [repo / "README.md", *sorted((repo / "docs").glob("**/*.md"))]
    found = [lie for page in pages for lie in lies(page, truth)]
    assert not found, "\n".join(found)


def test_every_make_target_has_a_line_of_help(repo: Path) -> None:
    makefile = (repo / "Makefile").read_text("utf-8")
    done = subprocess.run(["make"], cwd=repo, capture_output=True, text=True, check=True)
    phony = re.findall(r"^\.PHONY: (.*)$", makefile, re.M)[0].split()
    assert sorted(phony) == sorted(re.findall(r"^make ([a-z]+) ", done.stdout, re.M))


@pytest.mark.parametrize(
    "text",
    [
        "see [the design](docs/gone.md)",
        "`make coffee`",
        "run `python -m pipeline fly` now",
        "run `python -m pipeline train|fly` now",
        "sbatch launch/gone.sh",
    ],
)
def test_a_lie_is_found(tmp_path: Path, text: str) -> None:
    page = tmp_path / "README.md"
    page.write_text(f"{text}\n", "utf-8")
    assert lies(page, _small(tmp_path))


def test_a_true_page_passes(tmp_path: Path) -> None:
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch/big.sh").touch()
    page = tmp_path / "README.md"
    page.write_text(
        "`make test`, `python -m pipeline train`, [script](launch/big.sh#top), launch/big.sh, "
        "[paper](https://arxiv.org/abs/2104.00298), launch/NAME.sh\n",
        "utf-8",
    )
    assert not lies(page, _small(tmp_path))


def _small(root: Path) -> Truth:
    names = {"pipeline": frozenset({"train"}), "launch": frozenset(), "data_prep": frozenset()}
    return Truth(root, frozenset({"test"}), names)
