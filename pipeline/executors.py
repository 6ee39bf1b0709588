"""Where the stages run: what an executor is, and the one that runs them in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from lodestream.actors.features import LeafVectors
from lodestream.actors.featurizer import Featurizer
from lodestream.actors.options import EncodeCounts
from lodestream.pipeline.changes import PlannedRead, cut_chunks
from lodestream.pipeline.reuse import SegmentIndex, find_known
from lodestream.pipeline.stages import (
    Readers,
    StageOutput,
    encode_documents,
    merge_outputs,
    prepare_documents,
    read_documents,
)

MICRO_BATCH_DOCUMENTS: Final = 256
MICRO_BATCH_BYTES: Final = 512 * 1024
"""Text that is prepared at once: enough segments to fill encoder batches with equal lengths, little memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is; documents and bytes of bodies, tokens of new and changed documents."""

    documents_done: int
    documents_total: int
    bytes_done: int
    bytes_total: int
    counts: EncodeCounts
    seconds: float


OnProgress = Callable[[Sequence[PlannedRead], EncodeCounts], None]
"""Called after each micro-batch with what was read and what the encoder did."""


class Executor(Protocol):
    """Where the stages run."""

    @property
    def name(self) -> Literal["local", "ray"]: ...

    def run_chunk(
        self, reads: Sequence[PlannedRead], indexes: Sequence[SegmentIndex], *, run_id: str, on_progress: OnProgress
    ) -> StageOutput:
        """Runs all stages over the documents of one chunk; ``indexes`` know the stored segments."""
        ...

    def close(self) -> None:
        """Gives back what the executor holds."""
        ...


class LocalExecutor:
    """Runs the stages in this process, one micro-batch after the other. Memory is bounded by a chunk's rows."""

    name: Final = "local"

    def __init__(self, featurizer: Featurizer, readers: Readers) -> None:
        self._featurizer = featurizer
        self._readers = readers

    def run_chunk(
        self, reads: Sequence[PlannedRead], indexes: Sequence[SegmentIndex], *, run_id: str, on_progress: OnProgress
    ) -> StageOutput:
        memory: dict[bytes, LeafVectors] = {}
        outputs = []
        for batch in cut_chunks(reads, max_documents=MICRO_BATCH_DOCUMENTS, max_bytes=MICRO_BATCH_BYTES):
            counts = EncodeCounts()
            started = time.perf_counter()
            read = read_documents(batch, self._readers)
            counts.clock("read", started)
            prepared = prepare_documents(self._featurizer, read, counts)
            output = encode_documents(
                self._featurizer,
                prepared,
                find_known=lambda spans: find_known(indexes, spans),
                memory=memory,
                run_id=run_id,
            )
            output.counts.add(counts)
            outputs.append(output)
            on_progress(batch, output.counts)
        return merge_outputs(outputs, dim=self._featurizer.model.dim)

    def close(self) -> None:
        """Nothing to give back."""
