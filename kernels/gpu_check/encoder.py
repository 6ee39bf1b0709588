"""A whole encoder on the device, against the same encoder in float32 on the CPU."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch

from lodestream.kernels.encoder.encoder import PackedEncoder
from lodestream.kernels.gpu_check.correctness import Check
from lodestream.kernels.gpu_check.target import Target
from lodestream.kernels.packing import pack
from lodestream.kernels.precision import Precision
from lodestream.kernels.weights import read_model_folder

_LENGTHS: Final = (1, 2, 63, 64, 127, 200, 517)
# What a cosine may be short of 1: of states in float32, of a segment's mean in bfloat16.
_MOST: Final[dict[Precision, float]] = {"fp32": 1e-5, "bf16": 1e-4}


def list_encoder_checks(target: Target, folder: Path) -> Iterator[Check]:
    """Closeness to the CPU, and the same bits of a segment whatever shares its batch.

    Args:
        target: where the encoder runs.
        folder: a model folder.
    """
    model = read_model_folder(folder)
    precisions: tuple[Precision, ...] = ("fp32", "bf16") if target.is_gpu else ("fp32",)
    random = np.random.default_rng(0)
    lengths = [min(length, model.max_positions) for length in _LENGTHS]
    segments = [random.integers(0, model.description.vocab_size, length) for length in lengths]

    def encode(precision: Precision, device: torch.device, orders: list[list[int]]) -> list[list[torch.Tensor]]:
        encoder = PackedEncoder(model, precision=precision, device=device)
        batches = [encoder.encode(pack([segments[i] for i in order])).cpu() for order in orders]
        return [
            list(torch.split(states, [lengths[i] for i in order]))
            for states, order in zip(batches, orders, strict=True)
        ]

    def measure_closeness(precision: Precision) -> float:
        order = list(range(len(segments)))
        found = encode(precision, target.device, [order])[0]
        wanted = encode("fp32", torch.device("cpu"), [order])[0]
        if precision == "bf16":
            found, wanted = ([states.mean(0, keepdim=True) for states in parts] for parts in (found, wanted))
        cosines = torch.cosine_similarity(torch.cat(found).double(), torch.cat(wanted).double())
        return (1 - float(cosines.min())) / _MOST[precision] if bool(cosines.isfinite().all()) else math.inf

    def measure_invariance(precision: Precision) -> float:
        order = list(range(len(segments)))
        alone = [[i] for i in order]
        together, backwards, *single = encode(precision, target.device, [order, order[::-1] * 3, *alone])
        pairs = zip(together, backwards[len(order) - 1 :: -1], [parts[0] for parts in single], strict=True)
        same = all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in pairs)
        return 0.0 if same else math.inf

    for precision in precisions:
        yield Check(kernel="encoder", case=f"{precision}, closeness", measure=partial(measure_closeness, precision))
        yield Check(
            kernel="encoder",
            case=f"{precision}, the same bits in every batch",
            measure=partial(measure_invariance, precision),
        )
