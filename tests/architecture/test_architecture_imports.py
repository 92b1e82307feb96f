"""The import rules of pyproject.toml hold here, and each of them can fail."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SKELETON = {
    "launch": "__init__ submit",
    "data_prep": "__init__ write",
    "pipeline": "__init__ __main__ recipe spec",
    "pipeline/data": "__init__ manifest reader stream",
    "pipeline/parallel": "__init__ deepspeed",
    "pipeline/run": "__init__ files",
    "pipeline/tracking": "__init__ client",
}
ROOMS = "jobs evaluate export report engine checkpoint models optim plan"


def lint_imports(root: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Check the packages below `root` against the rules of its pyproject.toml."""
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache", "--no-logo"]
    return subprocess.run(
        command, cwd=root, env=env, capture_output=True, text=True, timeout=120, check=False
    )


def add_import(root: Path, module: str, line: str) -> None:
    """Write `line` into a module of the miniature house."""
    (root / f"{module}.py").write_text(f"{line}\n", encoding="utf-8")


@pytest.fixture
def miniature(tmp_path: Path, repo: Path) -> Path:
    """The house with every room empty, under this project's own rules."""
    shutil.copy(repo / "pyproject.toml", tmp_path)
    rooms = {f"pipeline/{room}": "__init__" for room in ROOMS.split()}
    for folder, modules in {**SKELETON, **rooms}.items():
        (tmp_path / folder).mkdir()
        for module in modules.split():
            add_import(tmp_path, f"{folder}/{module}", "")
    return tmp_path


def test_the_import_rules_hold(repo: Path, clean_env: dict[str, str]) -> None:
    done = lint_imports(repo, clean_env)
    assert done.returncode == 0, done.stdout + done.stderr


def test_allowed_imports_pass(miniature: Path, clean_env: dict[str, str]) -> None:
    add_import(miniature, "launch/submit", "import submitit, pipeline.recipe")
    add_import(miniature, "data_prep/write", "import webdataset, pipeline.data.manifest")
    add_import(miniature, "pipeline/data/stream", "import torch, webdataset, pipeline.plan")
    add_import(miniature, "pipeline/parallel/deepspeed", "import deepspeed, pipeline.models")
    add_import(miniature, "pipeline/tracking/client", "import mlflow, pipeline.run.files")
    add_import(miniature, "pipeline/spec", "import omegaconf")
    done = lint_imports(miniature, clean_env)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "line", "rule"),
    [
        ("launch/submit", "import data_prep.write", "launch and data_prep stand above"),
        ("pipeline/spec", "import launch.submit", "launch and data_prep stand above"),
        ("pipeline/engine/__init__", "import pipeline.recipe", "the rooms of pipeline"),
        ("pipeline/models/__init__", "import pipeline.data", "the rooms of pipeline"),
        ("pipeline/tracking/client", "import pipeline.checkpoint", "the rooms of pipeline"),
        ("pipeline/garage", "", "the rooms of pipeline"),
        ("pipeline/plan/__init__", "def f():\n    import torch", "need no torch"),
        ("pipeline/run/files", "from torch import nn", "need no torch"),
        ("data_prep/write", "import pipeline.data.reader", "data_prep sees only"),
        ("data_prep/write", "import pipeline.recipe", "data_prep sees only"),
        ("pipeline/jobs/__init__", "import mlflow", "mlflow is imported only"),
        ("pipeline/engine/__init__", "from deepspeed import x", "deepspeed is imported only"),
        ("pipeline/jobs/__init__", "import submitit", "submitit is imported only"),
        ("pipeline/data/reader", "import webdataset", "webdataset is imported only"),
        ("pipeline/recipe", "import omegaconf", "omegaconf is imported only"),
        ("pipeline/models/__init__", "import timm", "timm is optional"),
    ],
)
def test_a_forbidden_import_breaks_its_rule(
    miniature: Path, clean_env: dict[str, str], module: str, line: str, rule: str
) -> None:
    add_import(miniature, module, line)
    done = lint_imports(miniature, clean_env)
    assert done.returncode != 0, done.stdout
    broken = [text for text in done.stdout.splitlines() if rule in text and "BROKEN" in text]
    assert broken, done.stdout
