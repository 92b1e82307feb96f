"""Every module and public function says what it is, and every signature is typed."""

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.architecture.sources import Source

DOCSTRING_LINES = 12
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "misc", "common", "tools", "stuff"}
UNFINISHED = re.compile(r"#.*\b(TO" + r"DO|FIX" + r"ME|X" + r"XX)\b")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def untold_module(source: "Source") -> list[str]:
    """A module opens with a docstring: aim at 8 lines, 12 at most, empty ones aside."""
    text = ast.get_docstring(source.tree) or ""
    lines = [line for line in text.splitlines() if line.strip()]
    if 1 <= len(lines) <= DOCSTRING_LINES:
        return []
    return [f"{source.path}: its docstring has {len(lines)} lines, 1 to {DOCSTRING_LINES} expected"]


def untold_functions(source: "Source", contracts: frozenset[str] = frozenset()) -> list[str]:
    """Public functions, classes and their public methods have a docstring.

    Properties need none, nor methods that a contract of the same room tells: a Protocol's
    (`contracts` has their names), or torch's `forward`.
    """
    return [
        f"{source.path}:{node.lineno} {name}: no docstring"
        for name, node in _public(source.tree, "")
        if not ast.get_docstring(node) and not (_is_told_elsewhere(name, node, contracts))
    ]


def told_methods(sources: "list[Source]") -> frozenset[str]:
    """Return the names of methods that a Protocol among the sources documents."""
    protocols = [
        node
        for source in sources
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ClassDef) and "Protocol" in map(ast.unparse, node.bases)
    ]
    methods = [item for node in protocols for item in node.body if isinstance(item, Function)]
    return frozenset(item.name for item in methods if ast.get_docstring(item))


def untyped_signatures(source: "Source") -> list[str]:
    """Every argument but self and cls, and every result, has a type."""
    methods = {id(item) for node in ast.walk(source.tree) for item in _methods(node)}
    return [
        f"{source.path}:{node.lineno} {node.name}: no type for {', '.join(missing)}"
        for node in source.functions
        if (missing := _untyped(node, id(node) in methods))
    ]


def vague_name(source: "Source") -> list[str]:
    """No part of a path is a name that could hold anything."""
    parts = source.path.removesuffix(".py").split("/")
    return [f"{source.path}: '{part}' says nothing" for part in parts if part in VAGUE_NAMES]


def unfinished(source: "Source") -> list[str]:
    """No comment that promises work."""
    return [
        f"{source.path}:{number}: {line.strip()}"
        for number, line in enumerate(source.lines, 1)
        if UNFINISHED.search(line)
    ]


