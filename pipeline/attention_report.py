"""What a run's summary says of attention: how much of it was sparse, how far off it was, and why not more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lodestream.actors.featurizer import Featurizer
from lodestream.actors.options import EncodeCounts
from lodestream.kernels.attention.error_bins import summarise_bins


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSetting:
    """What a run was asked for.

    ``from_tokens``  the length from which on a segment may be sparse
    ``why_dense``    why none can be; None where one can
    """

    mode: str = "auto"
    quality: str = "high"
    from_tokens: int | None = None
    why_dense: str | None = None


def read_setting(featurizer: Featurizer) -> AttentionSetting:
    """The setting that a featurizer works by."""
    policy, options = featurizer.attention, featurizer.options
    return AttentionSetting(
        mode=options.attention,
        quality=options.quality,
        from_tokens=None if policy is None else policy.min_tokens,
        why_dense=featurizer.why_dense,
    )


def report_attention(setting: AttentionSetting, counts: EncodeCounts) -> dict[str, Any]:
    """Attention of a run as JSON values: ``tokens`` of the encoded segments, ``pairs_kept`` the share of the sparse
    segments' query and key pairs that was computed exactly, ``flops`` what their attention took of the FLOPs of dense
    attention, ``error`` relative to dense attention, by layer."""
    errors = [summarise_bins(layer) for layer in counts.attention_errors]
    return {
        "mode": setting.mode,
        "quality": setting.quality,
        "tokens": {"dense": counts.tokens_encoded - counts.tokens_sparse, "sparse": counts.tokens_sparse},
        "pairs_kept": round(counts.pairs_kept / counts.pairs_sparse, 4) if counts.pairs_sparse else None,
        "flops": round(counts.flops_sparse / counts.flops_dense, 4) if counts.flops_dense else None,
        "layers": {"sparse": counts.layers_sparse, "climbed": counts.layers_climbed},
        "error": [{"mean": round(mean, 4), "p99": round(tail, 4)} for mean, tail in errors],
        "why_dense": _explain(setting, counts),
    }


def _explain(setting: AttentionSetting, counts: EncodeCounts) -> str | None:
    """Why nothing was sparse; None where something was."""
    if counts.tokens_sparse or not counts.tokens_encoded:
        return None
    if setting.why_dense or setting.from_tokens is None:
        return setting.why_dense
    if counts.longest_segment < setting.from_tokens:
        return (
            f"the longest segment has {counts.longest_segment} tokens, and sparse attention begins at "
            f"{setting.from_tokens}; segment.target_tokens and segment.over_headings make them longer"
        )
    return (
        "so much of the long segments is exact that dense attention is as fast; a lower encoder.quality makes less so"
    )
