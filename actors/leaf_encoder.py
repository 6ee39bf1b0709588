"""Segments in, leaf vectors out: packing, the encoder, pooling."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from lodestream.actors.attention import AttentionPolicy
from lodestream.actors.features import LeafVectors
from lodestream.actors.options import EncodeCounts
from lodestream.actors.prepared import PreparedSpans
from lodestream.kernels.attention.budget import SegmentPlan
from lodestream.kernels.encoder import Encoder
from lodestream.kernels.packing import pack, plan_batches
from lodestream.kernels.span_pool.api import PooledSpans, pool_spans
from lodestream.kernels.sparse_attention import SparseSegment

GROUP_TOKENS: Final = 1 << 18
"""Tokens that are laid out for the encoder at once: more than a micro-batch has, unless it is one large document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _EncoderInput:
    """One segment as the encoder reads it; ``heading``: positions of the heading prefix, half-open; ``plan``: of its
    sparse attention, None where it is dense."""

    token_ids: NDArray[np.int32]
    leaf_starts: NDArray[np.int32]
    num_tokens: int
    heading: tuple[int, int]
    plan: SegmentPlan | None


class LeafEncoder:
    """Encodes segments with one encoder; the same segment gives the same codes, whatever shares its batch."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        special_before: NDArray[np.int32],
        special_after: NDArray[np.int32],
        batch_tokens: int,
        policy: AttentionPolicy | None,
        num_layers: int,
    ) -> None:
        self._encoder = encoder
        self._before = special_before
        self._after = special_after
        self._batch_tokens = batch_tokens
        self._policy = policy
        self._num_layers = num_layers

    def encode(
        self, wanted: Mapping[bytes, tuple[PreparedSpans, int]], counts: EncodeCounts
    ) -> dict[bytes, LeafVectors]:
        """Leaf vectors of the segments ``wanted``: fingerprint -> a document's spans and the segment's index there.

        Cost: beyond the vectors, what GROUP_TOKENS take, however large a document is.
        """
        result: dict[bytes, LeafVectors] = {}
        for group in _group(wanted):
            result |= self._encode_group(group, wanted, counts)
        return result

    def _encode_group(
        self, fingerprints: Sequence[bytes], wanted: Mapping[bytes, tuple[PreparedSpans, int]], counts: EncodeCounts
    ) -> dict[bytes, LeafVectors]:
        inputs = [self._encoder_input(*wanted[f]) for f in fingerprints]
        lengths = np.array([len(i.token_ids) for i in inputs])
        counts.segments_encoded += len(inputs)
        counts.tokens_encoded += sum(i.num_tokens for i in inputs)
        counts.tokens_overhead += int(lengths.sum()) - sum(i.num_tokens for i in inputs)
        counts.longest_segment = max(counts.longest_segment, int(lengths.max()))
        result: dict[bytes, LeafVectors] = {}
        for rows in self._plan_batches(inputs, lengths):
            batch = [inputs[row] for row in rows]
            started = time.perf_counter()
            states = self._encode_batch(batch, counts)
            started = counts.clock("encode", started)
            result.update(zip([fingerprints[row] for row in rows], self._pool(states, batch), strict=True))
            counts.clock("pool", started)
        return result

    def _plan_batches(self, inputs: Sequence[_EncoderInput], lengths: NDArray[np.int64]) -> list[list[int]]:
        """What goes through the encoder together: dense segments by length, each sparse one alone, since it fills a
        batch, and since its layers may climb."""
        dense = np.array([row for row, item in enumerate(inputs) if item.plan is None], np.int64)
        batches = [dense[rows].tolist() for rows in plan_batches(lengths[dense], batch_tokens=self._batch_tokens)]
        return batches + [[row] for row, item in enumerate(inputs) if item.plan is not None]

    def _encode_batch(self, batch: Sequence[_EncoderInput], counts: EncodeCounts) -> torch.Tensor:
        packed = pack([item.token_ids for item in batch])
        plan = batch[0].plan
        if plan is None:
            return self._encoder.encode(packed)
        sparse = SparseSegment(plan, num_layers=self._num_layers)
        states = self._encoder.encode(packed, attend=sparse)
        counts.add(
            EncodeCounts(
                tokens_sparse=batch[0].num_tokens,
                pairs_sparse=len(sparse.kept) * packed.num_tokens**2,
                pairs_kept=round(sum(sparse.kept) * packed.num_tokens**2),
                flops_sparse=sparse.flops,
                flops_dense=sparse.dense_flops,
                layers_sparse=len(sparse.kept),
                layers_climbed=sparse.num_climbs,
                attention_errors=sparse.tally.as_lists(),
            )
        )
        return states

    def _encoder_input(self, spans: PreparedSpans, row: int) -> _EncoderInput:
        start, end = spans.segment_tokens[row].tolist()
        leaf_start, leaf_end = spans.segment_leaves[row].tolist()
        prefix = spans.segment_prefix_ids[spans.segment_prefix_offsets[row] : spans.segment_prefix_offsets[row + 1]]
        before, after = np.concatenate([self._before, spans.prompt_ids]), self._after
        token_ids = np.concatenate([before, prefix, spans.token_ids[start:end], after])
        num_around = (len(before) + len(prefix), len(after))
        return _EncoderInput(
            token_ids=token_ids,
            leaf_starts=spans.leaf_tokens[leaf_start:leaf_end, 0] - start,
            num_tokens=end - start,
            heading=(len(before), len(before) + len(prefix)),
            plan=self._plan(spans, (start, end), num_around),
        )

    def _plan(
        self, spans: PreparedSpans, segment_tokens: tuple[int, int], num_around: tuple[int, int]
    ) -> SegmentPlan | None:
        if self._policy is None:
            return None
        return self._policy.plan(
            spans.paragraph_density, spans.paragraph_tokens, segment_tokens=segment_tokens, num_around=num_around
        )

    def _pool(self, states_TC: torch.Tensor, batch: Sequence[_EncoderInput]) -> list[LeafVectors]:
        """Pools the leaves of the segments that were packed into ``states_TC``."""
        if self._encoder.pooling != "mean":
            return self._pool_whole_segments(states_TC, batch)
        kept, starts, ends, offset, position = [], [], [], 0, 0
        for item in batch:
            # The heading prefix gives context and is not pooled: its states are left out, so that the first special
            # token stands next to the first leaf that it counts with.
            heading_start, heading_end = item.heading
            kept.append(np.arange(position, position + heading_start))
            kept.append(np.arange(position + heading_end, position + len(item.token_ids)))
            position += len(item.token_ids)
            pooled_tokens = len(item.token_ids) - (heading_end - heading_start)
            first = item.leaf_starts + heading_start + offset
            first[0] = offset
            starts.append(first)
            ends.append(np.append(first[1:], offset + pooled_tokens))
            offset += pooled_tokens
        if offset != position:
            states_TC = states_TC.index_select(0, torch.from_numpy(np.concatenate(kept)))
        pooled = pool_spans(
            states_TC,
            torch.from_numpy(np.concatenate(starts).astype(np.int64)),
            torch.from_numpy(np.concatenate(ends).astype(np.int64)),
            head=self._encoder.head,
        )
        return _split_pooled(pooled, [len(item.leaf_starts) for item in batch])

    def _pool_whole_segments(self, states_TC: torch.Tensor, batch: Sequence[_EncoderInput]) -> list[LeafVectors]:
        """[CLS] or last-token pooling: every leaf of a segment carries the segment's own vector."""
        ends = np.cumsum([len(item.token_ids) for item in batch])
        begins = ends - np.array([len(item.token_ids) for item in batch])
        picked = begins if self._encoder.pooling == "cls" else ends - 1
        num_leaves = [len(item.leaf_starts) for item in batch]
        rows = np.repeat(picked, num_leaves).astype(np.int64)
        pooled = pool_spans(states_TC, torch.from_numpy(rows), torch.from_numpy(rows + 1), head=self._encoder.head)
        return _split_pooled(pooled, num_leaves)


def _group(wanted: Mapping[bytes, tuple[PreparedSpans, int]]) -> Iterator[list[bytes]]:
    """Runs of segments of at least GROUP_TOKENS tokens, and what is left."""
    group: list[bytes] = []
    num_tokens = 0
    for fingerprint, (spans, row) in wanted.items():
        start, end = spans.segment_tokens[row].tolist()
        group.append(fingerprint)
        num_tokens += end - start
        if num_tokens >= GROUP_TOKENS:
            yield group
            group, num_tokens = [], 0
    if group:
        yield group


def _split_pooled(pooled: PooledSpans, num_leaves: Sequence[int]) -> list[LeafVectors]:
    pooled = pooled.to_host()
    codes, scales, norms = pooled.codes.numpy(), pooled.scales.numpy(), pooled.norms.numpy()
    whole = LeafVectors(
        codes=codes,
        scales=scales,
        norms=norms,
        computed_at_us=np.full(len(codes), time.time_ns() // 1000, np.int64),
    )
    ends = np.cumsum(num_leaves).tolist()
    return [whole.rows(end - size, end) for end, size in zip(ends, num_leaves, strict=True)]
