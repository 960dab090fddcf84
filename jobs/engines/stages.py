"""The work of both engines, cut into tasks: type a chunk, split it by bucket, build a bucket, write its files.

Tasks are functions of their arguments; engines decide where they run and how rows move between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from longbatch.jobs.commit.incremental_state import Increment, new_owners, read_carried, write_carried
from longbatch.jobs.readers.chunks import Chunk
from longbatch.pipelines.arrays.hashing import bucket_of, hash_string
from longbatch.pipelines.arrays.narrow_ints import narrow, with_codes
from longbatch.pipelines.canonicalize import Canonical, LogFacts, canonicalize, conflicting_requests
from longbatch.pipelines.kernel import advance_state, build_bucket
from longbatch.pipelines.pack import event_status, pack, plan_segments
from longbatch.pipelines.profile import TableSamples, profile_bucket
from longbatch.schemas.accounting import Counts, RowAccounting
from longbatch.schemas.errors import MachineError
from longbatch.schemas.format.shard import SHARD_TABLES, check_file, codec_of, disk_message, file_entry, write_shard
from longbatch.schemas.profile import TABLES, Profile
from longbatch.schemas.source_schema import source_schema
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.validation.rules import CONFLICTING_REQUEST, MALFORMED_ROW

ROWS_PER_BUCKET = 1 << 20
MAX_BUCKETS = 8192
FOLDERS = (*SHARD_TABLES, "vocabulary", "quarantine", "samples", "state", "snapshots")


@dataclass(frozen=True)
class Built:
    """What an engine returns for the commit: rows of the shards table, file entries, the books, and the profile.

    latest_action: the latest time of an action; log_end: up to when actions are complete; microseconds, or None.
    state: entries of the state that later appends need; buckets: into how many users were split. shuffled_bytes: of
    the typed rows on their way to their buckets.
    """

    shards: list[dict[str, Any]] = field(default_factory=list)
    vocabulary: list[dict[str, Any]] = field(default_factory=list)
    quarantine: list[dict[str, Any]] = field(default_factory=list)
    row_accounting: Mapping[str, RowAccounting] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    collisions: int = 0
    profile: Profile = field(default_factory=Profile)
    samples: TableSamples = field(default_factory=dict)
    latest_action: int | None = None
    log_end: int | None = None
    state: list[dict[str, Any]] = field(default_factory=list)
    buckets: int = 0
    shuffled_bytes: int = 0

    def __add__(self, other: Built) -> Built:
        """Return both parts together."""
        sources = {**self.row_accounting, **other.row_accounting}
        return Built(
            self.shards + other.shards,
            self.vocabulary + other.vocabulary,
            self.quarantine + other.quarantine,
            {
                s: self.row_accounting.get(s, RowAccounting()) + other.row_accounting.get(s, RowAccounting())
                for s in sources
            },
            self.counts + other.counts,
            self.collisions + other.collisions,
            self.profile + other.profile,
            _both(self.samples, other.samples),
            max((time for time in (self.latest_action, other.latest_action) if time is not None), default=None),
            other.log_end if self.log_end is None else self.log_end,
            self.state + other.state,
            max(self.buckets, other.buckets),
            self.shuffled_bytes + other.shuffled_bytes,
        )


def _both(samples: TableSamples, others: TableSamples) -> TableSamples:
    found = {name: [part[name] for part in (samples, others) if name in part] for name in TABLES}
    return {name: pl.concat(parts) for name, parts in found.items() if parts}


def bucket_count(rows: int) -> int:
    """Return the number of user buckets for an input of so many rows: one per ROWS_PER_BUCKET, to bound memory."""
    return max(1, min(MAX_BUCKETS, -(-rows // ROWS_PER_BUCKET)))


def type_chunk(spec: BuildSpec, source: str, chunk: Chunk, increment: Increment | None = None) -> Canonical:
    """Canonicalize a chunk, of an increment what is in its window, and count the lines of it that were no rows."""
    typed = canonicalize(chunk.frame, spec, source, window=increment.window if increment else None)
    lost = len(chunk.malformed)
    if not lost:
        return typed
    accounting = typed.accounting + RowAccounting(rows=lost, rejected=lost, reasons={MALFORMED_ROW: lost})
    return replace(typed, accounting=accounting)


def bucket_parts(spec: BuildSpec, source: str, typed: Canonical, buckets: int) -> dict[str, tuple[pl.DataFrame, Any]]:
    """Kind of part -> (frame, bucket of each row): rows by user, owners by request, vocabulary by id."""
    parts = {
        f"rows:{source}": (typed.rows, bucket_of(typed.rows[source_schema(spec, source).user_id].to_numpy(), buckets))
    }
    if typed.owners is not None:
        ids = typed.owners["request_id"]
        ids = hash_string(ids) if ids.dtype == pl.String else ids
        parts["owners"] = (typed.owners, bucket_of(ids.to_numpy(), buckets))
    if typed.vocabulary.height:
        parts["vocabulary"] = (typed.vocabulary, bucket_of(typed.vocabulary["id"].to_numpy(), buckets))
    return parts


def split_by_bucket(frame: pl.DataFrame, bucket: Any, buckets: int) -> list[pa.RecordBatch]:
    """One record batch per bucket, possibly empty, its columns coded; within a bucket the rows keep their order."""
    order = np.argsort(bucket, kind="stable")
    bounds = np.concatenate([[0], np.cumsum(np.bincount(bucket, minlength=buckets))])
    narrowed, codes = narrow(frame)
    whole = with_codes(one_batch(narrowed[order]), codes)
    return [whole.slice(int(a), int(b - a)) for a, b in pairwise(bounds)]


def one_batch(frame: pl.DataFrame) -> pa.RecordBatch:
    """Return a frame as one record batch, of no rows if it has none, in types that every Arrow reader knows."""
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest()).combine_chunks()
    batches = table.to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


def empty_rows(spec: BuildSpec, source: str) -> pl.DataFrame:
    """Return no canonical rows, for a bucket that has none of a source."""
    return pl.DataFrame(pl.from_arrow(source_schema(spec, source).arrow_schema.empty_table()))


def make_bucket(
    spec: BuildSpec,
    frames: Mapping[str, pl.DataFrame],
    facts: LogFacts,
    root: Path,
    bucket: int,
    buckets: int,
    attempt: str,
    increment: Increment | None = None,
) -> Built:
    """Run the kernel on one of the user buckets and write its shard, and of an increment its state."""
    made = build_bucket(spec, frames, facts, read_carried(root, increment, bucket) if increment else None)
    profile, samples = profile_bucket(spec, made, -(-spec.expectations.sample_rows // buckets))
    blocks, counts = pack(made, spec)
    row = write_shard(root, bucket, attempt, spec, blocks)
    state = []
    if increment:
        segments = plan_segments(made, spec)
        carried = advance_state(spec, made, increment.until, segments.user_id, event_status(made, segments))
        state = write_carried(root, bucket, attempt, carried)
    return Built(
        [row] if row else [],
        row_accounting=made.row_accounting,
        counts=counts,
        profile=profile,
        samples=samples,
        state=state,
    )


def find_conflicts(
    pairs: pl.DataFrame, root: Path, bucket: int, attempt: str, increment: Increment | None = None
) -> tuple[pl.Series, Built]:
    """Ids of one bucket that several users share, given all (request_id, user_id); an increment keeps all ids."""
    entries = new_owners(root, increment, bucket, attempt, pairs) if increment else []
    return conflicting_requests(pairs), Built(state=entries)


def make_vocabulary(
    words: pl.DataFrame, spec: BuildSpec, root: Path, bucket: int, attempt: str, increment: Increment | None = None
) -> Built:
    """Write the distinct (id, text) of one bucket of ids, those that are new; count texts that share an id with another."""
    words = words.unique().sort("id", "text")
    known = [entry for entry in increment.vocabulary if entry.get("bucket") == bucket] if increment else []
    collisions = words.height - words["id"].n_unique()
    if known:
        before = pl.concat([pl.read_ipc(check_file(root, entry)) for entry in known])
        words = words.join(before, on=["id", "text"], how="anti").sort("id", "text")
        ids = pl.concat([before["id"], words["id"]])
        collisions = len(ids) - ids.n_unique() - (before.height - before["id"].n_unique())
    if not words.height:
        return Built()
    path = root / "vocabulary" / f"{bucket:05d}-{attempt}.arrow"
    options = pa.ipc.IpcWriteOptions(compression=codec_of(spec.compression))
    table = words.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(
        pa.schema({"id": pa.int64(), "text": pa.string()})
    )
    try:
        with pa.ipc.new_file(str(path), table.schema, options=options) as writer:
            writer.write_table(table)
    except OSError as error:
        raise MachineError(disk_message(error, path)) from None
    return Built(vocabulary=[{"bucket": bucket, **file_entry(root, path, words.height)}], collisions=collisions)


def make_quarantine(rejected: pl.DataFrame, chunk: Chunk, root: Path, name: str) -> Built:
    """Write the rejected rows of one chunk: original columns, `_reasons`, `_source_file`, `_source_row`."""
    rows = rejected.rename({"_row": "_source_row"})
    rows = rows.with_columns(chunk.source_rows(rows["_source_row"]))
    if chunk.malformed:
        places = chunk.malformed_rows or [None] * len(chunk.malformed)
        lines = pl.DataFrame({"_text": chunk.malformed, "_source_row": pl.Series(places, dtype=pl.Int64)})
        lines = lines.with_columns(_reasons=pl.lit([MALFORMED_ROW], dtype=pl.List(pl.String)))
        rows = pl.concat([rows, lines], how="diagonal")
    if not rows.height:
        return Built()
    path = root / "quarantine" / f"{name}.parquet"
    try:
        rows.with_columns(_source_file=pl.lit(chunk.path)).write_parquet(path, compression="zstd")
    except OSError as error:
        raise MachineError(disk_message(error, path)) from None
    return Built(quarantine=[file_entry(root, path, rows.height)])


def quarantine_conflicts(
    spec: BuildSpec,
    chunk: Chunk,
    conflicts: pl.Series,
    root: Path,
    name: str,
    increment: Increment | None = None,
) -> Built:
    """Write those rows of a chunk, as they came, that have no other fault than a conflicting request."""
    typed = canonicalize(chunk.frame, spec, spec.requests.source, conflicts, increment.window if increment else None)
    hit = typed.rejected.filter(pl.col("_reasons") == [CONFLICTING_REQUEST])
    return make_quarantine(hit, replace(chunk, malformed=()), root, name)


def make_samples(samples: TableSamples, root: Path, attempt: str) -> list[dict[str, Any]]:
    """Write the samples of the build's tables as Parquet; return their file entries, with the table's name."""
    entries = []
    for table, rows in samples.items():
        path = root / "samples" / f"{table}-{attempt}.parquet"
        try:
            rows.write_parquet(path, compression="zstd")
        except OSError as error:
            raise MachineError(disk_message(error, path)) from None
        entries.append({"table": table, **file_entry(root, path, rows.height)})
    return entries
