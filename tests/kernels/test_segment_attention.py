"""Dense attention of packed segments, against softmax written down in float64: windows, causal, shared key heads."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lodestream.kernels.encoder.block_attention import BlockAttention
from lodestream.kernels.segment_attention import Attend, AttentionLayer, DenseAttention

LENGTHS = (1, 15, 16, 127, 128, 129, 300, 517, 300)
HEADS, DIM = 4, 32

FULL = AttentionLayer(index=0, num_heads=HEADS, num_key_heads=HEADS, scale=DIM**-0.5)
LAYERS = {
    "full": FULL,
    "window": dataclasses.replace(FULL, reach=64),
    "odd window": dataclasses.replace(FULL, reach=37),
    "narrow window": dataclasses.replace(FULL, reach=1),
    "window longer than some": dataclasses.replace(FULL, reach=256),
    "causal": dataclasses.replace(FULL, is_causal=True),
    "shared keys": dataclasses.replace(FULL, num_key_heads=2, scale=0.3),
    "one key head, window": dataclasses.replace(FULL, num_key_heads=1, reach=20),
    "shared keys, causal": dataclasses.replace(FULL, num_key_heads=2, is_causal=True),
}


def attend_plainly(heads_TND: torch.Tensor, layer: AttentionLayer) -> torch.Tensor:
    """float64 [T, H D] of one segment."""
    q, k, v = (part.double().transpose(0, 1) for part in layer.split(heads_TND))
    shared = layer.num_heads // layer.num_key_heads
    k, v = k.repeat_interleave(shared, 0), v.repeat_interleave(shared, 0)
    places = torch.arange(len(heads_TND))
    distance = places[:, None] - places[None, :]
    sees = torch.ones_like(distance, dtype=torch.bool)
    if layer.reach is not None:
        sees &= distance.abs() <= layer.reach
    if layer.is_causal:
        sees &= distance >= 0
    logits = (q @ k.transpose(1, 2) * layer.scale).masked_fill(~sees, -torch.inf)
    return (torch.softmax(logits, -1) @ v).transpose(0, 1).flatten(1)


@pytest.mark.parametrize("form", ["segments", "blocks"])
@pytest.mark.parametrize("name", list(LAYERS))
def test_equals_softmax(name: str, form: str) -> None:
    layer = LAYERS[name]
    generator = torch.Generator().manual_seed(0)
    num_rows = sum(LENGTHS) + 11
    heads_RND = torch.randn(num_rows, HEADS + 2 * layer.num_key_heads, DIM, generator=generator)
    attend: Attend = BlockAttention(LENGTHS, num_rows=num_rows)
    if form == "segments":
        attend = DenseAttention(LENGTHS, num_rows=num_rows, dtype=torch.float32)
    found = attend(heads_RND, layer)
    assert bool(torch.isfinite(found).all())
    start = 0
    for length in LENGTHS:
        wanted = attend_plainly(heads_RND[start : start + length], layer)
        # 2.4e-6 is what float32 attention was seen to err at most for heads of 32 values.
        assert float((found[start : start + length].double() - wanted).abs().max()) < 5e-6, length
        start += length


def test_neighbours_are_never_seen() -> None:
    """Segments beside one that is not finite stay as they are."""
    generator = torch.Generator().manual_seed(1)
    lengths = (130, 40, 130)
    heads_RND = torch.randn(sum(lengths), 3 * HEADS, DIM, generator=generator)
    for layer in LAYERS.values():
        if layer.num_key_heads != HEADS:
            continue
        attend = DenseAttention(lengths, num_rows=sum(lengths), dtype=torch.float32)
        clean = attend(heads_RND, layer)
        poisoned = heads_RND.clone()
        poisoned[130:170] = torch.nan
        found = attend(poisoned, layer)
        assert torch.equal(found[:130], clean[:130]) and torch.equal(found[170:], clean[170:])
        assert bool(torch.isnan(found[130:170]).all())
