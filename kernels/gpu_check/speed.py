"""What every kernel is timed against: the best dense form that is present, on the same tensors.

For attention those are torch's fused attention (FlashAttention, cuDNN) and compiled FlexAttention; for the small
operators the eager form, and the eager form compiled.

T tokens, H heads, D head dim, C model dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lodestream.kernels.add_norm import reference as add_norm_reference
from lodestream.kernels.attention.cells import CellSummary, summarise_cells
from lodestream.kernels.attention.layout import BlockMask, mask_all, mask_window, plan_blocks
from lodestream.kernels.block_mask import MaskRecipe, build_mask
from lodestream.kernels.embed_norm import reference as embed_norm_reference
from lodestream.kernels.fused_forms import import_fused
from lodestream.kernels.glu import reference as glu_reference
from lodestream.kernels.glu.kinds import Activated, Activation
from lodestream.kernels.gpu_check.attention_oracle import make_inputs
from lodestream.kernels.gpu_check.inputs import make_rows, make_tables, make_tokens, name_norm, place
from lodestream.kernels.gpu_check.target import Target
from lodestream.kernels.rope import reference as rope_reference
from lodestream.kernels.rope.table import make_rotary_table
from lodestream.kernels.span_pool import reference as span_pool_reference
from lodestream.kernels.sparse_attention import attend_sparsely

OURS = "lodestream"
WHOLE = "lodestream, mask and all"
_WINDOW = 128

Form = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One call and the forms of it that there are.

    Attributes:
        kernel, case: its name.
        x: tokens.
        forms: by provider, OURS among them; a baseline that this torch or GPU does not have raises RuntimeError.
        num_bytes: that the best form has to move; 0 where arithmetic is the bound.
        flops: of our form; 0 where memory is the bound.
    """

    kernel: str
    case: str
    x: int
    forms: dict[str, Form]
    num_bytes: int = 0
    flops: float = 0.0


def list_cases(target: Target) -> Iterator[Case]:
    """All cases of a target; with the interpreter they are tiny."""
    yield from _time_attention(target)
    yield from _time_windows(target)
    num_tokens = 16384 if target.is_gpu else 64
    yield from _time_norms(target, num_tokens)
    yield from _time_glu(target, num_tokens)
    yield from _time_rope(target, num_tokens)
    yield from _time_span_pool(target, num_tokens)


def _list_forms(
    target: Target, operator: str, function: str, reference: Callable[..., object], *arguments: Any, **options: Any
) -> dict[str, Form]:
    """Our form of a small operator, the eager one, and on a GPU the eager one compiled."""
    forms = {OURS: getattr(import_fused(operator), function), "eager": reference}
    if target.is_gpu:
        forms["compiled"] = torch.compile(reference, dynamic=False)
    return {name: partial(form, *arguments, **options) for name, form in forms.items()}


def _make_heads(target: Target, num_tokens: int, head_dim: int, num_heads: int) -> tuple[torch.Tensor, ...]:
    dtype = torch.bfloat16 if target.is_gpu else torch.float32
    return tuple(x.to(target.device) for x in make_inputs(num_tokens, head_dim, num_heads=num_heads, dtype=dtype))


def _dense_forms(target: Target, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> dict[str, Form]:
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    backends = {"SDPA, FlashAttention": SDPBackend.FLASH_ATTENTION, "SDPA, cuDNN": SDPBackend.CUDNN_ATTENTION}
    if not target.is_gpu:
        backends = {"SDPA": SDPBackend.MATH}

    def attend(backend: SDPBackend) -> torch.Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v)

    return {name: partial(attend, backend) for name, backend in backends.items()}


def _run_ours(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: BlockMask, cells: CellSummary | None) -> Form:
    return partial(import_fused("attention").attend_blocks, q, k, v, mask, cells, scale=q.shape[2] ** -0.5)


