"""What runs inside Spark tasks: Arrow batches in, Arrow batches out. Of Spark, only the task's number is used.

Map tasks turn pieces or table rows into parts (`spark_parts`). Reduce tasks turn all parts of a bucket into its shard
on disk and one *result* row that describes it.
"""

from __future__ import annotations

import json
import logging
import pickle
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import polars as pl
import pyarrow as pa

from longbatch.jobs.commit.build_result import BuildResult
from longbatch.jobs.readers import chunks as readers
from longbatch.jobs.readers.chunks import Chunk, Piece, plain_types
from longbatch.jobs.readers.sources import read_piece
from longbatch.pipelines.canonicalize import LogFacts

from .context import BuildContext
from .spark_parts import Part, accounting_content, chunk_name, frame_of, parts_batch, read_parts, rejected_content
from .stages import (
    VOCABULARY,
    build_shard,
    canonicalize_chunk,
    find_conflicts,
    quarantine_conflicts,
    rows_content,
    split_by_bucket,
    write_quarantine,
    write_vocabulary,
)

RESULTS_SCHEMA = pa.schema([pa.field("result", pa.binary())])
RESULTS_DDL = "result binary"
# Large enough that Spark's cost per batch is small, small enough that several fit beside a chunk.
FLUSH_BYTES = 32 << 20


@dataclass(frozen=True)
class TaskSettings:
    """What the driver sends to every task.

    Attributes:
        context: The build.
        log_level: Level of the driver's log, which executors use for their own.
    """

    context: BuildContext
    log_level: int

    def set_up_executor(self) -> BuildContext:
        """Set up the log of the executor's Python process, and return the context of the running task attempt."""
        package = logging.getLogger("longbatch")
        package.setLevel(self.log_level)
        if not package.hasHandlers():
            # Spark shows the stderr of its Python workers in the executor's log.
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
            package.addHandler(handler)
        # Two attempts of a task may run at once (speculative execution), so each writes files of its own name.
        return self.context.for_task(_task_number())


@dataclass(frozen=True)
class TaskResult:
    """What a task returns to the driver.

    Attributes:
        result: Files and counts.
        conflicts: Conflicting request ids, if the task looked for them.
        pairs: Number of pairs of request and user that the task looked at for conflicts.
    """

    result: BuildResult
    conflicts: pl.Series | None = None
    pairs: int = 0


