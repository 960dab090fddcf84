"""The stages of a build as both engines run them, in the order in which a row passes them.

    read -> canonicalize -> split by bucket -> kernel -> pack -> write

Reading is in `longbatch.jobs.readers`. Each function here is one task and depends on its arguments only; the engines
decide where tasks run and how rows move between them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from longbatch.jobs.commit.build_result import BuildResult
from longbatch.jobs.commit.disk_errors import writing
from longbatch.jobs.commit.incremental_state import append_request_users, read_state, write_state
from longbatch.jobs.readers.chunks import Chunk
from longbatch.pipelines.arrays.hashing import bucket_of, hash_string
from longbatch.pipelines.arrays.narrow_ints import narrow, with_codes
from longbatch.pipelines.canonicalize import Canonical, LogFacts, canonicalize, conflicting_requests
from longbatch.pipelines.kernel import build_bucket
from longbatch.pipelines.next_state import advance_state
from longbatch.pipelines.pack import event_status, pack, plan_segments
from longbatch.pipelines.profile import TableSamples, profile_bucket
from longbatch.schemas.accounting import RowAccounting
from longbatch.schemas.format.disk import check_file, file_entry
from longbatch.schemas.format.manifest import FileEntry
from longbatch.schemas.format.shard_writer import codec_of, write_shard
from longbatch.schemas.ragged import offsets_of
from longbatch.schemas.source_schema import source_schema
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.types import ArrowField
from longbatch.validation.rules import CONFLICTING_REQUEST, MALFORMED_ROW

from .context import BuildContext

logger = logging.getLogger(__name__)

# As many rows as a chunk, so that the task of a bucket needs about as much memory as the task of a chunk.
ROWS_PER_BUCKET = 1 << 20
MAX_BUCKETS = 8192  # each chunk has one record batch per bucket, so more buckets mean smaller batches
REQUEST_USERS, VOCABULARY = "request_users", "vocabulary"
VOCABULARY_FIELDS: list[ArrowField] = [pa.field("id", pa.int64()), pa.field("string", pa.string())]

BucketNumbers = npt.NDArray[np.unsignedinteger]


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
    context: BuildContext, source: str, canonical: Canonical
) -> Iterator[tuple[str, list[pa.RecordBatch]]]:
    """Split what a chunk became: rows by user, users of requests by request id, vocabulary by hashed id.

    Args:
        context: The build.
        source: Name of the source.
        canonical: The canonicalized chunk.

    Yields:
        Content of the part, and one record batch per bucket, possibly empty. Parts without rows are skipped.
    """
    rows = canonical.rows
    # A hash decides the bucket, so that all rows with the same key meet in one bucket, whatever their files.
    keys = [(rows_content(source), rows, rows[source_schema(context.spec, source).user_id])]
    if canonical.request_users is not None:
        request_id = canonical.request_users["request_id"]
        hashed = hash_string(request_id) if request_id.dtype == pl.String else request_id
        keys.append((REQUEST_USERS, canonical.request_users, hashed))
    # The vocabulary by id, so that equal strings of all chunks, and strings whose ids collide, meet in one bucket.
    keys.append((VOCABULARY, canonical.vocabulary, canonical.vocabulary["id"]))
    for content, frame, key in keys:
        if frame.height:
            yield content, split_frame(frame, bucket_of(key.to_numpy(), context.buckets), context.buckets)


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
    context: BuildContext, bucket: int, rows: Mapping[str, pl.DataFrame | None], log_facts: LogFacts
) -> BuildResult:
    """Build one user bucket: kernel, pack, write the shard, and in an incremental build write the new state.

    Args:
        context: The build.
        bucket: Number of the bucket.
        rows: Canonical rows of the bucket by source; None if it has none.
        log_facts: What the kernel must know about all users.

    Returns:
        The shard's entry and everything that is counted in the bucket.

    Raises:
        MachineError: The disk is full.
    """
    spec, increment = context.spec, context.increment
    frames = {source: _or_empty(rows.get(source), spec, source) for source in spec.sources}
    built = build_bucket(spec, frames, log_facts, read_state(context.root, increment, bucket) if increment else None)
    # Each bucket samples its share of the rows, rounded up; buckets of users are equal parts by hash.
    profile, samples = profile_bucket(spec, built, -(-spec.expectations.sample_rows // context.buckets))
    # Blocks are a lazy iterator, so that only one block at a time is in memory beside the kernel's output.
    blocks, counts = pack(built, spec)
    shard = write_shard(context.root, bucket, context.attempt, spec, blocks)
    state: tuple[FileEntry, ...] = ()
    if increment:
        # Planned a second time, from the same numbers, because `pack` does not return its plan.
        segments = plan_segments(built, spec)
        later = advance_state(spec, built, increment.until, segments.user_id, event_status(built, segments))
        state = write_state(context.root, bucket, context.attempt, later)
    logger.debug("built bucket %d: %d requests, %d targets", bucket, counts.requests, counts.targets)
    return BuildResult(
        shards=(shard,) if shard else (),
        row_accounting=built.row_accounting,
        counts=counts,
        profile=profile,
        samples=samples,
        state=state,
    )


def _or_empty(rows: pl.DataFrame | None, spec: BuildSpec, source: str) -> pl.DataFrame:
    """Canonical rows of a bucket, or a frame of zero rows in the same columns."""
    if rows is not None:
        return rows
    return cast(pl.DataFrame, pl.from_arrow(source_schema(spec, source).arrow_schema.empty_table()))


def find_conflicts(context: BuildContext, bucket: int, request_users: pl.DataFrame) -> tuple[pl.Series, BuildResult]:
    """Find the request ids of one bucket that several users share; an incremental build also keeps all ids.

    Args:
        context: The build.
        bucket: Number of a bucket of request ids.
        request_users: All pairs (request_id, user_id) of these ids.

    Returns:
        The conflicting ids, and the file of all ids.

    Raises:
        DataError: An id was already appended before.
    """
    # A committed request cannot change, so an increment must find the ids of all earlier ones, to refuse them.
    state: tuple[FileEntry, ...] = ()
    if context.increment:
        state = append_request_users(context.root, context.increment, bucket, context.attempt, request_users)
    return conflicting_requests(request_users), BuildResult(state=state)


def write_vocabulary(context: BuildContext, bucket: int, words: pl.DataFrame) -> BuildResult:
    """Write the new distinct (id, string) of one bucket of hashed ids, and count ids that belong to several strings.

    Args:
        context: The build.
        bucket: Number of the bucket.
        words: All pairs (id, string) of the bucket, with repetitions.

    Returns:
        The vocabulary file, unless every pair is known already, and the number of collisions.

    Raises:
        MachineError: The disk is full.
    """
    # Sorted, so that the file's bytes do not depend on the order of chunks.
    words = words.unique().sort("id", "string")
    known = context.increment.vocabulary_entries(bucket) if context.increment else []
    collisions = words.height - words["id"].n_unique()
    if known:
        before = pl.concat([pl.read_ipc(check_file(context.root, entry)) for entry in known])
        words = words.join(before, on=["id", "string"], how="anti").sort("id", "string")
        ids = pl.concat([before["id"], words["id"]])
        # Collisions within `before` were counted by the increments that wrote it.
        collisions = len(ids) - ids.n_unique() - (before.height - before["id"].n_unique())
    if not words.height:
        return BuildResult()
    path = context.root / "vocabulary" / f"{bucket:05d}-{context.attempt}.arrow"
    options = pa.ipc.IpcWriteOptions(compression=codec_of(context.spec.compression))
    table = words.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(pa.schema(VOCABULARY_FIELDS))
    with writing(path), pa.ipc.new_file(str(path), table.schema, options=options) as writer:
        writer.write_table(table)
    entry = file_entry(context.root, path, words.height, bucket=bucket)
    return BuildResult(vocabulary=(entry,), collisions=collisions)


def write_quarantine(context: BuildContext, name: str, chunk: Chunk, rejected: pl.DataFrame) -> BuildResult:
    """Write the rejected rows and malformed lines of one chunk with their reasons, file and row number.

    Args:
        context: The build.
        name: Name of the file, without its suffix.
        chunk: The chunk; its frame is not used.
        rejected: Original columns of the rejected rows, with `_reasons` and `_row`.

    Returns:
        The quarantine file, unless the chunk has no rejected row.

    Raises:
        MachineError: The disk is full.
    """
    rows = rejected.rename({"_row": "_source_row"})
    rows = rows.with_columns(chunk.source_rows(rows["_source_row"]))
    # Malformed lines have no columns; they get one of their own beside the columns of the rejected rows.
    if chunk.malformed:
        row_numbers = chunk.malformed_rows or [None] * len(chunk.malformed)
        lines = pl.DataFrame({"_text": chunk.malformed, "_source_row": pl.Series(row_numbers, dtype=pl.Int64)})
        lines = lines.with_columns(_reasons=pl.lit([MALFORMED_ROW], dtype=pl.List(pl.String)))
        rows = pl.concat([rows, lines], how="diagonal")
    if not rows.height:
        return BuildResult()
    path = context.root / "quarantine" / f"{name}.parquet"
    with writing(path):
        rows.with_columns(_source_file=pl.lit(chunk.path)).write_parquet(path, compression="zstd")
    return BuildResult(quarantine=(file_entry(context.root, path, rows.height),))


def quarantine_conflicts(context: BuildContext, name: str, chunk: Chunk, conflicts: pl.Series) -> BuildResult:
    """Write the original rows of a chunk that are rejected only because several users share their request id.

    The other rejected rows were written when the chunk was canonicalized for the first time.

    Args:
        context: The build.
        name: Name of the file, without its suffix.
        chunk: Raw rows of the requests' source.
        conflicts: The shared request ids.

    Returns:
        The quarantine file, unless the chunk has no such row.

    Raises:
        MachineError: The disk is full.
    """
    parsed = replace(chunk, malformed=())
    rejected = canonicalize_chunk(context, context.spec.requests.source, parsed, conflicts).rejected
    # Exactly this one reason: a row with other faults is in the quarantine already, and would be there twice.
    only_conflicts = rejected.filter(pl.col("_reasons") == [CONFLICTING_REQUEST])
    # Row numbers of the file still count the malformed lines, which are excluded here.
    return write_quarantine(context, name, parsed, only_conflicts)


def write_samples(samples: TableSamples, root: Path, attempt: str) -> tuple[FileEntry, ...]:
    """Write the sampled rows of the tables as Parquet files.

    Args:
        samples: Sampled rows by table.
        root: The dataset's folder.
        attempt: Name of the attempt.

    Returns:
        Their file entries, with the table's name.

    Raises:
        MachineError: The disk is full.
    """
    entries = []
    for table, rows in samples.items():
        path = root / "samples" / f"{table}-{attempt}.parquet"
        with writing(path):
            rows.write_parquet(path, compression="zstd")
        entries.append(file_entry(root, path, rows.height, table=table))
    return tuple(entries)