def _time_attention(target: Target) -> Iterator[Case]:
    lengths, shares = ((2048, 8192, 32768), (0.125, 0.25, 0.4, 0.6)) if target.is_gpu else ((100,), (0.5,))
    for head_dim, num_heads in ((32, 12), (64, 12), (128, 16)) if target.is_gpu else ((32, 1),):
        for num_tokens in lengths:
            q, k, v = _make_heads(target, num_tokens, head_dim, num_heads)
            dense = _dense_forms(target, q, k, v)
            dense_flops = 4.0 * num_tokens**2 * head_dim * num_heads
            name = f"{num_heads} heads of {head_dim}"
            layout = plan_blocks([num_tokens])
            everything = place(mask_all(layout), target.device)
            yield Case(
                kernel="attention",
                case=f"{name}, all kept",
                x=num_tokens,
                forms={OURS: _run_ours(q, k, v, everything, None), **dense},
                flops=dense_flops,
            )
            for share in shares:
                recipe = MaskRecipe(max_share=share)
                cells = summarise_cells(k, v, layout)
                mask = build_mask(q, cells, layout, recipe)
                kept = float(mask.keep_HP.double().mean())
                yield Case(
                    kernel="attention",
                    case=f"{name}, {share:.1%} kept",
                    x=num_tokens,
                    forms={
                        OURS: _run_ours(q, k, v, mask, cells),
                        WHOLE: partial(attend_sparsely, q, k, v, layout, [recipe], bound=math.inf),
                        **dense,
                    },
                    flops=dense_flops * (kept + (1 - kept) / 16),
                )


def _time_windows(target: Target) -> Iterator[Case]:
    num_tokens = 8192 if target.is_gpu else 100
    q, k, v = _make_heads(target, num_tokens, 64, 12 if target.is_gpu else 1)
    layout = plan_blocks([num_tokens])
    mask = place(mask_window(layout, window=_WINDOW), target.device)
    forms = {OURS: _run_ours(q, k, v, mask, None), **_dense_forms(target, q, k, v)}
    if target.is_gpu:
        forms["FlexAttention, compiled"] = _make_flex_window(q, k, v)
    kept = float(mask.keep_HP.double().mean())
    flops = 4.0 * num_tokens**2 * 64 * q.shape[1] * kept
    yield Case(kernel="attention", case=f"window of {_WINDOW}", x=num_tokens, forms=forms, flops=flops)


