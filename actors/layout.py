"""From an outline and its densities to leaves, segments and their fingerprints."""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lodestream.actors.attention import AttentionPolicy, tag_plan
from lodestream.actors.prepared import PreparedSpans
from lodestream.actors.segment import Outline
from lodestream.schema import FINGERPRINT_BYTES, PARAGRAPH_KINDS

_KIND_INDEX: Final[dict[str, int]] = {kind: index for index, kind in enumerate(PARAGRAPH_KINDS)}


def lay_out(
    outline: Outline,
    density: NDArray[np.float32],
    fine: NDArray[np.bool_],
    *,
    vector_recipe: bytes,
    num_special: tuple[int, int],
    prompt_ids: NDArray[np.int32],
    policy: AttentionPolicy | None,
) -> PreparedSpans:
    """Chooses the leaves of each paragraph and names the segments by fingerprint.

    Args:
        outline: the spans of one document; at least one paragraph.
        density: float32 [P].
        fine: bool [P], True where the leaves are the paragraph's sentences.
        vector_recipe: names everything besides the tokens that a leaf's vector depends on.
        num_special: special tokens before and after a segment.
        prompt_ids: int32, what the model wants before each segment, behind the special tokens.
        policy: which segments are attended sparsely; None for none.
    """
    chars, tokens, paragraph_leaves = _choose_leaves(outline, fine)
    runs = outline.segment_paragraphs
    segment_leaves = np.stack([paragraph_leaves[runs[:, 0], 0], paragraph_leaves[runs[:, 1] - 1, 1]], axis=1)
    segment_tokens = np.stack([tokens[segment_leaves[:, 0], 0], tokens[segment_leaves[:, 1] - 1, 1]], axis=1)
    prefixes = [np.asarray(prefix, np.int32) for prefix in outline.segment_prefix_ids]
    offsets = np.zeros(len(runs) + 1, np.int32)
    np.cumsum([len(prefix) for prefix in prefixes], out=offsets[1:])
    if len(prompt_ids):
        vector_recipe += b" prompt " + np.ascontiguousarray(prompt_ids, np.int32).tobytes()

    def name_recipe(token_start: int, token_end: int, prefix: NDArray[np.int32]) -> bytes:
        if policy is None:
            return vector_recipe
        plan = policy.plan(
            density,
            outline.paragraph_tokens,
            segment_tokens=(token_start, token_end),
            num_around=(num_special[0] + len(prompt_ids) + len(prefix), num_special[1]),
        )
        return vector_recipe + tag_plan(plan)

    fingerprints = [
        _fingerprint(
            name_recipe(token_start, token_end, prefix),
            prefix,
            tokens[leaf_start:leaf_end, 0] - token_start,
            outline.token_ids[token_start:token_end],
        )
        for prefix, (leaf_start, leaf_end), (token_start, token_end) in zip(
            prefixes, segment_leaves.tolist(), segment_tokens.tolist(), strict=True
        )
    ]
    return PreparedSpans(
        token_ids=outline.token_ids,
        prompt_ids=prompt_ids,
        paragraph_kinds=np.array([_KIND_INDEX[kind] for kind in outline.paragraph_kinds], np.int8),
        paragraph_chars=outline.paragraph_chars,
        paragraph_topics=outline.paragraph_topics,
        paragraph_density=density,
        paragraph_fine=fine,
        paragraph_leaves=paragraph_leaves,
        leaf_chars=chars,
        leaf_tokens=tokens,
        segment_leaves=segment_leaves.astype(np.int32),
        segment_tokens=segment_tokens.astype(np.int32),
        segment_prefix_ids=np.concatenate([np.zeros(0, np.int32), *prefixes]),
        segment_prefix_offsets=offsets,
        segment_fingerprints=np.frombuffer(b"".join(fingerprints), np.uint8).reshape(-1, FINGERPRINT_BYTES),
    )


def _fingerprint(
    vector_recipe: bytes, prefix: NDArray[np.int32], leaf_starts: NDArray[np.int32], token_ids: NDArray[np.int32]
) -> bytes:
    """Hash of the recipe, the heading prefix, the tokens and where the leaves begin among them."""
    digest = hashlib.blake2b(vector_recipe, digest_size=FINGERPRINT_BYTES)
    # The lengths come first, so that no two triples of arrays give the same bytes.
    digest.update(np.array([len(prefix), len(leaf_starts), len(token_ids)], np.int32).tobytes())
    for part in (prefix, leaf_starts, token_ids):
        digest.update(np.ascontiguousarray(part, np.int32).tobytes())
    return digest.digest()


def _choose_leaves(
    outline: Outline, fine: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Leaves in text order: (chars [L, 2], tokens [L, 2], leaves of each paragraph [P, 2])."""
    num_sentences = np.bincount(outline.sentence_paragraphs, minlength=len(fine))
    sizes = np.where(fine, num_sentences, 1)
    ends = np.cumsum(sizes)
    starts = ends - sizes
    chars = np.zeros((int(ends[-1]), 2), np.int32)
    tokens = np.zeros_like(chars)
    from_sentence = fine[outline.sentence_paragraphs]
    leaf_is_sentence = np.repeat(fine, sizes)
    chars[leaf_is_sentence] = outline.sentence_chars[from_sentence]
    tokens[leaf_is_sentence] = outline.sentence_tokens[from_sentence]
    chars[~leaf_is_sentence] = outline.paragraph_chars[~fine]
    tokens[~leaf_is_sentence] = outline.paragraph_tokens[~fine]
    return chars, tokens, np.stack([starts, ends], axis=1).astype(np.int32)
