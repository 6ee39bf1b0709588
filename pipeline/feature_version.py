"""Which featurizer a run takes: that of the feature version that is served, and no other.

What a version's features are made of is fixed when it is made. The configuration is held against that: where it asks
for other features, nothing is computed anew in place, and the error says what to type.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from lodestream.actors.featurizer import Featurizer
from lodestream.actors.models import PACKAGED_MODELS
from lodestream.errors import ConfigError, FeatureVersionMismatch, ModelError
from lodestream.kernels.weights import ModelFolder
from lodestream.pipeline.config.settings import LoadedConfig
from lodestream.pipeline.session import make_featurizer, options_of_recipe, read_options
from lodestream.storage.snapshot import PointerRecord
from lodestream.storage.version import KeptVersion

_SETTINGS: Final = {
    "model": "encoder.model",
    "precision": "encoder.precision",
    "base_below": "density.base_below",
    "segment.max_tokens": "segment.max_tokens",
    "segment.target_tokens": "segment.target_tokens",
    "segment.over_headings": "segment.over_headings",
    "segment.heading_prefix": "segment.heading_prefix",
    "attention.mode": "encoder.attention",
    "attention.quality": "encoder.quality",
}
"""What the parts of a recipe are called in the configuration."""

_SAME_MODEL: Final = ("model", "weights_sha256", "tokenizer_sha256")

_SHOWN_CHARS: Final = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is known of a version's features: its name, and the fields of ``KeptVersion``."""

    name: str
    feature_version: str
    recipe: Mapping[str, Any]
    model: str

    @classmethod
    def of_served(cls, pointer: PointerRecord) -> Recipe:
        """That of the version that is served."""
        return cls(
            name=pointer.version, feature_version=pointer.feature_version, recipe=pointer.recipe, model=pointer.model
        )

    @classmethod
    def of_kept(cls, kept: KeptVersion) -> Recipe:
        """That of a version beside it."""
        return cls(name=kept.name, feature_version=kept.feature_version, recipe=kept.recipe, model=kept.model)


def choose_featurizer(loaded: LoadedConfig, pointer: PointerRecord | None) -> tuple[Featurizer, str]:
    """The featurizer of the version that is served, and a sentence where the configuration asks for another one.

    Args:
        loaded: the configuration.
        pointer: None while nothing is published: then what the configuration asks for is what there will be.

    Raises:
        FeatureVersionMismatch: no version of the store has the features that the configuration asks for.
        ConfigError, ModelError: the features of the served version cannot be computed on this machine.
    """
    configured = make_featurizer(loaded, pointer.recipe if pointer else None)
    if pointer is None or configured.feature_version == pointer.feature_version:
        return configured, ""
    asked = find_asked(loaded, [Recipe.of_kept(kept) for kept in pointer.versions], model=configured.model)
    if asked is None:
        differences = describe_differences(pointer.recipe, configured.recipe)
        raise FeatureVersionMismatch(
            f"the configuration asks for other features than those of version {pointer.version}, which is served: "
            f"{differences}",
            "lodestream versions add NAME computes them beside those, from the stored texts; or set it back",
        )
    note = (
        f"the configuration asks for the features of version {asked.name}; {pointer.version} is served and kept fresh "
        f"until: lodestream versions promote {asked.name}"
    )
    return featurizer_of(loaded, Recipe.of_served(pointer)), note


def find_asked(loaded: LoadedConfig, versions: Sequence[Recipe], *, model: ModelFolder | None = None) -> Recipe | None:
    """Which of some versions has the features that the configuration asks for; ``model``: as of make_featurizer."""
    for version in versions:
        try:
            asked = make_featurizer(loaded, dict(version.recipe), model=model)
            model = asked.model
            if asked.feature_version == version.feature_version:
                return version
        except ConfigError:  # of a precision that this processor does not have
            continue
    return None


def featurizer_of(loaded: LoadedConfig, wanted: Recipe) -> Featurizer:
    """The featurizer that made the features of a version, whatever else the configuration asks for.

    Raises:
        ConfigError: this processor does not have the version's precision.
        ModelError: its model is neither where it was nor where the configuration says.
        FeatureVersionMismatch: this release of lodestream computes them in another way.
    """
    configured = read_options(loaded)
    options = options_of_recipe(dict(wanted.recipe), model=wanted.model)
    packaged = options.model in PACKAGED_MODELS
    places = [options.model] if packaged else list(dict.fromkeys([configured.model, options.model]))
    differences = ""
    for place in places:
        found = Featurizer(replace(options, model=place, batch_tokens=configured.batch_tokens))
        try:
            if found.feature_version == wanted.feature_version:
                return found
        except ModelError:
            continue
        if all(found.recipe[name] == wanted.recipe[name] for name in _SAME_MODEL):
            differences = describe_differences(wanted.recipe, found.recipe)
    if differences:
        raise FeatureVersionMismatch(
            f"the features of version {wanted.name} cannot be computed by this lodestream: {differences}",
            "lodestream versions add NAME and promote NAME for a version that can, or go back to the earlier release",
        )
    raise ModelError(
        f"the model of version {wanted.name} ({wanted.recipe['model']}, weights sha256 "
        f"{wanted.recipe['weights_sha256'][:16]}) is not at {' or '.join(places)}",
        "put it back, or say where it is: --set encoder.model=PATH",
    )


def describe_differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """In what two recipes differ, by the names of the configuration."""
    before, now = dict(_flatten(stored)), dict(_flatten(wanted))
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if "weights_sha256" in names and "model" in names:
        # What follows from another model says nothing more.
        implied = ("weights_sha256", "tokenizer_sha256", "architecture", "pooling", "dim")
        names = [name for name in names if name not in implied]
    if "attention.quality" in names:
        names = [name for name in names if not name.startswith("attention.level.")]
    return ", ".join(f"{_SETTINGS.get(name, name)} {_show(before, name)} -> {_show(now, name)}" for name in names)


def place_of(featurizer: Featurizer) -> str:
    """Where the featurizer's model is; "" for a packaged one, which is found by its name."""
    return "" if featurizer.options.model in PACKAGED_MODELS else featurizer.options.model


def _flatten(recipe: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in recipe.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            # As it comes back from the pointer's record: JSON has no tuples.
            yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value


def _show(recipe: Mapping[str, Any], name: str) -> str:
    text = str(recipe.get(name, "unset"))
    return text if len(text) <= _SHOWN_CHARS else text[:12]
