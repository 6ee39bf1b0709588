"""The import door: four links into the root folders, which stay namespace portions."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import pytest

LAYERS = ("actors", "kernels", "pipeline", "storage")


@pytest.mark.parametrize("layer", LAYERS)
def test_link_leads_to_root_folder(repository: Path, layer: str) -> None:
    link = repository / "lodestream" / layer
    assert link.is_symlink()
    assert os.readlink(link) == f"../{layer}"  # relative, so that a clone can lie anywhere
    assert link.resolve() == repository / layer
    assert any((repository / layer).glob("*.py"))


@pytest.mark.parametrize("layer", LAYERS)
def test_root_folder_is_no_package_of_its_own(repository: Path, layer: str) -> None:
    """With an ``__init__.py``, ``import kernels`` would find ours wherever the checkout is the current folder."""
    assert not (repository / layer / "__init__.py").exists()


@pytest.mark.parametrize("layer", LAYERS)
def test_layer_is_imported_through_the_door(repository: Path, layer: str) -> None:
    package = importlib.import_module(f"lodestream.{layer}")
    assert package.__file__ is None
    assert [Path(folder).resolve() for folder in package.__path__] == [repository / layer]
