"""The eager forms of the fused operators on a CPU, against the same written out with torch's own functions.

    python tests/bench/bench_operators.py [--rounds 41]

The operators must cost an encoder on a CPU nothing. One thread, processor time, in turns on the same tensors, 2,048
rows; recorded is the median of the ratios of the rounds: at most 1 where the operator is as fast.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import harness
import torch
import torch.nn.functional as F

from lodestream.kernels.add_norm.api import add_norm
from lodestream.kernels.embed_norm.api import embed_norm
from lodestream.kernels.glu.api import glu
from lodestream.kernels.gpu_check.inputs import make_norm, make_rows, make_tables, make_tokens
from lodestream.kernels.rope.api import rope
from lodestream.kernels.rope.table import make_rotary_table

NAME = "operators"
NUM_ROWS = 2048


@dataclass(frozen=True, kw_only=True)
class Pair:
    case: str
    ours: Callable[[], object]
    plain: Callable[[], object]


def list_embeddings() -> Iterator[Pair]:
    tables, norm = make_tables(384, types=False), make_norm("layer", 384)
    tokens, positions = make_tokens(NUM_ROWS), torch.arange(NUM_ROWS) % 512
    assert tables.positions_PC is not None
    rows = tables.positions_PC

    def plain() -> torch.Tensor:
        hidden = torch.zeros(NUM_ROWS, 384)
        torch.index_select(tables.words_VC, 0, tokens, out=hidden)
        hidden += rows[positions]
        return F.layer_norm(hidden, (384,), norm.weight_C, norm.bias_C, norm.eps)

    yield Pair(
        case="embed_norm, LayerNorm, 384 wide",
        ours=lambda: embed_norm(tokens, tables, norm, positions_T=positions),
        plain=plain,
    )


def list_norms() -> Iterator[Pair]:
    for dim in (384, 768):
        norm, update, residual = make_norm("layer", dim), make_rows(NUM_ROWS, dim), make_rows(NUM_ROWS, dim, seed=1)

        def plain(d: int = dim, n=norm, u=update, r=residual) -> torch.Tensor:  # type: ignore[no-untyped-def]
            r += u
            return F.layer_norm(r, (d,), n.weight_C, n.bias_C, n.eps)

        yield Pair(
            case=f"add_norm, LayerNorm, {dim} wide",
            ours=lambda n=norm, u=update, r=residual: add_norm(u, r, n, stream="normed"),  # type: ignore[misc]
            plain=plain,
        )
    rms, update, residual = make_norm("rms", 1024), make_rows(NUM_ROWS, 1024), make_rows(NUM_ROWS, 1024, seed=1)

    def plain_rms() -> torch.Tensor:
        residual.add_(update)
        return F.rms_norm(residual, (1024,), rms.weight_C, rms.eps)

    yield Pair(
        case="add_norm, RMSNorm, 1024 wide",
        ours=lambda: add_norm(update, residual, rms, stream="sum"),
        plain=plain_rms,
    )


def list_activations() -> Iterator[Pair]:
    for dtype in (torch.float32, torch.bfloat16):
        x, wide = make_rows(NUM_ROWS, 1536, dtype=dtype), make_rows(NUM_ROWS, 2304, dtype=dtype)
        name = str(dtype).removeprefix("torch.")
        yield Pair(case=f"glu, GELU, {name}", ours=lambda x=x: glu(x, "gelu"), plain=lambda x=x: F.gelu(x))  # type: ignore[misc]
        yield Pair(
            case=f"glu, GeGLU, {name}",
            ours=lambda x=wide: glu(x, "gelu", activated="first"),  # type: ignore[misc]
            plain=lambda x=wide: F.gelu(x[:, :1152]) * x[:, 1152:],  # type: ignore[misc]
        )


def list_rotations() -> Iterator[Pair]:
    for dtype in (torch.float32, torch.bfloat16):
        qkv = make_rows(NUM_ROWS, 3 * 768, dtype=dtype).view(NUM_ROWS, 36, 64)
        q, k = qkv[:, :12], qkv[:, 12:24]
        table, positions = (
            make_rotary_table(theta=10_000.0, head_dim=64, num_positions=512),
            torch.arange(NUM_ROWS) % 512,
        )
        cos, sin = (torch.cat([part, part], 1)[positions][:, None] for part in (table.cos_PR, table.sin_PR))

        def turn(x: torch.Tensor, cos: torch.Tensor = cos, sin: torch.Tensor = sin) -> torch.Tensor:
            first, last = x.float().chunk(2, 2)
            return (x * cos + torch.cat([-last, first], 2) * sin).to(x.dtype)

        yield Pair(
            case=f"rope, 12 + 12 heads of 64, {str(dtype).removeprefix('torch.')}",
            ours=lambda q=q, k=k, p=positions, t=table: rope(q, k, p, t),  # type: ignore[misc]
            plain=lambda q=q, k=k, t=turn: (t(q), t(k)),  # type: ignore[misc]
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=41)
    options = parser.parse_args()
    torch.set_num_threads(1)
    harness.start(NAME)
    with torch.inference_mode():
        for pair in (*list_embeddings(), *list_norms(), *list_activations(), *list_rotations()):
            forms = {"ours": pair.ours, "plain": pair.plain}
            for form in forms.values():
                form()
            times = harness.interleave(
                options.rounds,
                {name: lambda f=form: harness.measure_time(f).cpu_seconds for name, form in forms.items()},  # type: ignore[misc]
            )
            ratios = [ours / plain for ours, plain in zip(times["ours"], times["plain"], strict=True)]
            harness.record(
                NAME,
                "lodestream, eager",
                "processor time / torch's own",
                "ratio",
                ratios,
                pair.case,
                {"rows": NUM_ROWS},
            )


if __name__ == "__main__":
    main()
