"""The wheel, and the wheel made from the sdist, hold everything and work from another directory, without a checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pytest

LAYERS = ("actors", "kernels", "pipeline", "storage")
BUILDS = ("tree", "sdist")
DOCUMENTS = {
    "tea.md": "# Tea\n\nGreen tea is steeped in water of eighty degrees for two minutes.\n",
    "bread.md": "# Bread\n\nThe dough rests overnight in a cold place before it is baked.\n",
    "bicycle.md": "# Bicycle\n\nA bicycle chain lasts longer when it is oiled after rain.\n",
}


def run(command: Sequence[str | Path], folder: Path, timeout_s: float = 120) -> str:
    """Standard output of ``command``. Nothing of the checkout is on its path, nor any setting of the shell."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LODESTREAM"))}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def checkout(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is built, so that neither build folders nor caches of the checkout can make a difference."""
    copied = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns("__pycache__")
    for folder in (*LAYERS, "lodestream", "tests"):
        shutil.copytree(repository / folder, copied / folder, symlinks=True, ignore=ignored)
    for file in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(repository / file, copied)
    return copied


@pytest.fixture(scope="module")
def builds(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """``tree``: wheel from the tree; ``sdist``: wheel from the sdist; ``source``: the sdist itself."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation"]
    run([*build, "--wheel", "--outdir", folder / "tree", "."], checkout)
    run([*build, "--outdir", folder / "sdist", "."], checkout)
    return {
        "tree": next((folder / "tree").glob("*.whl")),
        "sdist": next((folder / "sdist").glob("*.whl")),
        "source": next((folder / "sdist").glob("*.tar.gz")),
    }


@pytest.fixture(scope="module", params=BUILDS)
def python(request: pytest.FixtureRequest, builds: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a venv with the wheel, and with the packages that run this test but for their editable lodestream.

    A path named in a ``.pth`` file has its own ``.pth`` files left unread, and that of the editable install is one. The
    wheel goes in first, or pip would find the editable install's record and be content.
    """
    folder = tmp_path_factory.mktemp(f"venv_{request.param}")
    venv.create(folder, with_pip=False)
    interpreter = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", interpreter]
    run([*pip, "install", "--no-deps", "--no-index", builds[request.param]], folder)
    site_packages = Path(
        run([interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).strip()
    )
    (site_packages / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return interpreter


def list_sources(checkout: Path) -> set[str]:
    """Names in a wheel of all that is imported: real files of ``lodestream/`` and those of the layers."""
    names = {f"lodestream/{path.name}" for path in (checkout / "lodestream").iterdir() if path.is_file()}
    for layer in LAYERS:
        names |= {
            f"lodestream/{path.relative_to(checkout)}" for path in (checkout / layer).rglob("*") if path.is_file()
        }
    return names


@pytest.mark.parametrize("build", BUILDS)
def test_wheel_holds_every_layer_and_nothing_else(checkout: Path, builds: dict[str, Path], build: str) -> None:
    with zipfile.ZipFile(builds[build]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        metadata = {PurePosixPath(name).name for name in wheel.namelist() if ".dist-info/" in name}
    assert names == list_sources(checkout)
    assert {"METADATA", "LICENSE", "entry_points.txt"} <= metadata
    assert {name.split("/")[1] for name in names if name.count("/") > 1} == set(LAYERS)


def test_sdist_holds_sources_and_tests(checkout: Path, builds: dict[str, Path]) -> None:
    with tarfile.open(builds["source"]) as sdist:
        names = {member.name.partition("/")[2] for member in sdist.getmembers() if member.isfile()}
    assert list_sources(checkout) <= names
    assert {"pyproject.toml", "LICENSE", "README.md", "tests/conftest.py", "tests/integration/test_wheel.py"} <= names


def test_wheel_is_what_is_imported(python: Path, tmp_path: Path) -> None:
    code = "import lodestream, lodestream.pipeline.config as c; print(lodestream.__file__); print(c.__file__)"
    found = [Path(line) for line in run([python, "-c", code], tmp_path).splitlines()]
    assert len(found) == 2
    assert all(path.is_relative_to(python.parents[1]) for path in found)


def test_every_module_can_be_imported(checkout: Path, python: Path, tmp_path: Path) -> None:
    """Each with what it needs: nothing was left behind in the checkout."""
    modules = sorted(
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in list_sources(checkout)
        if name.endswith(".py") and not name.endswith(("__main__.py", "/fused.py"))
    )
    assert len(modules) > 20
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    run([python, "-c", code, *modules], tmp_path)


def test_wheel_runs_from_another_directory(python: Path, tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    for name, text in DOCUMENTS.items():
        (folder / name).write_text(text)
    lodestream = python.parent / "lodestream"
    assert "search" in run([lodestream, "--help"], tmp_path)
    run([lodestream, "init", folder], tmp_path)
    report = json.loads(run([lodestream, "run", "--json", "--set", "run.executor=local"], tmp_path).splitlines()[-1])
    assert report["documents"]["new"] == len(DOCUMENTS)
    answer = run([lodestream, "search", "how hot must the water be for tea"], tmp_path)
    assert sorted(DOCUMENTS, key=lambda name: (name not in answer, answer.find(name)))[0] == "tea.md", answer
