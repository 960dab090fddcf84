"""What an engine hands over to the commit."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import polars as pl

from longbatch.pipelines.profile import TableSamples
from longbatch.schemas.accounting import Counts, RowAccounting
from longbatch.schemas.format.manifest import FileEntry, ShardEntry
from longbatch.schemas.profile import TABLES, Profile


def _sum_accounting(
    first: Mapping[str, RowAccounting], second: Mapping[str, RowAccounting]
) -> Mapping[str, RowAccounting]:
    empty = RowAccounting()
    return {source: first.get(source, empty) + second.get(source, empty) for source in {**first, **second}}


def _concat_samples(first: TableSamples, second: TableSamples) -> TableSamples:
    parts = {name: [samples[name] for samples in (first, second) if name in samples] for name in TABLES}
    return {name: pl.concat(frames) for name, frames in parts.items() if frames}


def _latest(first: int | None, second: int | None) -> int | None:
    return max((time for time in (first, second) if time is not None), default=None)


def _summed_by(add: Callable[[Any, Any], Any]) -> dict[str, Callable[[Any, Any], Any]]:
    return {"add": add}


@dataclass(frozen=True)
class BuildResult:
    """Files and counts of a build, or of one of its tasks; results add up field by field.

    Attributes:
        shards: Entries of the shards.
        vocabulary: Entries of the files of hashed strings.
        quarantine: Entries of the files of rejected rows.
        state: Entries of the files of incremental state, for later appends.
        row_accounting: The outcome of every row, by source.
        counts: What the dataset contains, and what policies left out.
        collisions: Number of strings that share a hashed id with another string.
        profile: Exact counters of the tables.
        samples: Sampled rows of the tables.
        latest_action: The latest time of an action, in microseconds.
        log_end: Time until which the log of actions is complete, in microseconds.
        buckets: Number of user buckets.
        shuffled_bytes: Bytes of the canonical rows on the way to their buckets.
    """

    shards: tuple[ShardEntry, ...] = field(default=(), metadata=_summed_by(operator.add))
    vocabulary: tuple[FileEntry, ...] = field(default=(), metadata=_summed_by(operator.add))
    quarantine: tuple[FileEntry, ...] = field(default=(), metadata=_summed_by(operator.add))
    state: tuple[FileEntry, ...] = field(default=(), metadata=_summed_by(operator.add))
    row_accounting: Mapping[str, RowAccounting] = field(default_factory=dict, metadata=_summed_by(_sum_accounting))
    counts: Counts = field(default_factory=Counts, metadata=_summed_by(operator.add))
    collisions: int = field(default=0, metadata=_summed_by(operator.add))
    profile: Profile = field(default_factory=Profile, metadata=_summed_by(operator.add))
    samples: TableSamples = field(default_factory=dict, metadata=_summed_by(_concat_samples))
    latest_action: int | None = field(default=None, metadata=_summed_by(_latest))
    log_end: int | None = field(default=None, metadata=_summed_by(_latest))
    buckets: int = field(default=0, metadata=_summed_by(max))
    shuffled_bytes: int = field(default=0, metadata=_summed_by(operator.add))

    def __add__(self, other: BuildResult) -> BuildResult:
        """Add two results, each field by its own rule."""
        sums = {f.name: f.metadata["add"](getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        return BuildResult(**sums)

    @property
    def rows(self) -> int:
        """Number of rows of all sources."""
        return sum(accounting.rows for accounting in self.row_accounting.values())

    @property
    def file_rows(self) -> int:
        """Number of rows in all files listed here; of shards, of their requests tables."""
        return sum(shard.total_requests for shard in self.shards) + sum(entry.rows or 0 for entry in self._small_files)

    @property
    def file_bytes(self) -> int:
        """Bytes of all files listed here."""
        shard_files = [entry for shard in self.shards for entry in shard.files]
        return sum(entry.size_bytes for entry in (*shard_files, *self._small_files))

    @property
    def _small_files(self) -> tuple[FileEntry, ...]:
        return (*self.vocabulary, *self.quarantine, *self.state)
