"""The dataflow under Ray Data: small read tasks -> prepare tasks -> encoder actors -> a sink that hands in the rows.

One execution per chunk: its sink's completion is the point at which the chunk's rows are known to be complete.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasink, Datasource, ReadTask, WriteResult
from ray.exceptions import RayError

from lodestream.actors.encoder_actor import EncoderActor
from lodestream.actors.featurizer import Featurizer
from lodestream.actors.options import FeaturizerOptions
from lodestream.errors import ExecutorError, LodestreamError
from lodestream.pipeline.changes import PlannedRead, cut_chunks
from lodestream.pipeline.config.settings import RunConfig
from lodestream.pipeline.executors import MICRO_BATCH_BYTES, MICRO_BATCH_DOCUMENTS, OnProgress
from lodestream.pipeline.ray_session import start_ray
from lodestream.pipeline.reuse import SegmentIndex, find_known
from lodestream.pipeline.stages import (
    READ_SCHEMA,
    Reading,
    StageOutput,
    encode_documents,
    merge_outputs,
    output_to_row,
    outputs_from_rows,
    prepare_documents,
    read_documents,
)

TASK_CPUS: Final = 0.5
ACTOR_CPUS: Final = 0.25
"""Small on purpose: an actor pool takes its CPUs before the reads begin, and on two CPUs whole ones would deadlock.
They differ so that Ray does not fuse the prepare tasks into the actors, where they would wait for the encoder."""

NO_PROGRESS_TIMEOUT_S: Final = 120
SLOWEST_BYTES_PER_S: Final = 10_000
"""A run without progress is ended; one huge document may take this long a byte before it counts as that."""

_ERROR: Final = "error"


class RayExecutor:
    """Runs the stages on a local or a remote Ray. Starts a local one where none is configured, and ends only that."""

    name: Final = "ray"

    def __init__(self, featurizer: Featurizer, config: RunConfig, reading: Reading) -> None:
        self._featurizer = featurizer
        self._reading = reading
        self._started_ray = not ray.is_initialized()
        if self._started_ray:
            start_ray(config.ray_address, without="--set run.executor=local")
        self.num_workers = config.ray_workers or _count_actors()
        _check_cpus(self.num_workers)
        _quieten_ray()
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.verbose_progress = False

    def run_chunk(
        self, reads: Sequence[PlannedRead], indexes: Sequence[SegmentIndex], *, run_id: str, on_progress: OnProgress
    ) -> StageOutput:
        sink = RowsDatasink()
        # What every actor needs is pickled once with the stage: options and the snapshot's place, no weights, no rows.
        encode_table = partial(_encode_table, indexes=tuple(indexes), run_id=run_id)
        dataset: Dataset = ray.data.read_datasource(BodiesDatasource(reads, self._reading), override_num_blocks=None)
        dataset = dataset.map_batches(
            partial(_prepare_table, options=self._featurizer.options),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=TASK_CPUS,
        ).map_batches(
            EncoderActor,
            fn_constructor_args=(self._featurizer.options, encode_table, _actor_threads(self.num_workers)),
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=self.num_workers),
            num_cpus=ACTOR_CPUS,
        )
        largest_bytes = max(read.candidate.size_bytes for read in reads)
        timeout_s = NO_PROGRESS_TIMEOUT_S + largest_bytes // SLOWEST_BYTES_PER_S
        DataContext.get_current().execution_no_progress_timeout_s = timeout_s
        _execute(dataset, sink)
        output = merge_outputs(sink.outputs, dim=self._featurizer.model.dim)
        on_progress(reads, output.counts)
        return output

    def close(self) -> None:
        """Ends the Ray that this executor started."""
        if self._started_ray:
            ray.shutdown()


class BodiesDatasource(Datasource):
    """The documents of one chunk as read tasks of a micro-batch each; a task carries names and sizes, no text."""

    def __init__(self, reads: Sequence[PlannedRead], reading: Reading) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._reading = reading
        self._reads = tuple(reads)

    def estimate_inmemory_data_size(self) -> int:
        return sum(read.candidate.size_bytes for read in self._reads)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        batches = cut_chunks(self._reads, max_documents=MICRO_BATCH_DOCUMENTS, max_bytes=MICRO_BATCH_BYTES)
        return [_make_read_task(batch, self._reading) for batch in batches]


@dataclass(frozen=True, slots=True)
class _ReadBatch:
    reads: tuple[PlannedRead, ...]
    reading: Reading

    def __call__(self) -> Iterable[pa.Table]:
        yield read_documents(self.reads, self.reading)


def _make_read_task(batch: tuple[PlannedRead, ...], reading: Reading) -> ReadTask:
    size_bytes = sum(read.candidate.size_bytes for read in batch)
    metadata = BlockMetadata(num_rows=len(batch), size_bytes=size_bytes, input_files=None, exec_stats=None)
    return ReadTask(_ReadBatch(batch, reading), metadata, schema=READ_SCHEMA)


class RowsDatasink(Datasink[pa.Table]):
    """Collects a chunk's rows on the driver. ``outputs`` is set by the completion, and by nothing else: an execution
    that fails leaves it unset, so that no part of a chunk is ever taken for the whole."""

    def __init__(self) -> None:
        self._outputs: list[StageOutput] | None = None

    @property
    def outputs(self) -> list[StageOutput]:
        if self._outputs is None:
            raise ExecutorError("Ray Data ended without completing the chunk", "see Ray's log, then run again")
        return self._outputs

    def write(self, blocks: Iterable[Any], ctx: Any) -> pa.Table:
        return pa.concat_tables([block for block in blocks if block.num_rows], promote_options="default")

    def on_write_complete(self, write_result: WriteResult[pa.Table]) -> None:
        for rows in write_result.write_returns:
            _raise_carried(rows)
        self._outputs = [output for rows in write_result.write_returns for output in outputs_from_rows(rows)]


def _execute(dataset: Dataset, sink: RowsDatasink) -> None:
    """Runs the dataset; an error of Ray's, or one that is a defect of ours, comes out as what it means here."""
    try:
        dataset.write_datasink(sink)
    except RayError as error:
        # A worker's exception is here as text only, in front of what Ray made of it.
        text = str(error).partition("\nThe above exception was the direct cause")[0]
        lines = [line for line in text.splitlines() if line.strip()]
        raise ExecutorError(
            f"Ray Data failed: {lines[-1] if lines else type(error).__name__}",
            "run again: finished chunks are kept; --set run.executor=local shows whether it is Ray",
        ) from error


