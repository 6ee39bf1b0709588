"""Where the stages run: what an executor is, and the one that runs them in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import pyarrow as pa

from lodestream.actors.features import LeafVectors
from lodestream.actors.featurizer import Featurizer
from lodestream.actors.options import EncodeCounts
from lodestream.pipeline.changes import PlannedRead, cut_chunks
from lodestream.pipeline.reuse import SegmentIndex, find_known
from lodestream.pipeline.session import set_threads
from lodestream.pipeline.stages import (
    Reading,
    StageOutput,
    encode_documents,
    has_work,
    merge_outputs,
    pass_through,
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

    @property
    def num_workers(self) -> int:
        """Encoders that work at the same time; a chunk is as many times larger."""
        ...

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
    num_workers: Final = 1

    def __init__(self, featurizer: Featurizer, reading: Reading, *, num_threads: int) -> None:
        """Args:
        featurizer: the one featurizer.
        reading: what reads the documents.
        num_threads: of the encoder; 0 = one a core.
        """
        self._featurizer = featurizer
        self._reading = reading
        self._num_threads = num_threads
        self._has_threads = False

    def run_chunk(
        self, reads: Sequence[PlannedRead], indexes: Sequence[SegmentIndex], *, run_id: str, on_progress: OnProgress
    ) -> StageOutput:
        memory: dict[bytes, LeafVectors] = {}
        outputs = []
        for batch in cut_chunks(reads, max_documents=MICRO_BATCH_DOCUMENTS, max_bytes=MICRO_BATCH_BYTES):
            counts = EncodeCounts()
            started = time.perf_counter()
            read = read_documents(batch, self._reading)
            counts.clock("read", started)
            output = self._featurize(read, indexes, memory, counts, run_id)
            output.counts.add(counts)
            outputs.append(output)
            on_progress(batch, output.counts)
        return merge_outputs(outputs, dim=self._featurizer.model.dim)

    def close(self) -> None:
        """Nothing to give back."""

    def _featurize(
        self,
        read: pa.Table,
        indexes: Sequence[SegmentIndex],
        memory: dict[bytes, LeafVectors],
        counts: EncodeCounts,
        run_id: str,
    ) -> StageOutput:
        if not has_work(read):
            return pass_through(read, dim=self._featurizer.model.dim)
        prepared = prepare_documents(self._featurizer, read, counts)
        if not self._has_threads:
            # Not before there is work: it loads torch.
            set_threads(self._num_threads)
            self._has_threads = True
        return encode_documents(
            self._featurizer,
            prepared,
            find_known=lambda spans: find_known(indexes, spans),
            memory=memory,
            run_id=run_id,
        )
