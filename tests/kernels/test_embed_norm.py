"""Embeddings and their norm on a CPU, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lodestream.kernels.embed_norm.api import embed_norm
from lodestream.kernels.embed_norm.tables import EmbeddingTables
from lodestream.kernels.gpu_check.inputs import DTYPES, ODD_ROWS, make_norm, make_tables, make_tokens
from lodestream.kernels.gpu_check.oracle import expect_embed_norm, measure_excess


@pytest.mark.parametrize("num_tokens", ODD_ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("parts", ["words", "positions", "types", "all"])
def test_results_are_those_of_float64(num_tokens: int, dtype: torch.dtype, parts: str) -> None:
    positions, types = parts in {"positions", "all"}, parts in {"types", "all"}
    tables = make_tables(384, positions=positions, types=types, dtype=dtype, first_position=2)
    norm = make_norm("rms" if parts == "words" else "layer", 384)
    arguments: dict[str, Any] = {
        "positions_T": torch.arange(num_tokens) if positions else None,
        "types_T": make_tokens(num_tokens, limit=2) if parts == "all" else None,
        "dtype": dtype,
        "stream_dtype": torch.float32,
        "num_rows": num_tokens + 3,
    }
    branch, summed, normed = expect_embed_norm(make_tokens(num_tokens), tables, norm, **arguments)
    for stream, expected in (("sum", summed), ("normed", normed)):
        found = embed_norm(make_tokens(num_tokens), tables, norm, stream=stream, **arguments)  # type: ignore[arg-type]
        assert found[0].dtype == dtype
        assert measure_excess(found[0], branch) <= 1
        assert measure_excess(found[1], expected) <= 1


def test_one_tensor_where_branch_and_stream_hold_the_same() -> None:
    tables = make_tables(64, positions=False, types=False)
    branch, stream = embed_norm(make_tokens(5), tables, make_norm("layer", 64))
    assert branch is stream
    before = tables.words_VC.clone()
    embed_norm(make_tokens(5), tables, make_norm("layer", 64), stream="sum")
    assert torch.equal(tables.words_VC, before)


@pytest.mark.parametrize(
    ("tables", "arguments"),
    [
        (make_tables(64), {}),
        (make_tables(64, positions=False), {"positions_T": torch.arange(5)}),
        (make_tables(64, positions=False, types=False), {"types_T": torch.zeros(5, dtype=torch.int64)}),
        (make_tables(64), {"positions_T": torch.arange(4)}),
        (make_tables(32), {"positions_T": torch.arange(5)}),
        (make_tables(64), {"positions_T": torch.arange(5), "num_rows": 4}),
        (
            EmbeddingTables(words_VC=torch.zeros(50, 64), types_UC=torch.zeros(2, 63)),
            {},
        ),
    ],
)
def test_what_does_not_fit_is_refused(tables: EmbeddingTables, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"positions|types|norm|rows|tables"):
        embed_norm(make_tokens(5), tables, make_norm("layer", 64), **arguments)
