"""What an engine hands over to the commit."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import reduce
from itertools import chain
from typing import Any

import polars as pl

from longbatch.pipelines.profile import TableSamples
from longbatch.schemas.accounting import Counts, RowAccounting
from longbatch.schemas.format.manifest import FileEntry, ShardEntry
from longbatch.schemas.profile import TABLES, Profile


def _sum_accounting(parts: Sequence[Mapping[str, RowAccounting]]) -> Mapping[str, RowAccounting]:
    sums: dict[str, RowAccounting] = {}
    for part in parts:
        for source, accounting in part.items():
            sums[source] = sums[source] + accounting if source in sums else accounting
    return sums


def _concat_samples(parts: Sequence[TableSamples]) -> TableSamples:
    frames = {name: [samples[name] for samples in parts if name in samples] for name in TABLES}
    return {name: pl.concat(tables) for name, tables in frames.items() if tables}


def _latest(times: Sequence[int | None]) -> int | None:
    return max((time for time in times if time is not None), default=None)


def _join(parts: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    return tuple(chain.from_iterable(parts))


def _add(parts: Sequence[Any]) -> Any:  # noqa: ANN401
    return reduce(operator.add, parts)


def _summed_by(total: Callable[[Sequence[Any]], Any]) -> dict[str, Callable[[Sequence[Any]], Any]]:
    return {"total": total}


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

    shards: tuple[ShardEntry, ...] = field(default=(), metadata=_summed_by(_join))
    vocabulary: tuple[FileEntry, ...] = field(default=(), metadata=_summed_by(_join))
    quarantine: tuple[FileEntry, ...] = field(default=(), metadata=_summed_by(_join))
    state: tuple[FileEntry, ...] = field(default=(), metadata=_summed_by(_join))
    row_accounting: Mapping[str, RowAccounting] = field(default_factory=dict, metadata=_summed_by(_sum_accounting))
    counts: Counts = field(default_factory=Counts, metadata=_summed_by(_add))
    collisions: int = field(default=0, metadata=_summed_by(_add))
    profile: Profile = field(default_factory=Profile, metadata=_summed_by(_add))
    samples: TableSamples = field(default_factory=dict, metadata=_summed_by(_concat_samples))
    latest_action: int | None = field(default=None, metadata=_summed_by(_latest))
    log_end: int | None = field(default=None, metadata=_summed_by(_latest))
    buckets: int = field(default=0, metadata=_summed_by(max))
    shuffled_bytes: int = field(default=0, metadata=_summed_by(_add))

    @classmethod
    def total(cls, results: Iterable[BuildResult]) -> BuildResult:
        """Add up the results of many tasks, each field by its own rule.

        Args:
            results: The results, in the order in which files and samples are joined.

        Returns:
            The sum. It takes time in proportion to the number of results, where adding them one by one would copy all
            earlier entries each time.
        """
        parts = [cls(), *results]
        return cls(**{f.name: f.metadata["total"]([getattr(part, f.name) for part in parts]) for f in fields(cls)})

    def __add__(self, other: BuildResult) -> BuildResult:
        """Add two results; see `total`."""
        return self.total([self, other])

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
