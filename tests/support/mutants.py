"""Modules with one planted mistake: a test that passes one of them is no test."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def load_mutant(original: ModuleType, folder: Path, old: str, new: str) -> ModuleType:
    """The module with ``old`` replaced by ``new`` throughout, as a file of its own: Triton reads sources."""
    assert original.__file__ is not None
    source = Path(original.__file__).read_text(encoding="utf-8")
    assert old in source, "the kernel has changed: plant the mutation anew"
    path = folder / "mutant.py"
    path.write_text(source.replace(old, new), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("mutant", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutant"] = module
    spec.loader.exec_module(module)
    return module
