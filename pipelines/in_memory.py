"""The whole transformation in memory: what the engines do with files and tasks, as one pure function."""

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
    """A dataset in memory: paired record batches (timelines, requests), and the books."""

    blocks: list[tuple[pa.RecordBatch, pa.RecordBatch]]
    row_accounting: dict[str, RowAccounting]
    counts: Counts
    vocabulary: pl.DataFrame

    @property
    def events(self) -> Counts:
        """The outcomes of the accepted events."""
        return self.counts

    @property
    def targets(self) -> int:
        """The number of targets."""
        return self.counts.targets


def build_in_memory(spec: BuildSpec, raw: Mapping[str, pl.DataFrame], buckets: int = 1) -> InMemoryDataset:
    """Build from raw rows per source. The result does not depend on `buckets` but for the order of the blocks."""
    canonical = {source: canonicalize(frame, spec, source) for source, frame in raw.items()}
    row_accounting = {source: part.accounting for source, part in canonical.items()}
    owners = canonical[spec.requests.source].owners
    conflicts = None if owners is None else conflicting_requests(owners)
    facts = gather_log_facts(spec, [part.latest_action for part in canonical.values()], conflicts)
    blocks: list[tuple[pa.RecordBatch, pa.RecordBatch]] = []
    counts = Counts()
    for number in range(buckets):
        rows = {
            source: part.rows.filter(
                pl.Series(bucket_of(part.rows[source_schema(spec, source).user_id].to_numpy(), buckets)) == number
            )
            for source, part in canonical.items()
        }
        bucket = build_bucket(spec, rows, facts)
        row_accounting = {source: row_accounting[source] + bucket.row_accounting[source] for source in row_accounting}
        packed, counted = pack(bucket, spec)
        blocks += packed
        counts += counted
    for source, accounting in row_accounting.items():
        accounting.check(source)
    vocabulary = pl.concat([part.vocabulary for part in canonical.values()]).unique().sort("id", "text")
    return InMemoryDataset(blocks, row_accounting, counts, vocabulary)
