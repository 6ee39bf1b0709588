"""Block-sparse attention against the best dense attention there is on this machine, in turns, on the same tensors.

    python tests/bench/bench_sparse_attention.py [--head-dims 32 64] [--lengths 512 8192] [--rounds 5]

A sparse time holds cells, mask and attention; beside it stands that of a layer as an encoder calls it, correction rows
and their trial included. Dense
is the fastest of torch's fused attention in float32 and in bfloat16 and of plain bfloat16 products. Four heads: heads
take their time one after the other. With one thread (``--threads 1``) the processor's time is taken, which others on
the machine disturb less; with more, the clock's.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import harness
import torch
import torch.nn.functional as F

from lodestream.kernels.attention.api import attend
from lodestream.kernels.attention.cells import summarise_cells
from lodestream.kernels.attention.correction import choose_step
from lodestream.kernels.attention.dense import attend_dense
from lodestream.kernels.attention.gate import Measurement, build_gate
from lodestream.kernels.attention.layout import BlockLayout, plan_blocks
from lodestream.kernels.block_mask import MaskRecipe, build_mask
from lodestream.kernels.precision import native_precision
from lodestream.kernels.sparse_attention import attend_sparsely

NAME = "sparse_attention"
NUM_HEADS = 4
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
SHARES = (0.125, 0.25, 0.4, 0.5, 0.6)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def make_inputs(num_tokens: int, head_dim: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """float32 q, k, v [T, H, D] in which runs of 40 tokens have something in common."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(num_tokens, 3, NUM_HEADS, head_dim, generator=generator)
    qkv += torch.randn(num_tokens // 40 + 1, 3, NUM_HEADS, head_dim, generator=generator).repeat_interleave(40, 0)[
        :num_tokens
    ]
    q, k, v = qkv.unbind(1)
    return q, k, v


@dataclass
class Sparse:
    """One sparse setting; remembers what it kept."""

    qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    layout: BlockLayout
    share: float
    kept: float = field(default=0.0, init=False)

    def attend(self) -> None:
        """Cells, mask and attention."""
        q, k, v = self.qkv
        cells = summarise_cells(k, v, self.layout)
        mask = build_mask(q, cells, self.layout, MaskRecipe(max_share=self.share))
        attend(q, k, v, mask, cells)
        self.kept = float(mask.keep_HP.float().mean())

    def attend_whole(self) -> None:
        """As an encoder calls it: the mask tried, and correction rows as well."""
        attend_sparsely(*self.qkv, self.layout, [MaskRecipe(max_share=self.share)], bound=math.inf)


def timed(call: Callable[[], object]) -> Callable[[], float]:
    def run() -> float:
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        started = clock()
        call()
        return clock() - started

    return run


def make_dense(inputs: dict[str, tuple[torch.Tensor, ...]], layout: BlockLayout) -> dict[str, Callable[[], object]]:
    def fused(name: str) -> Callable[[], object]:
        return lambda: F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in inputs[name]))

    providers: dict[str, Callable[[], object]] = {f"dense {name} fused": fused(name) for name in inputs}
    if "bf16" in inputs:
        q, k, v = inputs["bf16"]
        providers["dense bf16 products"] = lambda: attend_dense(q, k, v, layout)
    return providers


def measure(num_tokens: int, head_dim: int, shares: Sequence[float], rounds: int) -> None:
    layout = plan_blocks([num_tokens])
    q, k, v = make_inputs(num_tokens, head_dim)
    names = ["fp32", "bf16"] if native_precision() == "bf16" else ["fp32"]
    inputs = {name: (q.to(DTYPES[name]), k.to(DTYPES[name]), v.to(DTYPES[name])) for name in names}
    dense = make_dense(inputs, layout)
    sparse = {(name, share): Sparse(inputs[name], layout, share) for name in names for share in shares}
    providers = {name: timed(call) for name, call in dense.items()}
    for (name, share), setting in sparse.items():
        providers[f"{name} {share}"] = timed(setting.attend)
        providers[f"{name} {share} whole"] = timed(setting.attend_whole)
    for provider in providers.values():
        provider()
    seconds = harness.interleave(rounds, providers)
    config = {"head_dim": head_dim, "heads": NUM_HEADS, "threads": torch.get_num_threads()}
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    best = min(dense, key=lambda name: medians[name])
    for name in dense:
        harness.record(NAME, name, "time", "ms", [1e3 * s for s in seconds[name]], x=num_tokens, config=config)
    for (name, share), setting in sparse.items():
        # A float32 encoder has no bfloat16 path to fall back on.
        baseline = best if name == "bf16" else "dense fp32 fused"
        extra = {"kept": round(setting.kept, 4), "against": baseline, "correction_step": choose_step(num_tokens)}
        for metric, provider in (
            ("time / best dense", f"{name} {share}"),
            ("time / best dense, corrected", f"{name} {share} whole"),
        ):
            ratios = [one / other for one, other in zip(seconds[provider], seconds[baseline], strict=True)]
            line = f"sparse {name}, {share:g} kept"
            harness.record(NAME, line, metric, "", ratios, x=num_tokens, config=config | extra)


def print_gates(threads: int) -> None:
    """What ``kernels/attention/gate.py`` holds follows from the whole file, whatever runs wrote to it."""
    for engine in DTYPES:
        for head_dim in (32, 64):
            table = build_gate(f"torch-cpu {engine}", head_dim, read_measurements(engine, head_dim, threads))
            print(table)


def read_measurements(engine: str, head_dim: int, threads: int) -> list[Measurement]:
    """The comparisons of one engine and head dim in the benchmark's file, correction rows included."""
    found = []
    for text in (harness.RESULTS / f"{NAME}.jsonl").read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        config = line["config"]
        is_wanted = line["provider"].startswith(f"sparse {engine},") and line["metric"].endswith("corrected")
        if is_wanted and config["head_dim"] == head_dim and config["threads"] == threads:
            share = float(line["provider"].split(", ")[1].removesuffix(" kept"))
            found.append(Measurement(num_tokens=int(line["x"]), kept_share=share, ratio=float(line["p50"])))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head-dims", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--shares", type=float, nargs="+", default=list(SHARES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--append", action="store_true", help="keep what other runs measured")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not arguments.append:
        harness.start(NAME)
    for head_dim in arguments.head_dims:
        for num_tokens in arguments.lengths:
            with torch.inference_mode():
                measure(num_tokens, head_dim, arguments.shares, arguments.rounds)
    print_gates(arguments.threads)


if __name__ == "__main__":
    main()