def _make_flex_window(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Form:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def is_seen(_batch: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (query - key).abs() <= _WINDOW // 2

    q, k, v = (x.transpose(0, 1)[None].contiguous() for x in (q, k, v))
    block_mask = create_block_mask(is_seen, None, None, q.shape[2], q.shape[2], device=q.device)
    return partial(torch.compile(flex_attention, dynamic=False), q, k, v, block_mask=block_mask)


def _time_norms(target: Target, num_tokens: int) -> Iterator[Case]:
    dtype = torch.bfloat16 if target.is_gpu else torch.float32
    stream_bytes = torch.float32.itemsize
    shapes = [(384, "layer"), (768, "layer without bias"), (1024, "rms")] if target.is_gpu else [(384, "layer")]
    for dim, norm_name in shapes:
        update = make_rows(num_tokens, dim, dtype=dtype).to(target.device)
        residual = make_rows(num_tokens, dim, seed=1).to(target.device)
        norm = place(name_norm(norm_name, dim), target.device)
        options: dict[str, Any] = {"stream": "sum", "bias_C": None, "update_norm": None, "dtype": dtype}
        yield Case(
            kernel="add_norm",
            case=f"{norm_name}, {dim} wide",
            x=num_tokens,
            forms=_list_forms(
                target, "add_norm", "add_norm", add_norm_reference.add_norm, update, residual, norm, **options
            ),
            num_bytes=num_tokens * dim * (2 * dtype.itemsize + 2 * stream_bytes),
        )
    dim = 384
    tokens = make_tokens(num_tokens).to(target.device)
    tables, norm = (
        place(make_tables(dim, types=False, dtype=dtype), target.device),
        place(name_norm("layer", dim), target.device),
    )
    options = {
        "positions_T": (torch.arange(num_tokens) % 512).to(target.device),
        "types_T": None,
        "stream": "normed",
        "stream_dtype": torch.float32,
        "dtype": torch.float32,
        "num_rows": num_tokens,
    }
    yield Case(
        kernel="embed_norm",
        case=f"words and positions, {dim} wide",
        x=num_tokens,
        forms=_list_forms(
            target, "embed_norm", "embed_norm", embed_norm_reference.embed_norm, tokens, tables, norm, **options
        ),
        # The tables of this case fit the caches: what has to move is the result.
        num_bytes=num_tokens * dim * stream_bytes,
    )


def _time_glu(target: Target, num_tokens: int) -> Iterator[Case]:
    dtype = torch.bfloat16 if target.is_gpu else torch.float32
    cases: list[tuple[Activation, Activated, int]] = [("gelu", "all", 1536)]
    if target.is_gpu:
        cases += [("gelu", "first", 2304), ("silu", "first", 6144)]
    for activation, activated, width in cases:
        x = make_rows(num_tokens, width, dtype=dtype).to(target.device)
        num_columns = width if activated == "all" else width // 2
        yield Case(
            kernel="glu",
            case=f"{activation}, {activated}, {width} wide",
            x=num_tokens,
            forms=_list_forms(target, "glu", "glu", glu_reference.glu, x, activation, activated=activated, bias_I=None),
            num_bytes=num_tokens * (width + num_columns) * dtype.itemsize,
        )


def _time_rope(target: Target, num_tokens: int) -> Iterator[Case]:
    dtype = torch.bfloat16 if target.is_gpu else torch.float32
    shapes = ((12, 12, 64, None), (16, 8, 128, "rms")) if target.is_gpu else ((2, 1, 64, "rms"),)
    for heads, key_heads, head_dim, norm_name in shapes:
        total = heads + 2 * key_heads
        qkv = make_rows(num_tokens, total * head_dim, dtype=dtype).view(num_tokens, total, head_dim).to(target.device)
        table = place(make_rotary_table(theta=10_000.0, head_dim=head_dim, num_positions=8192), target.device)
        norm = None if norm_name is None else place(name_norm(norm_name, head_dim), target.device)
        positions = (torch.arange(num_tokens) % 8192).to(target.device)
        q, k = qkv[:, :heads], qkv[:, heads : heads + key_heads]
        yield Case(
            kernel="rope",
            case=f"{heads} + {key_heads} heads of {head_dim}, norm {norm_name}",
            x=num_tokens,
            forms=_list_forms(
                target, "rope", "rope", rope_reference.rope, q, k, positions, table, q_norm=norm, k_norm=norm
            ),
            num_bytes=2 * num_tokens * (heads + key_heads) * head_dim * dtype.itemsize,
        )


def _time_span_pool(target: Target, num_tokens: int) -> Iterator[Case]:
    for dim in (384, 768) if target.is_gpu else (384,):
        states = make_rows(num_tokens, dim).to(target.device)
        starts = torch.arange(0, num_tokens, 24, device=target.device)
        ends = (starts + 24).clamp(max=num_tokens)
        yield Case(
            kernel="span_pool",
            case=f"spans of 24, {dim} wide",
            x=num_tokens,
            forms={
                OURS: partial(import_fused("span_pool").pool_spans, states, starts, ends),
                "eager": partial(_pool_eagerly, states, starts, ends),
            },
            num_bytes=num_tokens * dim * states.itemsize + len(starts) * (dim + 4),
        )


def _pool_eagerly(states: torch.Tensor, starts: torch.Tensor, ends: torch.Tensor) -> object:
    return span_pool_reference.quantise(span_pool_reference.mean_spans(states, starts, ends))
