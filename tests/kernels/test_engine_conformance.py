"""What every engine behind the protocol ``Encoder`` holds to; a new one is one more line in ENGINES."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lodestream.actors.models import DEFAULT_MODEL, PACKAGED_MODELS, find_model
from lodestream.kernels.encoder import Encoder, load_encoder
from lodestream.kernels.packing import pack
from lodestream.kernels.precision import native_precision

ENGINES: dict[str, Callable[[], Encoder]] = {
    "torch-cpu fp32": lambda: load_encoder(find_model(DEFAULT_MODEL)[0], precision="fp32"),
    "torch-cpu bf16": lambda: load_encoder(find_model(DEFAULT_MODEL)[0], precision="bf16"),
}
LENGTHS = (3, 16, 17, 64, 130, 512)
MIN_COSINE = 0.9999


@pytest.fixture(scope="module", params=list(ENGINES))
def engine(request: pytest.FixtureRequest) -> Encoder:
    if "bf16" in request.param and native_precision() != "bf16":
        pytest.skip("needs a processor with avx512_bf16 or amx_bf16")
    return ENGINES[request.param]()


@pytest.fixture(scope="module")
def segments() -> list[NDArray[np.int32]]:
    random = np.random.default_rng(3)
    return [np.concatenate([[101], random.integers(1000, 30000, n - 2), [102]]).astype(np.int32) for n in LENGTHS]


def split(states: torch.Tensor, segments: list[NDArray[np.int32]]) -> list[torch.Tensor]:
    return list(states.split([len(ids) for ids in segments]))


def test_states_have_their_shape(engine: Encoder, segments: list[NDArray[np.int32]]) -> None:
    batch = pack(segments)
    before = batch.token_ids_T.clone()
    states = engine.encode(batch)
    assert states.dtype == torch.float32 and states.shape == (sum(LENGTHS), engine.dim)
    assert bool(torch.isfinite(states).all())
    assert torch.equal(batch.token_ids_T, before)
    assert engine.max_seq_length <= engine.max_tokens


def test_bits_do_not_depend_on_the_batch(engine: Encoder, segments: list[NDArray[np.int32]]) -> None:
    together = split(engine.encode(pack(segments)), segments)
    turned = split(engine.encode(pack(segments[::-1])), segments[::-1])[::-1]
    for alone, mine, other in zip((engine.encode(pack([s])) for s in segments), together, turned, strict=True):
        assert torch.equal(alone, mine) and torch.equal(alone, other)


def test_means_are_those_of_float32(engine: Encoder, segments: list[NDArray[np.int32]]) -> None:
    exact = ENGINES["torch-cpu fp32"]()
    found = torch.stack([s.mean(0) for s in split(engine.encode(pack(segments)), segments)])
    wanted = torch.stack([s.mean(0) for s in split(exact.encode(pack(segments)), segments)])
    assert float(torch.cosine_similarity(found, wanted).min()) >= MIN_COSINE


def test_what_it_cannot_read_is_refused(engine: Encoder) -> None:
    with pytest.raises(ValueError, match=f"reads {engine.max_tokens} at most"):
        engine.encode(pack([np.full(engine.max_tokens + 1, 1000, np.int32)]))
    for bad in (-1, 10**6):
        with pytest.raises(ValueError, match="vocabulary"):
            engine.encode(pack([np.array([101, bad, 102], np.int32)]))


def test_several_threads_may_call_it(engine: Encoder, segments: list[NDArray[np.int32]]) -> None:
    alone = [engine.encode(pack([s])) for s in segments]
    with ThreadPoolExecutor(3) as pool:
        for mine, other in zip(alone, pool.map(lambda s: engine.encode(pack([s])), segments), strict=True):
            assert torch.equal(mine, other)


def test_identity_tells_what_bits_depend_on(engine: Encoder) -> None:
    identity = engine.identity
    assert identity.weights_sha256 == PACKAGED_MODELS[DEFAULT_MODEL].weights_sha256
    assert identity.precision in ("fp32", "bf16") and identity.engine and identity.states_version >= 1
    others = [make().identity for name, make in ENGINES.items() if "bf16" not in name or native_precision() == "bf16"]
    assert len(set(others)) == len(others)
