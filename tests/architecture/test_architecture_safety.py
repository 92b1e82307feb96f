"""No data is run as code: nothing is unpickled, unpacked blindly or read by a full YAML loader."""

import ast
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.architecture.sources import Source

PICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
STRICT_YAML = "pipeline/spec.py"
"""The one file with a loader of its own, a SafeLoader that refuses more."""


def unsafe_calls(source: "Source") -> list[str]:
    """Name calls and imports that could run what they read."""
    found = []
    for node in ast.walk(source.tree):
        reason = _bad_import(node) or _bad_call(node, source.path)
        if reason:
            found.append(f"{source.path}:{_line(node)}: {reason}")
    return found


def unguarded_webdataset(source: "Source") -> list[str]:
    """`WDS_SECURE` is set above every import of webdataset, which reads it while importing."""
    first = min((_line(node) for node in ast.walk(source.tree) if _sets_secure(node)), default=None)
    imports = [_line(n) for n in ast.walk(source.tree) if "webdataset" in _imported(n)]
    return [
        f"{source.path}:{line}: webdataset is imported before WDS_SECURE is set to 1"
        for line in imports
        if first is None or first > line
    ]


def _line(node: ast.AST) -> int:
    return getattr(node, "lineno", 0)


def _imported(node: ast.AST) -> set[str]:
    """Return the top packages that a statement imports."""
    if isinstance(node, ast.Import):
        return {name.name.split(".")[0] for name in node.names}
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return {node.module.split(".")[0]}
    return set()


def _bad_import(node: ast.AST) -> str | None:
    names = sorted(_imported(node) & PICKLERS)
    return f"{names[0]} runs code from its input" if names else None


def _bad_call(node: ast.AST, path: str) -> str | None:
    if not isinstance(node, ast.Call):
        return None
    name = ast.unparse(node.func)
    keywords = {item.arg: ast.unparse(item.value) for item in node.keywords}
    if name == "torch.load" and keywords.get("weights_only") != "True":
        return "torch.load without weights_only=True"
    if name.endswith((".extractall", "unpack_archive")):
        return f"{name} writes wherever the archive says"
    if name in {"np.load", "numpy.load"} and keywords.get("allow_pickle", "False") != "False":
        return "numpy.load with allow_pickle"
    if name in {"yaml.load", "yaml.load_all"} and path != STRICT_YAML:
        loader = keywords.get("Loader") or (ast.unparse(node.args[1]) if node.args[1:] else "")
        return None if loader.endswith("SafeLoader") else f"{name} without a SafeLoader"
    full = ("yaml.full_load", "yaml.unsafe_load", "yaml.full_load_all", "yaml.unsafe_load_all")
    return f"{name} builds any object" if name in full else None


def _sets_secure(node: ast.AST) -> bool:
    if not isinstance(node, ast.Assign):
        return False
    target, value = ast.unparse(node.targets[0]), ast.unparse(node.value)
    return target == "os.environ['WDS_SECURE']" and value == "'1'"


def test_no_input_is_run_as_code(product: "list[Source]") -> None:
    found = [problem for source in product for problem in unsafe_calls(source)]
    assert not found, "\n".join(found)


def test_webdataset_is_imported_only_with_its_safe_mode_on(product: "list[Source]") -> None:
    found = [problem for source in product for problem in unguarded_webdataset(source)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "archive.extractall(folder)",
        "shutil.unpack_archive(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.load(text, yaml.FullLoader)",
        "yaml.unsafe_load(text)",
    ],
)
def test_a_dangerous_line_is_found(source_of: "type[Source]", line: str) -> None:
    assert unsafe_calls(source_of.of("pipeline/x.py", f"def f(path):\n    {line}\n"))


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path, weights_only=True)",
        "np.load(path, mmap_mode='r', allow_pickle=False)",
        "np.load(path)",
        "yaml.safe_load(text)",
        "yaml.load(text, Loader=yaml.CSafeLoader)",
        "archive.extractfile(member)",
        "from .pickle import jar",
    ],
)
def test_a_safe_line_passes(source_of: "type[Source]", line: str) -> None:
    assert not unsafe_calls(source_of.of("pipeline/x.py", f"{line}\n"))


def test_only_one_file_may_have_a_yaml_loader_of_its_own(source_of: "type[Source]") -> None:
    text = "yaml.load(text, Loader=_StrictLoader)\n"
    assert not unsafe_calls(source_of.of(STRICT_YAML, text))
    assert unsafe_calls(source_of.of("pipeline/recipe.py", text))


@pytest.mark.parametrize(
    ("text", "is_safe"),
    [
        ("os.environ['WDS_SECURE'] = '1'\nimport webdataset\n", True),
        ("os.environ['WDS_SECURE'] = '1'\nfrom webdataset.writer import TarWriter\n", True),
        ("def f():\n    os.environ['WDS_SECURE'] = '1'\n    import webdataset as wds\n", True),
        ("import webdataset\n", False),
        ("import webdataset\nos.environ['WDS_SECURE'] = '1'\n", False),
        ("os.environ['WDS_SECURE'] = '0'\nimport webdataset\n", False),
    ],
)
def test_webdataset_without_its_safe_mode_is_found(
    source_of: "type[Source]", text: str, is_safe: bool
) -> None:
    assert bool(unguarded_webdataset(source_of.of("pipeline/x.py", text))) is not is_safe
