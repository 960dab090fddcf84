"""The stages of a build as both engines run them, in the order in which a row passes them.

    read -> canonicalize -> split by bucket -> kernel -> pack -> write

Reading is in `longbatch.jobs.readers`. Each function here is one task and depends on its arguments only; the engines
decide where tasks run and how rows move between them.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import cast

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from longbatch.jobs.commit.build_result import BuildResult
from longbatch.jobs.commit.incremental_state import EarlierFiles, append_request_users, read_state, write_state
from longbatch.jobs.commit.table_files import read_frame, write_frame
from longbatch.jobs.readers.chunks import Chunk
from longbatch.pipelines.arrays.hashing import bucket_of
from longbatch.pipelines.arrays.narrow_ints import narrow, with_codes
from longbatch.pipelines.canonicalize import Canonical, LogFacts, canonicalize, conflicting_requests
from longbatch.pipelines.kernel import build_bucket
from longbatch.pipelines.next_state import advance_state
from longbatch.pipelines.pack import event_status, pack, plan_segments
from longbatch.pipelines.profile import TableSamples, profile_bucket
from longbatch.schemas.accounting import RowAccounting
from longbatch.schemas.format.disk import write_file
from longbatch.schemas.format.manifest import FileEntry
from longbatch.schemas.format.shard_writer import codec_of, write_shard
from longbatch.schemas.ragged import offsets_of
from longbatch.schemas.source_schema import source_schema
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.storage.store import Store
from longbatch.schemas.types import ArrowField
from longbatch.validation.rules import MALFORMED_ROW

from .conflicts import Conflicts, hash_of
from .context import BuildContext

logger = logging.getLogger(__name__)

# As many rows as a chunk, so that the task of a bucket needs about as much memory as the task of a chunk.
ROWS_PER_BUCKET = 1 << 20
MAX_BUCKETS = 1 << 16  # `bucket_of` returns 16 bits; beyond 69 billion rows buckets get larger
REQUEST_USERS, VOCABULARY = "request_users", "vocabulary"
VOCABULARY_FIELDS: list[ArrowField] = [pa.field("id", pa.int64()), pa.field("string", pa.string())]

BucketNumbers = npt.NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class BuildFacts:
    """What is known of the whole log before any bucket is built.

    Attributes:
        log_end: Microseconds up to which the log of actions is complete; None if unknown.
        conflicts: The request ids that several users share; None if there are none.
    """

    log_end: int | None = None
    conflicts: Conflicts | None = None


def rows_content(source: str) -> str:
    """Name of the part that contains the canonical rows of a source.

    Args:
        source: Name of the source.
    """
    return f"rows:{source}"


def bucket_count(rows: int) -> int:
    """Choose the number of user buckets, which bounds the memory of a task.

    Args:
        rows: Number of rows of all sources.

    Returns:
        One bucket for every ROWS_PER_BUCKET rows, at most MAX_BUCKETS.
    """
    return max(1, min(MAX_BUCKETS, -(-rows // ROWS_PER_BUCKET)))


def canonicalize_chunk(
    context: BuildContext, source: str, chunk: Chunk, conflicts: pl.Series | None = None
) -> Canonical:
    """Canonicalize a chunk, in an incremental build only what is in its window, and count malformed lines as rejected.

    Args:
        context: The build.
        source: Name of the source.
        chunk: Raw rows.
        conflicts: Ids of requests whose target rows are rejected because several users share the id.

    Returns:
        Canonical rows, rejected rows and their accounting.

    Raises:
        SourceError: A column is missing or has an unsuitable type.
    """
    canonical = canonicalize(chunk.frame, context.spec, source, conflicts, context.window)
    malformed = len(chunk.malformed)
    logger.debug(
        "canonicalized %s from row %d: %d rows, %d rejected, %d malformed lines",
        chunk.path,
        chunk.first_row,
        canonical.rows.height,
        canonical.accounting.rejected,
        malformed,
    )
    if not malformed:
        return canonical
    lines = RowAccounting(rows=malformed, rejected=malformed, reasons={MALFORMED_ROW: malformed})
    return replace(canonical, accounting=canonical.accounting + lines)


def split_by_bucket(
    context: BuildContext, source: str, canonical: Canonical, partitions: int
) -> Iterator[tuple[str, list[pa.RecordBatch]]]:
    """Split what a chunk became: rows by user, users of requests by request id, vocabulary by hashed id.

    Args:
        context: The build.
        source: Name of the source.
        canonical: The canonicalized chunk.
        partitions: Number of partitions; bucket b belongs to partition `b % partitions`.

    Yields:
        Content of the part, and one record batch per partition, possibly empty. Parts without rows are skipped.
    """
    frames = [(rows_content(source), canonical.rows), (VOCABULARY, canonical.vocabulary)]
    if canonical.request_users is not None:
        frames.append((REQUEST_USERS, canonical.request_users))
    for content, frame in frames:
        if frame.height:
            bucket = buckets_of_rows(context, content, frame)
            # Without `%` for one bucket per partition, the common case, because it costs as much as the hash.
            yield (
                content,
                split_frame(frame, bucket % partitions if partitions < context.buckets else bucket, partitions),
            )


def buckets_of_rows(context: BuildContext, content: str, frame: pl.DataFrame) -> BucketNumbers:
    """Return the bucket of each row: a hash of its key, so that all rows with a key meet, whatever their files.

    Args:
        context: The build.
        content: What the frame contains: rows of a source (`rows_content`), REQUEST_USERS or VOCABULARY.
        frame: N rows.

    Returns:
        (N,) unsigned integers.
    """
    if content == REQUEST_USERS:
        key = hash_of(frame["request_id"])
    elif content == VOCABULARY:
        # By id, so that strings whose ids collide meet.
        key = frame["id"].to_numpy()
    else:
        source = content.removeprefix(rows_content(""))
        key = frame[source_schema(context.spec, source).user_id].to_numpy()
    return bucket_of(key, context.buckets)


def split_frame(frame: pl.DataFrame, bucket: BucketNumbers, buckets: int) -> list[pa.RecordBatch]:
    """Split rows by bucket; within a bucket they keep their order.

    rows a b c d e, bucket = [2, 0, 2, 0, 2], buckets = 4
    stable order by bucket:  b d | | a c e |   bounds = [0, 2, 2, 5, 5]
    -> [b d], [], [a c e], []

    Args:
        frame: N rows.
        bucket: Bucket of each row, (N,).
        buckets: Number of buckets.

    Returns:
        One record batch per bucket, slices of one batch in narrowed types.
    """
    # Counting sort: NumPy's stable sort of 16-bit integers is a radix sort, and the running totals of rows per bucket
    # are the bounds. Stable, because the order of rows in a bucket is the order of the log.
    order = np.argsort(bucket, kind="stable")
    bounds = offsets_of(np.bincount(bucket, minlength=buckets))
    # Narrow once for all buckets: the type that fits is then the same in every batch of this chunk.
    narrowed, codes = narrow(frame)
    all_rows = with_codes(one_batch(narrowed[order]), codes)
    return [all_rows.slice(int(start), int(end - start)) for start, end in pairwise(bounds)]


def one_batch(frame: pl.DataFrame) -> pa.RecordBatch:
    """Convert a frame to one record batch, of zero rows if it has none, in types that every Arrow reader knows.

    Args:
        frame: Any frame.
    """
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest()).combine_chunks()
    batches = table.to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


def build_shard(
    context: BuildContext,
    bucket: int,
    rows: Mapping[str, pl.DataFrame | None],
    earlier: EarlierFiles,
    facts: BuildFacts,
) -> BuildResult:
    """Build one user bucket: kernel, pack, write the shard, and in an incremental build write the new state.

    Args:
        context: The build.
        bucket: Number of the bucket.
        rows: Canonical rows of the bucket by source; None if it has none.
        earlier: Files of the bucket from earlier increments.
        facts: What the kernel must know about all users.

    Returns:
        The shard's entry and everything that is counted in the bucket.

    Raises:
        MachineError: The disk is full.
    """
    spec, increment = context.spec, context.increment
    frames = {source: _or_empty(rows.get(source), spec, source) for source in spec.sources}
    log_facts = LogFacts(_conflicts_among(context, frames, facts.conflicts), facts.log_end)
    built = build_bucket(spec, frames, log_facts, read_state(context.store, earlier) if increment else None)
    # Each bucket samples its share of the rows, rounded up; buckets of users are equal parts by hash.
    profile, samples = profile_bucket(spec, built, -(-spec.expectations.sample_rows // context.buckets))
    # Blocks are a lazy iterator, so that only one block at a time is in memory beside the kernel's output.
    blocks, counts = pack(built, spec)
    shard = write_shard(context.store, bucket, context.attempt, spec, blocks)
    state: tuple[FileEntry, ...] = ()
    if increment:
        # Planned a second time, from the same numbers, because `pack` does not return its plan.
        segments = plan_segments(built, spec)
        later = advance_state(spec, built, increment.until, segments.user_id, event_status(built, segments))
        state = write_state(context.store, bucket, context.attempt, later)
    logger.debug("built bucket %d: %d requests, %d targets", bucket, counts.requests, counts.targets)
    return BuildResult(
        shards=(shard,) if shard else (),
        row_accounting=built.row_accounting,
        counts=counts,
        profile=profile,
        samples=samples,
        state=state,
    )


def _conflicts_among(
    context: BuildContext, frames: Mapping[str, pl.DataFrame], conflicts: Conflicts | None
) -> pl.Series | None:
    if conflicts is None:
        return None
    source = context.spec.requests.source
    names = source_schema(context.spec, source).names["requests"]
    return conflicts.among(frames[source][names["request_id"]], context.store)


def _or_empty(rows: pl.DataFrame | None, spec: BuildSpec, source: str) -> pl.DataFrame:
    """Canonical rows of a bucket, or a frame of zero rows in the same columns."""
    if rows is not None:
        return rows
    return cast(pl.DataFrame, pl.from_arrow(source_schema(spec, source).arrow_schema.empty_table()))


def find_conflicts(
    context: BuildContext, bucket: int, request_users: pl.DataFrame, earlier: EarlierFiles
) -> tuple[pl.Series, BuildResult]:
    """Find the request ids of one bucket that several users share; an incremental build also keeps all ids.

    Args:
        context: The build.
        bucket: Number of a bucket of request ids.
        request_users: All pairs (request_id, user_id) of these ids.
        earlier: Files of the bucket from earlier increments.

    Returns:
        The conflicting ids, and the file of all ids.

    Raises:
        DataError: An id was already appended before.
    """
    # A committed request cannot change, so an increment must find the ids of all earlier ones, to refuse them.
    state: tuple[FileEntry, ...] = ()
    if context.increment:
        state = append_request_users(context.store, earlier, bucket, context.attempt, request_users)
    return conflicting_requests(request_users), BuildResult(state=state)


def write_vocabulary(context: BuildContext, bucket: int, words: pl.DataFrame, earlier: EarlierFiles) -> BuildResult:
    """Write the new distinct (id, string) of one bucket of hashed ids, and count ids that belong to several strings.

    Args:
        context: The build.
        bucket: Number of the bucket.
        words: All pairs (id, string) of the bucket, with repetitions.
        earlier: Files of the bucket from earlier increments.

    Returns:
        The vocabulary file, unless every pair is known already, and the number of collisions.

    Raises:
        MachineError: The disk is full.
    """
    # Sorted, so that the file's bytes do not depend on the order of chunks.
    words = words.unique().sort("id", "string")
    collisions = words.height - words["id"].n_unique()
    if earlier.vocabulary:
        before = pl.concat([read_frame(context.store, entry) for entry in earlier.vocabulary])
        words = words.join(before, on=["id", "string"], how="anti").sort("id", "string")
        ids = pl.concat([before["id"], words["id"]])
        # Collisions within `before` were counted by the increments that wrote it.
        collisions = len(ids) - ids.n_unique() - (before.height - before["id"].n_unique())
    if not words.height:
        return BuildResult()
    options = pa.ipc.IpcWriteOptions(compression=codec_of(context.spec.compression))
    table = words.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(pa.schema(VOCABULARY_FIELDS))
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    path = f"vocabulary/{bucket:05d}-{context.attempt}.arrow"
    entry = write_file(context.store, path, sink.getvalue(), words.height, bucket=bucket)
    return BuildResult(vocabulary=(entry,), collisions=collisions)


def write_samples(samples: TableSamples, store: Store, attempt: str) -> tuple[FileEntry, ...]:
    """Write the sampled rows of the tables as Parquet files.

    Args:
        samples: Sampled rows by table.
        store: The dataset.
        attempt: Name of the attempt.

    Returns:
        Their file entries, with the table's name.

    Raises:
        MachineError: The disk is full.
    """
    return tuple(
        write_frame(store, f"samples/{table}-{attempt}.parquet", rows, table=table) for table, rows in samples.items()
    )
