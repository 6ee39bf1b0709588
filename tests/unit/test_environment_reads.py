"""The environment is read in ``pipeline/config/settings.py`` and nowhere else."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

LAYERS = ("actors", "kernels", "pipeline", "storage")
HOME = "pipeline/config/settings.py"

# Files that touch the environment otherwise, each with the reason.
ALLOWED: dict[str, str] = {
    "kernels/gpu_check/__main__.py": "writes what triton must find before it is imported, to interpret its kernels",
    "pipeline/process.py": "writes the defaults that torch and Ray must find before they are imported",
}

_NAMES = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}


def find_environment_uses(source: str) -> list[int]:
    """Lines that reach the process's environment: through ``os``, by name, or through an option's ``envvar``."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        reads = (
            (isinstance(node, ast.Attribute) and node.attr in _NAMES)
            or (isinstance(node, ast.ImportFrom) and node.module == "os" and any(a.name in _NAMES for a in node.names))
            or (isinstance(node, ast.keyword) and node.arg in ("envvar", "auto_envvar_prefix"))
        )
        if reads:
            lines.append(node.lineno if not isinstance(node, ast.keyword) else node.value.lineno)
    return sorted(lines)


def list_files(repository: Path) -> Iterator[tuple[str, str]]:
    files = [path for layer in LAYERS for path in (repository / layer).rglob("*.py")]
    files += (repository / "lodestream").glob("*.py")
    for path in sorted(files):
        yield str(path.relative_to(repository)), path.read_text(encoding="utf-8")


def test_environment_is_read_in_one_file(repository: Path) -> None:
    uses = {name: lines for name, source in list_files(repository) if (lines := find_environment_uses(source))}
    assert set(uses) == {HOME, *ALLOWED}, uses


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.environ['X']",
        "import os\nos.getenv('X')",
        "import os as o\no.environ.get('X')",
        "from os import environ",
        "from os import getenv as g",
        "import typer\ntyper.Option(envvar='X')",
    ],
)
def test_scan_finds_reads(source: str) -> None:
    assert find_environment_uses(source)


def test_scan_passes_other_uses_of_os() -> None:
    assert find_environment_uses("import os\nos.path.join('a')\nenviron: dict[str, str] = {}") == []
