"""Nothing grows over the limits: 350 lines a file, 80 a function, 100 characters a line."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.architecture.sources import Source

FILE_LINES = 350
FUNCTION_LINES = 80
LINE_CHARACTERS = 100


def too_large(source: "Source") -> list[str]:
    """Name what is over a limit in one file."""
    found = []
    if len(source.lines) > FILE_LINES:
        found.append(f"{source.path}: {len(source.lines)} lines, {FILE_LINES} are allowed")
    for node in source.functions:
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > FUNCTION_LINES:
            where = f"{source.path}:{node.lineno} {node.name}"
            found.append(f"{where}: {length} lines, {FUNCTION_LINES} are allowed")
    for number, line in enumerate(source.lines, 1):
        if len(line) > LINE_CHARACTERS:
            found.append(f"{source.path}:{number}: {len(line)} characters")
    return found


def test_no_file_function_or_line_is_too_long(sources: "list[Source]") -> None:
    assert len(sources) > 50, "the checkout's files were not found"
    found = [problem for source in sources for problem in too_large(source)]
    assert not found, "\n".join(found)


def test_a_long_file_is_found(source_of: "type[Source]") -> None:
    assert not too_large(source_of.of("pipeline/x.py", "x = 1\n" * FILE_LINES))
    assert too_large(source_of.of("pipeline/x.py", "x = 1\n" * (FILE_LINES + 1)))


def test_a_long_function_is_found(source_of: "type[Source]") -> None:
    body = "    x = 1\n"
    fits = "def f():\n" + body * (FUNCTION_LINES - 1)
    assert not too_large(source_of.of("pipeline/x.py", fits))
    assert too_large(source_of.of("pipeline/x.py", fits + body))
    method = "class A:\n    async def f(self):\n" + ("    " + body) * FUNCTION_LINES
    assert too_large(source_of.of("pipeline/x.py", method))


def test_a_long_line_is_found(source_of: "type[Source]") -> None:
    assert not too_large(source_of.of("pipeline/x.py", "#" * LINE_CHARACTERS))
    assert too_large(source_of.of("pipeline/x.py", "#" * (LINE_CHARACTERS + 1)))
