"""The one dataflow, for a backfill and a refresh alike: changed documents -> stages -> chunks in the store.

    read_documents -> prepare_documents -> encode_documents        (stages.py)

An executor decides where the stages run: ``LocalExecutor`` (executors.py) in this process, ``RayExecutor``
(ray_executor.py) under Ray Data. Which one it is changes no stored byte but the times and the run's name.
"""

from __future__ import annotations

import importlib.util
from typing import Final, Literal

from lodestream.actors.featurizer import Featurizer
from lodestream.errors import ExecutorError
from lodestream.pipeline.config.settings import RunConfig
from lodestream.pipeline.executors import Executor, LocalExecutor
from lodestream.pipeline.stages import Reading

RAY_WORTHWHILE_BYTES: Final = 256 * 1024 * 1024
"""``auto`` takes Ray above this much text, where more than two cores are there: below, starting it costs more."""


def choose_executor(config: RunConfig, *, total_bytes: int, num_cores: int) -> tuple[Literal["local", "ray"], str]:
    """Which executor a run takes, and why, in a sentence.

    Raises:
        ExecutorError: Ray is asked for and not installed.
    """
    has_ray = importlib.util.find_spec("ray") is not None
    if config.executor == "local":
        return "local", "run.executor = local"
    if config.executor == "ray" or config.ray_address:
        if not has_ray:
            raise ExecutorError("Ray is asked for, but it is not installed", "pip install 'lodestream[ray]'")
        why = "run.executor = ray" if config.executor == "ray" else f"run.ray_address = {config.ray_address}"
        return "ray", why
    size_mib = total_bytes / 2**20
    if total_bytes < RAY_WORTHWHILE_BYTES:
        return "local", f"{size_mib:.1f} MiB of text: starting Ray would cost more than it brings"
    if num_cores <= 2:
        return "local", f"{size_mib:.0f} MiB of text, but {num_cores} cores and no run.ray_address"
    if not has_ray:
        return "local", f"{size_mib:.0f} MiB of text would be worth Ray, but it is not installed"
    return "ray", f"{size_mib:.0f} MiB of text and {num_cores} cores"


def make_executor(
    kind: Literal["local", "ray"], featurizer: Featurizer, config: RunConfig, reading: Reading, *, num_threads: int
) -> Executor:
    """The executor of that kind."""
    if kind == "local":
        return LocalExecutor(featurizer, reading, num_threads=num_threads)
    from lodestream.pipeline.ray_executor import RayExecutor

    return RayExecutor(featurizer, config, reading)