def map_pieces(settings: TaskSettings, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Map task: read, canonicalize and split pieces of files.

    Args:
        settings: What the driver sends.
        batches: Rows whose column `piece` is the JSON of a `Piece`.

    Yields:
        Parts.
    """
    context = settings.set_up_executor()
    for source, chunk in _piece_chunks(context, batches):
        yield from _map_chunk(context, source, chunk)


def map_table(settings: TaskSettings, source: str, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Map task: canonicalize and split rows of a Spark table.

    Args:
        settings: What the driver sends.
        source: Name of the source.
        batches: Raw rows.

    Yields:
        Parts.
    """
    context = settings.set_up_executor()
    for chunk in _table_chunks(context, source, batches):
        yield from _map_chunk(context, source, chunk)


def _piece_chunks(context: BuildContext, batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[str, Chunk]]:
    """Source and chunk of every piece that the rows name."""
    for batch in batches:
        for document in batch["piece"].to_pylist():
            piece = Piece(**json.loads(str(document)))
            for chunk in read_piece(context.spec, piece):
                yield piece.source, chunk


def _table_chunks(context: BuildContext, source: str, batches: Iterable[pa.RecordBatch]) -> Iterator[Chunk]:
    """Combine the small batches that Spark sends into chunks of about CHUNK_ROWS rows."""
    name = context.spec.sources[source].path[0]
    first_row, rows = 0, 0
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        # Spark sends 10,000 rows a batch by default. Split over thousands of buckets, that is a few rows a part.
        waiting.append(batch)
        rows += batch.num_rows
        if rows >= readers.CHUNK_ROWS:
            yield _table_chunk(name, first_row, waiting)
            first_row, waiting, rows = first_row + rows, [], 0
    if waiting:
        yield _table_chunk(name, first_row, waiting)


def _table_chunk(name: str, first_row: int, batches: list[pa.RecordBatch]) -> Chunk:
    return Chunk(name, first_row, plain_types(pl.DataFrame(pl.from_arrow(pa.Table.from_batches(batches)))))


def _map_chunk(context: BuildContext, source: str, chunk: Chunk) -> Iterator[pa.RecordBatch]:
    """Parts of one chunk, in record batches of about FLUSH_BYTES."""
    parts, size = [], 0
    for part in _parts_of_chunk(context, source, chunk):
        parts.append(part)
        size += len(part.data)
        if size >= FLUSH_BYTES:
            yield parts_batch(parts)
            parts, size = [], 0
    if parts:
        yield parts_batch(parts)


def _parts_of_chunk(context: BuildContext, source: str, chunk: Chunk) -> Iterator[Part]:
    canonical = canonicalize_chunk(context, source, chunk)
    # Accounting and rejected rows belong to no bucket: spread them, by a hash that every process computes alike.
    any_bucket = sum(chunk_name(chunk).encode()) % context.buckets
    yield Part.of_accounting(any_bucket, source, chunk, canonical.accounting)
    if canonical.latest_action is not None:
        yield Part.of_latest_action(any_bucket, chunk, canonical.latest_action)
    # Reduce tasks write the rejected rows, because only they return results to the driver. A map task must not write
    # files: Spark may run it again, to restore lost shuffle data, after its files were counted.
    if canonical.rejected.height or chunk.malformed:
        yield Part.of_rejected(any_bucket, source, chunk, canonical.rejected)
    for content, batches in split_by_bucket(context, source, canonical):
        for bucket, batch in enumerate(batches):
            if batch.num_rows:
                yield from Part.of_rows(bucket, content, chunk, batch)


def _by_bucket(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[int, Iterator[Part]]]:
    """Parts by bucket, of batches sorted by bucket."""
    # groupby needs no memory beyond one bucket, because Spark has sorted the rows.
    parts = (part for batch in batches for part in read_parts(batch))
    return groupby(parts, key=lambda part: part.bucket)


def _task_number() -> int:
    """Number of this task attempt, unique within a Spark application."""
    from pyspark import TaskContext

    # None on the driver and in tests.
    context = TaskContext.get()
    return context.taskAttemptId() if context else 0


def find_conflicts_task(settings: TaskSettings, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Task: find the request ids that several users share.

    Args:
        settings: What the driver sends.
        batches: Parts with users of requests, sorted by bucket.

    Yields:
        Results with conflicting ids.
    """
    context = settings.set_up_executor()
    for bucket, parts in _by_bucket(batches):
        pairs = frame_of(parts)
        conflicts, result = find_conflicts(context, bucket, pairs)
        yield _pack_result(TaskResult(result, conflicts, pairs.height))


def reduce_buckets(
    settings: TaskSettings, log_facts: LogFacts, batches: Iterable[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Reduce task: build every bucket of its partition.

    Args:
        settings: What the driver sends.
        log_facts: What the kernel must know about all users.
        batches: Parts, sorted by bucket, content and chunk.

    Yields:
        Results.
    """
    context = settings.set_up_executor()
    for bucket, parts in _by_bucket(batches):
        # All parts of the bucket: these bytes are the memory that a reduce task needs besides the kernel's.
        contents = {content: list(group) for content, group in groupby(parts, key=lambda part: part.content)}
        yield _pack_result(TaskResult(_reduce_bucket(context, bucket, contents, log_facts)))


def _reduce_bucket(
    context: BuildContext, bucket: int, contents: dict[str, list[Part]], log_facts: LogFacts
) -> BuildResult:
    result = BuildResult()
    rows: dict[str, pl.DataFrame | None] = {}
    for source in context.spec.sources:
        for part in contents.get(accounting_content(source), []):
            result += BuildResult(row_accounting={source: part.accounting()})
        for number, part in enumerate(contents.get(rejected_content(source), [])):
            file = f"{source}-{context.attempt}-{bucket:05d}-{number:04d}"
            result += write_quarantine(context, file, part.rejected_chunk(), frame_of([part]))
        # `pop` drops the reference in `contents`, so that the streams can be freed as soon as they are one frame.
        parts = contents.pop(rows_content(source), [])
        result += BuildResult(shuffled_bytes=sum(len(part.data) for part in parts))
        rows[source] = frame_of(parts) if parts else None
        del parts  # free the streams before the kernel needs its memory
    words = contents.pop(VOCABULARY, [])
    if words:
        result += write_vocabulary(context, bucket, frame_of(words))
    return result + build_shard(context, bucket, rows, log_facts)


def quarantine_rows(
    settings: TaskSettings, is_files: bool, conflicts: pl.Series, batches: Iterable[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Task: write the original rows of conflicting requests to the quarantine.

    Args:
        settings: What the driver sends.
        is_files: Whether the batches are pieces of files, or rows of a Spark table.
        conflicts: The shared request ids.
        batches: Pieces or raw rows of the requests' source.

    Yields:
        Results.
    """
    context = settings.set_up_executor()
    source = context.spec.requests.source
    chunks: Iterator[Chunk]
    if is_files:
        chunks = (chunk for _, chunk in _piece_chunks(context, batches))
    else:
        chunks = _table_chunks(context, source, batches)
    for number, chunk in enumerate(chunks):
        name = f"conflicts-{context.attempt}-{number:06d}"
        yield _pack_result(TaskResult(quarantine_conflicts(context, name, chunk, conflicts)))


def _pack_result(result: TaskResult) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([{"result": pickle.dumps(result)}], schema=RESULTS_SCHEMA)


def unpack_result(data: bytes) -> TaskResult:
    """Read a result row on the driver.

    Args:
        data: The row's `result`, pickled like everything else that Spark moves between Python processes.

    Returns:
        The result of the task.
    """
    result: TaskResult = pickle.loads(data)
    return result
