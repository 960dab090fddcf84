"""What runs inside Spark tasks: Arrow batches in, Arrow batches out. Of Spark, only the task's number is used.

Map tasks turn pieces or table rows into parts (`spark_parts`). Reduce tasks turn all parts of a bucket into its shard
on disk and one *result* row that describes it.
"""

from __future__ import annotations

import json
import logging
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import polars as pl
import pyarrow as pa

from longbatch.jobs.commit.build_result import BuildResult
from longbatch.jobs.commit.incremental_state import EarlierFiles
from longbatch.jobs.readers import chunks as readers
from longbatch.jobs.readers.chunks import Chunk, Piece, plain_types
from longbatch.jobs.readers.sources import read_piece
from longbatch.schemas.accounting import RowAccounting

from .conflicts import Conflicts
from .context import BuildContext
from .quarantine import quarantine_conflicts, quarantine_rows, write_quarantine
from .spark_parts import (
    BUCKET,
    Part,
    accounting_content,
    chunk_name,
    frame_of,
    parts_batch,
    read_parts,
    rejected_content,
)
from .spark_results import TaskResult, pack_result
from .stages import (
    REQUEST_USERS,
    VOCABULARY,
    BuildFacts,
    buckets_of_rows,
    build_shard,
    canonicalize_chunk,
    find_conflicts,
    one_batch,
    rows_content,
    split_by_bucket,
    split_frame,
    write_vocabulary,
)

# Large enough that Spark's cost per batch is small, small enough that several fit beside a chunk.
FLUSH_BYTES = 32 << 20


@dataclass(frozen=True)
class TaskSettings:
    """What the driver sends to every task.

    Attributes:
        context: The build.
        partitions: Number of partitions of the reduce; bucket b belongs to partition `b % partitions`.
        log_level: Level of the driver's log, which executors use for their own.
    """

    context: BuildContext
    partitions: int
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
        yield from _batches(_parts_of_chunk(context, settings.partitions, source, chunk), settings.partitions)


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
        yield from _batches(_parts_of_chunk(context, settings.partitions, source, chunk), settings.partitions)


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


def _batches(parts: Iterable[Part], partitions: int) -> Iterator[pa.RecordBatch]:
    """Parts in record batches of about FLUSH_BYTES."""
    waiting, size = [], 0
    for part in parts:
        waiting.append(part)
        size += len(part.data)
        if size >= FLUSH_BYTES:
            yield parts_batch(waiting, partitions)
            waiting, size = [], 0
    if waiting:
        yield parts_batch(waiting, partitions)


def _parts_of_chunk(context: BuildContext, partitions: int, source: str, chunk: Chunk) -> Iterator[Part]:
    canonical, name = canonicalize_chunk(context, source, chunk), chunk_name(chunk)
    # Accounting and rejected rows belong to no bucket: spread them, by a hash that every process computes alike.
    any_bucket = sum(name.encode()) % context.buckets
    yield Part.of_accounting(any_bucket, source, chunk, canonical.accounting)
    if canonical.latest_action is not None:
        yield Part.of_latest_action(any_bucket, chunk, canonical.latest_action)
    # Reduce tasks write the rejected rows, because only they return results to the driver. A map task must not write
    # files: Spark may run it again, to restore lost shuffle data, after its files were counted.
    rejected = quarantine_rows(chunk, canonical.rejected)
    yield from Part.of_rows(any_bucket, rejected_content(source), name, one_batch(rejected))
    for content, batches in split_by_bucket(context, source, canonical, partitions):
        for partition, batch in enumerate(batches):
            if batch.num_rows:
                yield from Part.of_rows(partition, content, name, batch)


