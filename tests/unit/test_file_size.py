"""Files and functions stay short enough to be read in one go."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOTS = ("actors", "kernels", "pipeline", "storage", "lodestream", "tests", "examples")
LAYERS = ("actors", "kernels", "pipeline", "storage")
CEILING_LINES = 600
LOOK_TWICE_LINES = 400
FUNCTION_CEILING_LINES = 120
FUNCTION_MEDIAN_LINES = 20

# Files above 400 lines, each with the reason why it is not two files.
LONG_FILES: dict[str, str] = {}


def list_files(repository: Path) -> Iterator[tuple[str, Path]]:
    for root in ROOTS:
        for path in sorted((repository / root).rglob("*.py")):
            if not any(part.is_symlink() for part in path.parents if part.is_relative_to(repository)):
                yield str(path.relative_to(repository)), path


def count_lines(path: Path) -> int:
    return path.read_text(encoding="utf-8").count("\n")


def measure_functions(source: str) -> dict[str, int]:
    """Lines of each function without its docstring, functions within it included."""
    lengths = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            if ast.get_docstring(node) is not None and len(node.body) > 1:
                first = node.body[1]
            end = node.end_lineno or node.lineno
            signature = node.body[0].lineno - node.lineno
            lengths[f"{node.name}:{node.lineno}"] = signature + end - first.lineno + 1
    return lengths


def test_no_file_above_the_ceiling(repository: Path) -> None:
    too_long = {name: count_lines(path) for name, path in list_files(repository) if count_lines(path) > CEILING_LINES}
    assert too_long == {}


def test_long_files_are_listed_with_a_reason(repository: Path) -> None:
    long = {name for name, path in list_files(repository) if count_lines(path) > LOOK_TWICE_LINES}
    assert long == set(LONG_FILES)


@pytest.mark.parametrize("layer", LAYERS)
def test_functions_are_short(repository: Path, layer: str) -> None:
    lengths = {
        f"{name}:{function}": length
        for name, path in list_files(repository)
        if name.startswith(f"{layer}/")
        for function, length in measure_functions(path.read_text(encoding="utf-8")).items()
    }
    assert {name: length for name, length in lengths.items() if length > FUNCTION_CEILING_LINES} == {}
    assert statistics.median(lengths.values()) <= FUNCTION_MEDIAN_LINES


def test_measure_sees_bodies_without_docstrings() -> None:
    source = 'def f(\n    a,\n):\n    """Doc.\n\n    More.\n    """\n    x = a\n    return x\n'
    assert measure_functions(source) == {"f:1": 5}
