"""What a snapshot is made of: rows by granularity, how dense its paragraphs are, what is in quarantine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from lodestream.pipeline.states import read_quarantine
from lodestream.storage.store import Snapshot

NUM_BINS: Final = 20
SHOWN_QUARANTINED: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotProfile:
    """Of one snapshot.

    ``num_rows``       rows by granularity; ``num_documents`` with those in quarantine
    ``density_bins``   tokens of paragraphs by density, in NUM_BINS equal steps from 0 to 1
    ``dense_share``    share of the tokens in paragraphs of at least ``threshold``; None without tokens
    ``quarantined``    the first few documents in quarantine with their reasons
    """

    sequence: int
    num_documents: int
    num_rows: Mapping[str, int]
    density_bins: tuple[int, ...]
    threshold: float
    dense_share: float | None
    num_quarantined: int
    quarantined: tuple[Mapping[str, Any], ...]


def profile_snapshot(snapshot: Snapshot) -> SnapshotProfile:
    """Reads the profile.

    Cost: one pass over the paragraphs' density and token counts, four bytes a row, in bounded memory.
    """
    threshold = float(snapshot.recipe["base_below"])
    bins = np.zeros(NUM_BINS, np.int64)
    num_dense = 0
    for batch in snapshot.scan_features(["density", "token_count"], granularity="paragraph"):
        density = batch.column("density").to_numpy(zero_copy_only=False).astype(np.float32)
        tokens = batch.column("token_count").to_numpy().astype(np.int64)
        places = np.clip((density * NUM_BINS).astype(np.int64), 0, NUM_BINS - 1)
        bins += np.bincount(places, weights=tokens, minlength=NUM_BINS).astype(np.int64)
        num_dense += int(tokens[density >= np.float32(threshold)].sum())
    total = int(bins.sum())
    quarantined = read_quarantine(snapshot)
    return SnapshotProfile(
        sequence=snapshot.sequence,
        num_documents=snapshot.count_documents(),
        num_rows=snapshot.count_features(),
        density_bins=tuple(bins.tolist()),
        threshold=threshold,
        dense_share=num_dense / total if total else None,
        num_quarantined=len(quarantined),
        quarantined=tuple(
            {"doc_id": row["doc_id"], "reason": row["quarantine_reason"], "attempts": row["quarantine_attempts"]}
            for row in quarantined[:SHOWN_QUARANTINED]
        ),
    )
