"""Who may import whom. import-linter's contracts stand in ``pyproject.toml``; what they cannot say is said here."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

LAYERS = ("actors", "kernels", "pipeline", "storage")
LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"

# One file per contract that breaks it.
PLANTED = {
    "layers": ("kernels/planted_a.py", "import lodestream.actors.planted_b\n"),
    "storage-alone": ("storage/planted_c.py", "import torch\n"),
    "kernels-tensors-only": ("kernels/planted_d.py", "import pyarrow\n"),
    "actors-open-no-store": ("actors/planted_b.py", "import lance\n"),
    "no-cycles": ("pipeline/planted_e.py", "import lodestream.pipeline.planted_f\n"),
    "": ("pipeline/planted_f.py", "import lodestream.pipeline.planted_e\n"),
}


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LINT, "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def list_imports(source: str) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, those within functions included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")


def list_files(repository: Path, layer: str) -> Iterator[tuple[str, str]]:
    for path in sorted((repository / layer).rglob("*.py")):
        yield str(path.relative_to(repository)), path.read_text(encoding="utf-8")


def is_part_of(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def test_contracts_hold(repository: Path) -> None:
    done = lint(repository)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_every_contract_can_break(repository: Path, tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    for folder in (*LAYERS, "lodestream"):
        shutil.copytree(repository / folder, tmp_path / folder, symlinks=True, ignore=ignored)
    shutil.copy(repository / "pyproject.toml", tmp_path)
    for name, source in PLANTED.values():
        (tmp_path / name).write_text(source, encoding="utf-8")
    done = lint(tmp_path)
    assert done.returncode != 0
    contracts = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert {contract["id"] for contract in contracts} == set(PLANTED) - {""}
    report = " ".join(done.stdout.split())
    for contract in contracts:
        assert f"{contract['name']} BROKEN" in report, done.stdout


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_are_absolute_and_through_the_door(repository: Path, layer: str) -> None:
    """``import kernels.packing`` would work in the checkout and nowhere else."""
    wrong = [
        f"{name}:{line} {module}"
        for name, source in list_files(repository, layer)
        for line, module in list_imports(source)
        if module.startswith(".") or module.split(".")[0] in LAYERS
    ]
    assert wrong == []


def test_ray_stays_in_its_shells(repository: Path) -> None:
    """In the actors' layer, Ray is known to the thin shells only; the stages are plain functions."""
    wrong = [
        f"{name}:{line}"
        for name, source in list_files(repository, "actors")
        if not name.endswith(("_actor.py", "_replica.py"))
        for line, module in list_imports(source)
        if is_part_of(module, "ray")
    ]
    assert wrong == []


def test_triton_stays_in_fused_kernels(repository: Path) -> None:
    wrong = [
        f"{name}:{line}"
        for layer in LAYERS
        for name, source in list_files(repository, layer)
        if not (layer == "kernels" and Path(name).name == "fused.py")
        for line, module in list_imports(source)
        if is_part_of(module, "triton")
    ]
    assert wrong == []


def test_faiss_stays_in_one_module(repository: Path) -> None:
    """What searches works without it, and the scan and the index share everything else."""
    wrong = [
        f"{name}:{line}"
        for layer in LAYERS
        for name, source in list_files(repository, layer)
        if name != "storage/search/faiss_codes.py"
        for line, module in list_imports(source)
        if is_part_of(module, "faiss")
    ]
    assert wrong == []


@pytest.mark.parametrize("name", ["errors", "schema"])
def test_vocabulary_imports_nothing_of_ours(repository: Path, name: str) -> None:
    source = (repository / "lodestream" / f"{name}.py").read_text(encoding="utf-8")
    assert [module for _, module in list_imports(source) if is_part_of(module, "lodestream")] == []


def test_scan_sees_imports_within_functions() -> None:
    source = "def f():\n    import ray.data\n    from ray import serve\n"
    assert list(list_imports(source)) == [(2, "ray.data"), (3, "ray")]
