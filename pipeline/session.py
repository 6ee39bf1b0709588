"""What a configuration amounts to on this machine: the featurizer, the store, the number of threads."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from lodestream.actors.featurizer import Featurizer
from lodestream.actors.models import PACKAGED_MODELS
from lodestream.actors.options import FeaturizerOptions
from lodestream.errors import ConfigError, StoreNotFound
from lodestream.kernels.precision import native_precision
from lodestream.pipeline.config import Config, LoadedConfig
from lodestream.storage.location import Location
from lodestream.storage.snapshot import PointerRecord, read_pointer


def make_featurizer(loaded: LoadedConfig, stored_recipe: dict[str, Any] | None) -> Featurizer:
    """The featurizer that a configuration asks for.

    ``encoder.precision = auto`` takes the precision of the store's features where there are some: vectors of two
    precisions in one store would differ for no reason that shows.

    Raises:
        ConfigError: the store's precision is not native on this processor.
    """
    options = read_options(loaded)
    if options.precision == "auto" and stored_recipe:
        options = replace(options, precision=_keep_precision(str(stored_recipe["precision"])))
    return Featurizer(options)


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
        heading_prefix=config.segment.heading_prefix,
        base_below=config.density.base_below,
    )


def options_of_recipe(recipe: dict[str, Any]) -> FeaturizerOptions:
    """The options that made a store's features: what a reader needs to encode a query alike."""
    segment = recipe["segment"]
    return FeaturizerOptions(
        model=str(recipe["model"]),
        precision=_keep_precision(str(recipe["precision"])),
        max_tokens=int(segment["max_tokens"]),
        target_tokens=int(segment["target_tokens"]),
        heading_prefix=bool(segment["heading_prefix"]),
        base_below=float(recipe["base_below"]),
    )


def _keep_precision(stored: str) -> str:
    if stored == "bf16" and native_precision() != "bf16":
        raise ConfigError(
            "the store's features are computed in bf16, which this processor does not have",
            "run on a processor with avx512_bf16 or amx_bf16, or compute all of them again: "
            "--set encoder.precision=fp32",
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
    import torch

    number = num_threads or os.cpu_count() or 1
    torch.set_num_threads(number)
    return number
