"""Conflicts: request ids that several users share, in temporary files of the dataset, with a filter in memory.

Their number has no bound, so they are never in memory all at once. The tasks that find them write one file per group of
buckets. Later tasks look up the ids of their own rows: a Bloom filter leaves few candidates, and only the files of
these are read, one at a time.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from longbatch.jobs.commit.table_files import read_frame, write_frame
from longbatch.pipelines.arrays.hashing import bucket_of, hash_string, mix
from longbatch.schemas.format.manifest import FileEntry
from longbatch.schemas.storage.store import Store
from longbatch.schemas.types import BoolArray, Int64Array

MAX_GROUPS = 256
# Bloom filter of a group: with 1 million conflicts in all groups, 0.02 % of other ids are false candidates. The filters
# of all groups take 1 MB at most.
HASHES, HASH_BITS = 4, 15


@dataclass(frozen=True)
class ConflictFile:
    """The conflicts of one group.

    Attributes:
        entry: An Arrow IPC file with the column `request_id`.
        bits: Bloom filter of its ids, compressed: the bits at all hashes of an id are set.
    """

    entry: FileEntry
    bits: bytes


@dataclass(frozen=True)
class Conflicts:
    """All conflicts of a build.

    Attributes:
        buckets: Number of buckets of request ids.
        files: File by group; a group without conflicts has none.
    """

    buckets: int
    files: Mapping[int, ConflictFile] = field(default_factory=dict)

    @property
    def groups(self) -> int:
        """Number of groups; bucket b belongs to group `b % groups`."""
        return min(self.buckets, MAX_GROUPS)

    def write(self, group: int, ids: pl.Series, store: Store, attempt: str) -> Conflicts:
        """Write the conflicts of one group.

        Args:
            group: Number of the group.
            ids: Its conflicts, (N,), distinct.
            store: The dataset.
            attempt: Name of the attempt.

        Returns:
            These conflicts alone; none if there are no ids.

        Raises:
            MachineError: The place cannot be written.
        """
        if not len(ids):
            return Conflicts(self.buckets)
        path = f"state/conflicts-{group:05d}-{attempt}.arrow"
        entry = write_frame(store, path, ids.rename("request_id").to_frame())
        is_set = np.zeros(1 << HASH_BITS, dtype=np.bool_)
        for bit in _bits_of(hash_of(ids)):
            is_set[bit] = True
        return Conflicts(self.buckets, {group: ConflictFile(entry, zlib.compress(np.packbits(is_set).tobytes()))})

    def join(self, others: Iterable[Conflicts]) -> Conflicts:
        """Join the conflicts of several groups.

        Args:
            others: Conflicts of other groups.
        """
        files = dict(self.files)
        for other in others:
            files |= other.files
        return Conflicts(self.buckets, files)

    def delete(self, store: Store) -> None:
        """Delete the files, after the last task that reads them. If a build fails, they go with its other files.

        Args:
            store: The dataset.
        """
        store.delete([file.entry.path for file in self.files.values()])

    def among(self, request_ids: pl.Series, store: Store) -> pl.Series | None:
        """Select the conflicts among some request ids.

        Args:
            request_ids: Request ids, (N,), with repetitions and nulls.
            store: The dataset.

        Returns:
            Distinct ids, or None if there are none.
        """
        if not self.files:
            return None
        distinct = request_ids.drop_nulls().unique()
        hashed = hash_of(distinct)
        group = bucket_of(hashed, self.buckets) % np.uint16(self.groups)
        filters, is_candidate = self._filters(), np.ones(len(hashed), dtype=np.bool_)
        for bit in _bits_of(hashed):
            is_candidate &= filters[group, bit]
        conflicts = [distinct.head(0)]
        for number in np.unique(group[is_candidate]).tolist():
            candidates = distinct.filter(pl.Series((group == number) & is_candidate))
            ids = read_frame(store, self.files[number].entry)["request_id"]
            conflicts.append(candidates.filter(candidates.is_in(ids.implode())))
        joined = pl.concat(conflicts)
        return joined if len(joined) else None

    def _filters(self) -> BoolArray:
        """The filters of all groups, (groups, bits)."""
        filters = np.zeros((self.groups, 1 << HASH_BITS), dtype=np.bool_)
        for group, file in self.files.items():
            filters[group] = np.unpackbits(np.frombuffer(zlib.decompress(file.bits), dtype=np.uint8))
        return filters


def _bits_of(hashed: Int64Array) -> Iterator[npt.NDArray[np.uint64]]:
    """Positions of each id in a filter, (N,) for each hash function: pieces of one mixed integer."""
    mixed = mix(hashed.view(np.uint64))
    for n in range(HASHES):
        yield (mixed >> np.uint64(n * HASH_BITS)) & np.uint64((1 << HASH_BITS) - 1)


def hash_of(request_ids: pl.Series) -> Int64Array:
    """Return the integer that decides the bucket of each request id.

    Args:
        request_ids: Strings or integers, (N,), without nulls.

    Returns:
        (N,) int64.
    """
    return (hash_string(request_ids) if request_ids.dtype == pl.String else request_ids.cast(pl.Int64)).to_numpy()