def _public(tree: ast.Module | ast.ClassDef, inside: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for node in tree.body:
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        found.append((inside + node.name, node))
        if isinstance(node, ast.ClassDef):
            found += _public(node, f"{inside}{node.name}.")
    return found


def _is_told_elsewhere(name: str, node: ast.AST, contracts: frozenset[str]) -> bool:
    decorators = [ast.unparse(item) for item in getattr(node, "decorator_list", [])]
    nouns = ("property", "overload", "override", ".setter")
    owner, _, method = name.rpartition(".")
    return any(decorator.endswith(nouns) for decorator in decorators) or (
        bool(owner) and (method == "forward" or method in contracts)
    )


def _methods(node: ast.AST) -> list[ast.stmt]:
    if not isinstance(node, ast.ClassDef):
        return []
    return [item for item in node.body if isinstance(item, Function)]


def _untyped(node: Any, is_method: bool) -> list[str]:
    arguments = [*node.args.posonlyargs, *node.args.args]
    static = any(ast.unparse(item) == "staticmethod" for item in node.decorator_list)
    if is_method and not static:
        arguments = arguments[1:]
    arguments += node.args.kwonlyargs
    arguments += [item for item in (node.args.vararg, node.args.kwarg) if item]
    missing = [item.arg for item in arguments if item.annotation is None]
    return missing + (["the result"] if node.returns is None else [])


def test_every_module_says_what_it_is(product: "list[Source]") -> None:
    found = [problem for source in product for problem in untold_module(source)]
    assert not found, "\n".join(found)


def test_every_test_file_says_what_it_is(sources: "list[Source]") -> None:
    tests = [source for source in sources if source.room == "tests"]
    found = [problem for source in tests for problem in untold_module(source)]
    assert not found, "\n".join(found)


def test_every_public_function_has_a_docstring(product: "list[Source]") -> None:
    rooms: dict[Path, list[Source]] = {}
    for source in product:
        rooms.setdefault(Path(source.path).parent, []).append(source)
    told = {room: told_methods(sources) for room, sources in rooms.items()}
    found = [
        problem
        for room, sources in rooms.items()
        for source in sources
        for problem in untold_functions(source, told[room])
    ]
    assert not found, "\n".join(found)


def test_every_signature_is_typed(product: "list[Source]") -> None:
    found = [problem for source in product for problem in untyped_signatures(source)]
    assert not found, "\n".join(found)


def test_no_file_has_a_name_that_could_hold_anything(sources: "list[Source]") -> None:
    found = [problem for source in sources for problem in vague_name(source)]
    assert not found, "\n".join(found)


def test_no_comment_promises_work(sources: "list[Source]") -> None:
    found = [problem for source in sources for problem in unfinished(source)]
    assert not found, "\n".join(found)


def test_a_missing_or_long_module_docstring_is_found(source_of: "type[Source]") -> None:
    assert not untold_module(source_of.of("pipeline/x.py", '"""One line."""\n'))
    assert untold_module(source_of.of("pipeline/x.py", "x = 1\n"))
    long = '"""' + "line\n" * (DOCSTRING_LINES + 1) + '"""\n'
    assert untold_module(source_of.of("pipeline/x.py", long))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("def f() -> None: ...\n", 1),
        ('def f() -> None:\n    """Does it."""\n', 0),
        ("def _f() -> None: ...\n", 0),
        ('class A:\n    """Holds."""\n    def f(self) -> None: ...\n', 1),
        ('class A:\n    """Holds."""\n    def _f(self) -> None: ...\n', 0),
        ('class A:\n    """Holds."""\n    @property\n    def f(self) -> int: ...\n', 0),
        ('class A:\n    """Holds."""\n    def forward(self) -> None: ...\n', 0),
        ("def forward() -> None: ...\n", 1),
        ("class A: ...\n", 1),
        ('def f() -> None:\n    """Does it."""\n    def inner() -> None: ...\n', 0),
    ],
)
def test_a_public_function_without_a_docstring_is_found(
    source_of: "type[Source]", text: str, count: int
) -> None:
    assert len(untold_functions(source_of.of("pipeline/x.py", text))) == count


def test_a_method_is_told_by_its_rooms_protocol(source_of: "type[Source]") -> None:
    contract = 'class P(Protocol):\n    def f(self) -> None:\n        """Does it."""\n'
    told = told_methods([source_of.of("pipeline/x.py", contract)])
    each = 'class A:\n    """One."""\n    def f(self) -> None: ...\n    def g(self) -> None: ...\n'
    assert told == {"f"}
    found = untold_functions(source_of.of("pipeline/y.py", each), told)
    assert found == ["pipeline/y.py:4 A.g: no docstring"]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("def f(a: int, *b: int, c: int = 1, **d: int) -> None: ...\n", 0),
        ("def f(a) -> None: ...\n", 1),
        ("def f(*a) -> None: ...\n", 1),
        ("def f(*, a) -> None: ...\n", 1),
        ("def f(): ...\n", 1),
        ("class A:\n    def f(self) -> None: ...\n", 0),
        ("class A:\n    @staticmethod\n    def f(a) -> None: ...\n", 1),
        ("def f() -> None:\n    def inner(a): ...\n", 1),
    ],
)
def test_an_untyped_signature_is_found(source_of: "type[Source]", text: str, count: int) -> None:
    assert len(untyped_signatures(source_of.of("pipeline/x.py", text))) == count


def test_a_vague_name_is_found(source_of: "type[Source]") -> None:
    assert vague_name(source_of.of("pipeline/data/utils.py", ""))
    assert vague_name(source_of.of("pipeline/common/x.py", ""))
    assert not vague_name(source_of.of("pipeline/data/order.py", ""))


def test_a_promise_is_found(source_of: "type[Source]") -> None:
    assert unfinished(source_of.of("pipeline/x.py", "x = 1  # TO" + "DO: more\n"))
    assert not unfinished(source_of.of("pipeline/x.py", "x = 1  # done\n"))