def _carry(error: LodestreamError) -> pa.Table:
    """The row that brings an error of ours from a worker to the driver: Ray would hand on its text alone."""
    return pa.table({_ERROR: pa.array([pickle.dumps(error)], pa.binary())})


def _raise_carried(rows: pa.Table) -> None:
    if _ERROR in rows.column_names:
        for value in rows.column(_ERROR).drop_null():
            error: LodestreamError = pickle.loads(value.as_py())  # noqa: S301  (our own worker wrote it)
            raise error


def _prepare_table(read: pa.Table, options: FeaturizerOptions) -> pa.Table:
    try:
        return prepare_documents(_task_featurizer(options), read)
    except LodestreamError as error:
        return _carry(error)


_TASK_FEATURIZERS: dict[FeaturizerOptions, Featurizer] = {}


def _task_featurizer(options: FeaturizerOptions) -> Featurizer:
    # A worker process runs many prepare tasks: tokenizer and background table are loaded by the first.
    return _TASK_FEATURIZERS.setdefault(options, Featurizer(options))


def _encode_table(
    featurizer: Featurizer,
    prepared: pa.Table,
    memory: dict[bytes, Any],
    *,
    indexes: Sequence[SegmentIndex],
    run_id: str,
) -> pa.Table:
    if _ERROR in prepared.column_names:
        return prepared
    try:
        output = encode_documents(
            featurizer, prepared, find_known=lambda spans: find_known(indexes, spans), memory=memory, run_id=run_id
        )
    except LodestreamError as error:
        return _carry(error)
    return output_to_row(output)


def _quieten_ray() -> None:
    """Errors reach the caller as exceptions; on the terminal Ray's own lines, tracebacks among them, would come first.
    Its log files keep them; a handler that somebody else put there is theirs."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and type(handler).__module__.startswith("ray."):
            handler.setLevel(logging.CRITICAL)


def _count_actors() -> int:
    """As many encoder actors as there are GPUs, else one for every two cores: more would share them."""
    resources = ray.cluster_resources()
    num_gpus = int(resources.get("GPU", 0))
    return num_gpus or max(1, min(int(resources.get("CPU", 1)), os.cpu_count() or 1) // 2)


def _actor_threads(num_actors: int) -> int:
    return max(1, (os.cpu_count() or 1) // num_actors)


def _check_cpus(num_actors: int) -> None:
    """A pool that cannot start waits for ever; better to say so before anything runs."""
    available = float(ray.cluster_resources().get("CPU", 0))
    needed = num_actors * ACTOR_CPUS + 2 * TASK_CPUS + 1
    if available < needed:
        raise ExecutorError(
            f"the dataflow needs {needed:g} logical CPUs for {num_actors} encoder actors, Ray has {available:g}",
            "lower run.ray_workers, or give Ray more CPUs (ray.init(num_cpus=...))",
        )