def split_partitions(settings: TaskSettings, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Task between map and reduce, if a partition has several buckets: split its rows by bucket.

    Args:
        settings: What the driver sends.
        batches: Parts, sorted by bucket, content and chunk, whose rows are split by partition.

    Yields:
        Parts whose rows are split by bucket.
    """
    context = settings.set_up_executor()
    parts = (part for batch in batches for part in read_parts(batch))
    for (first_bucket, content), group in groupby(parts, key=lambda part: (part.bucket, part.content)):
        if content in (REQUEST_USERS, VOCABULARY) or content.startswith(rows_content("")):
            split = _split_rows(context, settings.partitions, first_bucket, content, group)
            yield from _batches(split, settings.partitions)
        else:
            yield from _batches(group, settings.partitions)


def _split_rows(
    context: BuildContext, partitions: int, first_bucket: int, content: str, parts: Iterable[Part]
) -> Iterator[Part]:
    """Rows of several chunks, about FLUSH_BYTES at a time, split over buckets `first_bucket + n * partitions`."""
    remaining = iter(parts)
    for first in remaining:
        together, size = [first], len(first.data)
        while size < FLUSH_BYTES and (part := next(remaining, None)):
            together.append(part)
            size += len(part.data)
        frame = frame_of(together)
        number = buckets_of_rows(context, content, frame) // partitions
        for n, batch in enumerate(split_frame(frame, number, -(-context.buckets // partitions))):
            # The name of the first chunk keeps the order of rows.
            yield from Part.of_rows(first_bucket + n * partitions, content, first.chunk, batch)


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
    """Task: find the request ids that several users share, and write them to the work folder.

    Args:
        settings: What the driver sends.
        batches: Parts with users of requests, sorted by bucket.

    Yields:
        A result with conflicts.
    """
    context = settings.set_up_executor()
    none = Conflicts(context.buckets)
    results, ids, pairs = [], defaultdict[int, list[pl.Series]](list), 0
    for bucket, parts in _by_bucket(batches):
        contents = _by_content(parts)
        if contents[REQUEST_USERS]:
            request_users = frame_of(contents[REQUEST_USERS])
            conflicts, result = find_conflicts(context, bucket, request_users, _earlier_files(contents))
            results.append(result)
            ids[bucket % none.groups].append(conflicts)
            pairs += request_users.height
    files = [none.write(group, pl.concat(of_group), context.store, context.attempt) for group, of_group in ids.items()]
    yield pack_result(TaskResult(BuildResult.total(results), none.join(files), pairs))


def reduce_buckets(
    settings: TaskSettings, facts: BuildFacts, batches: Iterable[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Reduce task: build every bucket of its partition, one after the other.

    Args:
        settings: What the driver sends.
        facts: What the kernel must know about all users.
        batches: Parts, sorted by bucket, content and chunk.

    Yields:
        A result.
    """
    context = settings.set_up_executor()
    # All parts of a bucket: these bytes are the memory that a reduce task needs besides the kernel's.
    results = (_reduce_bucket(context, bucket, _by_content(parts), facts) for bucket, parts in _by_bucket(batches))
    yield pack_result(TaskResult(BuildResult.total(results)))


def _by_content(parts: Iterable[Part]) -> dict[str, list[Part]]:
    contents = defaultdict[str, list[Part]](list)
    for part in parts:
        contents[part.content].append(part)
    return contents


def _earlier_files(contents: dict[str, list[Part]]) -> EarlierFiles:
    """Files of a bucket from earlier increments; only increments send them."""
    return contents[BUCKET][0].earlier_files() if contents[BUCKET] else EarlierFiles()


def _reduce_bucket(
    context: BuildContext, bucket: int, contents: dict[str, list[Part]], facts: BuildFacts
) -> BuildResult:
    results, earlier = [], _earlier_files(contents)
    rows: dict[str, pl.DataFrame | None] = {}
    for source in context.spec.sources:
        accountings = (part.accounting() for part in contents[accounting_content(source)])
        results.append(BuildResult(row_accounting={source: sum(accountings, RowAccounting())}))
        of_chunks = groupby(contents.pop(rejected_content(source), []), key=lambda part: part.chunk)
        for number, (_, chunk_parts) in enumerate(of_chunks):
            file = f"{source}-{context.attempt}-{bucket:05d}-{number:04d}"
            results.append(write_quarantine(context, file, frame_of(chunk_parts)))
        # `pop` drops the reference in `contents`, so that the streams can be freed as soon as they are one frame.
        parts = contents.pop(rows_content(source), [])
        results.append(BuildResult(shuffled_bytes=sum(len(part.data) for part in parts)))
        rows[source] = frame_of(parts) if parts else None
        del parts  # free the streams before the kernel needs its memory
    words = contents.pop(VOCABULARY, [])
    if words:
        results.append(write_vocabulary(context, bucket, frame_of(words), earlier))
    results.append(build_shard(context, bucket, rows, earlier, facts))
    return BuildResult.total(results)


def quarantine_task(
    settings: TaskSettings, is_files: bool, conflicts: Conflicts, batches: Iterable[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Task: write the original rows of conflicting requests to the quarantine.

    Args:
        settings: What the driver sends.
        is_files: Whether the batches are pieces of files, or rows of a Spark table.
        conflicts: The request ids that several users share.
        batches: Pieces or raw rows of the requests' source.

    Yields:
        A result.
    """
    context = settings.set_up_executor()
    source = context.spec.requests.source
    chunks: Iterator[Chunk]
    if is_files:
        chunks = (chunk for _, chunk in _piece_chunks(context, batches))
    else:
        chunks = _table_chunks(context, source, batches)
    results = (
        quarantine_conflicts(context, f"conflicts-{context.attempt}-{number:06d}", chunk, conflicts)
        for number, chunk in enumerate(chunks)
    )
    yield pack_result(TaskResult(BuildResult.total(results)))
