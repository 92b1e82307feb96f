"""No config is dead: each is started by a script, tested, documented or extended."""

import re
import subprocess
from pathlib import Path

import pytest

EXTENDS = re.compile(r"^extends:\s*(.*(?:\n\s*-.*)*)", re.M)
DATA = re.compile(r"^\s*(?:data|path):\s*[\"']?([\w./-]+)", re.M)
FILE = re.compile(r"^config:\s*(\S+)", re.M)
CONFIG = re.compile(r"configs/([\w/-]+)\.yaml")


def dead_configs(root: Path) -> list[str]:
    """Name the files of configs/ that nothing names: no script, code, test, page or config."""
    configs = sorted((root / "configs").rglob("*.yaml"))
    outside = _texts(root)
    found = []
    for path in configs:
        name = path.relative_to(root / "configs").with_suffix("").as_posix()
        others = [other.read_text("utf-8") for other in configs if other != path]
        if not (_extended(name, others) or _as_data(name, others) or _named(name, outside)):
            found.append(f"configs/{name}.yaml: nothing starts, extends, tests or documents it")
    return found


def lost_scripts(root: Path) -> list[str]:
    """Name the launch scripts that start no config, or one that does not exist."""
    found = []
    for script in sorted((root / "launch").glob("*.sh")):
        named = CONFIG.findall(script.read_text("utf-8"))
        missing = [name for name in named if not (root / f"configs/{name}.yaml").is_file()]
        if not named or missing:
            found.append(f"launch/{script.name}: {missing or 'names no file of configs/'}")
    return found


def _texts(root: Path) -> str:
    names = ("launch/*.sh", "launch/*.py", "slurm/*", "docs/**/*.md", "README.md", "tests/**/*.py")
    paths = [path for name in names for path in root.glob(name) if path.is_file()]
    return "\n".join(path.read_text("utf-8") for path in paths if path.name != Path(__file__).name)


def _extended(name: str, others: list[str]) -> bool:
    """A part is extended by its name; a suite names its config by file."""
    named = [match for text in others for match in EXTENDS.findall(text)]
    return any(
        re.search(rf"\b{name}\b", match) for match in named + FILE.findall("\n".join(others))
    )


def _as_data(name: str, others: list[str]) -> bool:
    """A data card is named by `data: NAME`, or by a `path:` inside it."""
    card = name.removeprefix("data/")
    return card != name and any(card in DATA.findall(text) for text in others)


def _named(name: str, text: str) -> bool:
    """A config is named by its path or file, or by its bare name in quotes or backticks."""
    word = re.escape(name)
    by_path = rf"configs/{word}(?![\w-])|(?<![\w-]){word}\.yaml"
    return re.search(rf"{by_path}|([\"'`]){word}\1", text) is not None


def test_every_config_is_used_or_documented(repo: Path) -> None:
    assert list((repo / "configs").glob("*.yaml")), "configs/ is empty"
    found = dead_configs(repo)
    assert not found, "\n".join(found)


def test_every_launch_script_starts_a_config_that_exists(repo: Path) -> None:
    assert list((repo / "launch").glob("*.sh")), "launch/ has no scripts"
    found = lost_scripts(repo)
    assert not found, "\n".join(found)


def test_every_shell_script_is_valid(repo: Path, files: list[Path]) -> None:
    scripts = [path for path in files if path.suffix == ".sh"] + [Path(".ci/run")]
    for script in scripts:
        done = subprocess.run(["bash", "-n", script], cwd=repo, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A checkout with one script, one config, one part and one data card, all in use."""
    for folder in ("configs/parts", "configs/data", "launch"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "launch/big.sh").write_text("exec job.sh train configs/big.yaml\n", "utf-8")
    (tmp_path / "configs/big.yaml").write_text("extends: [parts/slow]\ndata: birds\n", "utf-8")
    (tmp_path / "configs/parts/slow.yaml").write_text("lr: {peak: 1}\n", "utf-8")
    (tmp_path / "configs/data/birds.yaml").write_text("num_train: 3\n", "utf-8")
    return tmp_path


def test_configs_in_use_pass(small: Path) -> None:
    assert not dead_configs(small) + lost_scripts(small)


@pytest.mark.parametrize("name", ["big2", "parts/fast", "data/fish"])
def test_a_dead_config_is_found(small: Path, name: str) -> None:
    (small / f"configs/{name}.yaml").write_text("name: x\n", "utf-8")
    assert [line for line in dead_configs(small) if name in line]


def test_a_documented_config_passes(small: Path) -> None:
    (small / "configs/big2.yaml").write_text("name: x\n", "utf-8")
    (small / "README.md").write_text("`configs/big2.yaml` is the second one\n", "utf-8")
    assert not dead_configs(small)


@pytest.mark.parametrize("line", ["train configs/gone.yaml", "true"])
def test_a_script_without_a_config_is_found(small: Path, line: str) -> None:
    (small / "launch/lost.sh").write_text(f"{line}\n", "utf-8")
    assert lost_scripts(small)
