"""The files of this checkout, and how large they are."""

import ast
import os
import statistics
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
PRODUCT = ("pipeline", "launch", "data_prep", "slurm", "benchmarks")


@dataclass(frozen=True)
class Source:
    """A Python file: its path from the root of the checkout, its text, its syntax tree."""

    path: str
    text: str
    tree: ast.Module

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def room(self) -> str:
        """The top folder."""
        return self.path.split("/")[0]

    @property
    def functions(self) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
        nodes = ast.walk(self.tree)
        return [n for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]

    @classmethod
    def of(cls, path: str, text: str) -> "Source":
        return cls(path, text, ast.parse(text))


def files_of(root: Path) -> list[Path]:
    """Return what git tracks or would track, as paths from `root`; without git, what lies there."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        paths = (Path(name) for name in listed.stdout.split("\0") if name)
        return sorted(path for path in paths if (root / path).is_file())
    return sorted(path.relative_to(root) for path in _walk(root))


def _walk(root: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if not name.startswith(".") and name != "__pycache__"]
        yield from (Path(folder) / name for name in files)


def report_sizes(terminalreporter: pytest.TerminalReporter) -> None:
    """Report the sizes that are goals, not limits: medians, and tests against source."""
    paths = [path for path in files_of(REPO) if path.suffix == ".py"]
    everything = [Source.of(str(path), (REPO / path).read_text("utf-8")) for path in paths]
    inside = [source for source in everything if source.room in PRODUCT and source.text.strip()]
    tests = [source for source in everything if source.room == "tests"]
    if not inside:
        return
    per_file = [len(source.lines) for source in inside]
    per_function = [_length(node) for source in inside for node in source.functions]
    ratio = sum(len(source.lines) for source in tests) / sum(per_file)
    terminalreporter.write_sep("-", "sizes")
    terminalreporter.write_line(f"files      {_spread(per_file)} lines (goal: median 130)")
    terminalreporter.write_line(f"functions  {_spread(per_function)} lines (goal: median 10)")
    terminalreporter.write_line(f"tests      {ratio:.2f} lines for a line of source (goal: 0.5)")


def _length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _spread(values: list[int]) -> str:
    middle = statistics.median(values)
    return f"{len(values):5}: median {middle:.0f}, longest {max(values)}"
