"""What a configuration amounts to on this machine: the featurizer, the store, the number of threads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lodestream.actors.attention import read_gate
from lodestream.actors.featurizer import Featurizer
from lodestream.actors.models import PACKAGED_MODELS
from lodestream.actors.options import FeaturizerOptions
from lodestream.errors import ConfigError, StoreNotFound
from lodestream.kernels.attention.gate import GateTable
from lodestream.kernels.precision import native_precision
from lodestream.kernels.weights import ModelFolder
from lodestream.pipeline.config.settings import Config, LoadedConfig
from lodestream.storage.location import Location
from lodestream.storage.snapshot import PointerRecord, read_pointer


def make_featurizer(
    loaded: LoadedConfig, stored_recipe: dict[str, Any] | None, *, model: ModelFolder | None = None
) -> Featurizer:
    """The featurizer that a configuration asks for.

    ``encoder.precision = auto`` takes the precision of the store's features where there are some: vectors of two
    precisions in one store would differ for no reason that shows. The gate of sparse attention is the store's too.

    Args:
        loaded: the configuration.
        stored_recipe: of the store's features; None where there are none.
        model: of a featurizer of the same configuration, where there is one: to look at a folder hashes all weights.

    Raises:
        ConfigError: the store's precision is not native on this processor.
    """
    options = read_options(loaded)
    if options.precision == "auto" and stored_recipe:
        options = replace(options, precision=_keep_precision(str(stored_recipe["precision"])))
    featurizer = Featurizer(options)
    if model is not None:
        featurizer.model = model
    return _take_gate(featurizer, stored_recipe) or featurizer


def fix_gate(featurizer: Featurizer, recipes: Sequence[dict[str, Any]], *, num_threads: int) -> Featurizer:
    """The featurizer with a gate of its own, where segments may be so long that one decides anything.

    Args:
        featurizer: of ``make_featurizer``.
        recipes: of the store's features and of staged work, the first that has a gate counts.
        num_threads: threads of the encoder, 0 = one a core.

    Returns:
        A featurizer whose gate is one of the recipes'; else it is measured, which takes a few seconds.
    """
    if not featurizer.needs_gate:
        return featurizer
    for recipe in recipes:
        found = _take_gate(featurizer, recipe)
        if found is not None:
            return found
    set_threads(num_threads)
    from lodestream.actors.gate_measurement import measure_gate

    gate = measure_gate(
        engine=featurizer.engine,
        precision=featurizer.precision,
        num_heads=featurizer.model.description.num_heads,
        head_dim=featurizer.model.description.head_dim,
        max_tokens=featurizer.segment_options.max_tokens,
    )
    return _with_gate(featurizer, gate)


def _take_gate(featurizer: Featurizer, recipe: dict[str, Any] | None) -> Featurizer | None:
    if not recipe or not recipe.get("attention"):
        return None
    gate = read_gate(recipe, engine=featurizer.engine, head_dim=featurizer.model.description.head_dim)
    return None if gate is None else _with_gate(featurizer, gate)


def _with_gate(featurizer: Featurizer, gate: GateTable) -> Featurizer:
    """The same with a gate. Its model is taken over: looking at a folder hashes all weights."""
    gated = Featurizer(replace(featurizer.options, gate=gate))
    gated.model = featurizer.model
    return gated


def read_options(loaded: LoadedConfig) -> FeaturizerOptions:
    """The featurizer's options as configured; a model's folder as an absolute path."""
    config: Config = loaded.config
    model = config.encoder.model
    if model not in PACKAGED_MODELS:
        model = str(loaded.resolve(model))
    return FeaturizerOptions(
        model=model,
        precision=config.encoder.precision,
        batch_tokens=config.encoder.batch_tokens,
        max_tokens=config.segment.max_tokens,
        target_tokens=config.segment.target_tokens,
        over_headings=config.segment.over_headings,
        heading_prefix=config.segment.heading_prefix,
        base_below=config.density.base_below,
        attention=config.encoder.attention,
        quality=config.encoder.quality,
    )


def options_of_recipe(recipe: dict[str, Any], *, model: str = "") -> FeaturizerOptions:
    """The options that made a store's features: what a reader needs to encode a query alike. A model's folder has to
    have the weights that it had.

    Args:
        recipe: of the feature version.
        model: where its model is; "" takes a known package's name from the recipe.
    """
    segment = recipe["segment"]
    model = model or str(recipe["model"])
    return FeaturizerOptions(
        model=model,
        weights_sha256="" if model in PACKAGED_MODELS else str(recipe["weights_sha256"]),
        precision=_keep_precision(str(recipe["precision"])),
        max_tokens=int(segment["max_tokens"]),
        target_tokens=int(segment["target_tokens"]),
        over_headings=bool(segment.get("over_headings", False)),
        heading_prefix=bool(segment["heading_prefix"]),
        base_below=float(recipe["base_below"]),
        **_read_attention(recipe.get("attention")),
    )


def _read_attention(stored: dict[str, Any] | None) -> dict[str, Any]:
    """The options of sparse attention; a recipe says nothing of it where no segment can be sparse."""
    if not stored:
        return {"attention": "dense"}
    gate = GateTable.from_dict(stored["gate"]) if stored["mode"] == "auto" else None
    return {"attention": stored["mode"], "quality": stored["quality"], "gate": gate}


def _keep_precision(stored: str) -> str:
    if stored == "bf16" and native_precision() != "bf16":
        raise ConfigError(
            "the store's features are computed in bf16, which this processor does not have",
            "run on a processor with avx512_bf16 or amx_bf16, or compute them beside those in a precision that every "
            "processor has: lodestream versions add NAME --set encoder.precision=fp32",
        )
    return stored


def read_published(location: Location) -> PointerRecord | None:
    """The pointer of the store at ``location``, None where there is no store yet."""
    try:
        return read_pointer(location)[0]
    except StoreNotFound:
        return None


def set_threads(num_threads: int) -> int:
    """Gives torch its threads (0 = one a core); returns the number."""
    from lodestream.kernels.threads import use_threads

    number = num_threads or os.cpu_count() or 1
    use_threads(number)
    return number
