"""The whole build in memory as one pure function: what the engines do with files and tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl
import pyarrow as pa

from longbatch.pipelines.arrays.hashing import bucket_of
from longbatch.schemas.accounting import Counts, RowAccounting
from longbatch.schemas.source_schema import source_schema
from longbatch.schemas.spec.build_spec import BuildSpec

from .canonicalize import canonicalize, conflicting_requests, gather_log_facts
from .kernel import build_bucket
from .pack import pack


@dataclass(frozen=True)
class InMemoryDataset:
    """A dataset in memory.

    Attributes:
        blocks: Pairs of record batches (timelines, requests).
        row_accounting: Outcomes of all rows, per source.
        counts: What the dataset holds.
        vocabulary: Distinct (id, string) of all hashed strings.
    """

    blocks: list[tuple[pa.RecordBatch, pa.RecordBatch]]
    row_accounting: dict[str, RowAccounting]
    counts: Counts
    vocabulary: pl.DataFrame


def build_in_memory(spec: BuildSpec, raw: Mapping[str, pl.DataFrame], buckets: int = 1) -> InMemoryDataset:
    """Build a dataset from raw rows.

    Args:
        spec: The build spec.
        raw: Source -> raw rows.
        buckets: Number of user buckets; only the order of the blocks depends on it.

    Returns:
        The dataset.

    Raises:
        SourceError: A column is missing or has a type that cannot be read as declared.
        SpecError: A `where` expression is invalid.
        DataError: A delayed label does not fit its type.
    """
    canonical = {source: canonicalize(frame, spec, source) for source, frame in raw.items()}
    row_accounting = {source: part.accounting for source, part in canonical.items()}
    # What buckets need to know of each other is gathered before any bucket is built.
    request_users = canonical[spec.requests.source].request_users
    conflicts = None if request_users is None else conflicting_requests(request_users)
    log_facts = gather_log_facts(spec, [part.latest_action for part in canonical.values()], conflicts)
    # By the hash of the user, as the engines split rows (docs/semantics.md, Ids).
    bucket_of_row = {
        source: pl.Series(bucket_of(part.rows[source_schema(spec, source).user_id].to_numpy(), buckets))
        for source, part in canonical.items()
    }
    blocks: list[tuple[pa.RecordBatch, pa.RecordBatch]] = []
    counts = Counts()
    # A user's rows are all in one bucket, so buckets are independent.
    for number in range(buckets):
        rows = {source: part.rows.filter(bucket_of_row[source] == number) for source, part in canonical.items()}
        bucket = build_bucket(spec, rows, log_facts)
        row_accounting = {source: row_accounting[source] + bucket.row_accounting[source] for source in row_accounting}
        packed, counts_of_bucket = pack(bucket, spec)
        blocks += packed
        counts += counts_of_bucket
    for source, accounting in row_accounting.items():
        accounting.check(source)
    vocabulary = pl.concat([part.vocabulary for part in canonical.values()]).unique().sort("id", "string")
    return InMemoryDataset(blocks, row_accounting, counts, vocabulary)
