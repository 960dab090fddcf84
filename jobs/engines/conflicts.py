"""Conflicts: request ids that several users share, in files of the build's work folder, with a filter in memory.

Their number has no bound, so they are never in memory all at once. The tasks that find them write one file per group of
request ids. Later tasks look up the ids of their own rows: a filter of FILTER_BYTES leaves few candidates, and only the
files of these are read, one at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from longbatch.jobs.commit.disk_errors import writing
from longbatch.pipelines.arrays.hashing import bucket_of, hash_string, mix
from longbatch.schemas.types import Int64Array

# Of all groups together: 8 million bits. With 400,000 conflicts, 5 % of other ids are false candidates.
FILTER_BYTES = 1 << 20


@dataclass(frozen=True)
class ConflictFile:
    """The conflicts of one group.

    Attributes:
        path: An Arrow IPC file with the column `request_id`.
        bits: Filter: the bits at the hashes of its ids are set.
    """

    path: Path
    bits: bytes


@dataclass(frozen=True)
class Conflicts:
    """All conflicts of a build.

    Attributes:
        buckets: Number of buckets of request ids.
        groups: Number of groups of buckets; bucket b belongs to group `b % groups`.
        files: File by group; a group without conflicts has none.
    """

    buckets: int
    groups: int
    files: Mapping[int, ConflictFile] = field(default_factory=dict)

    def write(self, group: int, ids: pl.Series, folder: Path, attempt: str) -> Conflicts:
        """Write the conflicts of one group.

        Args:
            group: Number of the group.
            ids: Its conflicts, (N,), distinct.
            folder: The build's folder of temporary files.
            attempt: Name of the attempt.

        Returns:
            These conflicts alone; none if there are no ids.

        Raises:
            MachineError: The disk is full.
        """
        if not len(ids):
            return Conflicts(self.buckets, self.groups)
        path = folder / "conflicts" / f"{group:05d}-{attempt}.arrow"
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing(path):
            ids.rename("request_id").to_frame().write_ipc(path, compat_level=pl.CompatLevel.oldest())
        bits = np.zeros(self._filter_bits, dtype=np.bool_)
        bits[self._bit_of(hash_of(ids))] = True
        return Conflicts(self.buckets, self.groups, {group: ConflictFile(path, np.packbits(bits).tobytes())})

    def join(self, others: Iterable[Conflicts]) -> Conflicts:
        """Join the conflicts of several groups.

        Args:
            others: Conflicts of other groups.
        """
        files = dict(self.files)
        for other in others:
            files |= other.files
        return Conflicts(self.buckets, self.groups, files)

    def among(self, request_ids: pl.Series) -> pl.Series | None:
        """Select the conflicts among some request ids.

        Args:
            request_ids: Request ids, (N,), with repetitions and nulls.

        Returns:
            Distinct ids, or None if there are none.
        """
        if not self.files:
            return None
        distinct = request_ids.drop_nulls().unique()
        hashed = hash_of(distinct)
        group = bucket_of(hashed, self.buckets).astype(np.int64) % self.groups
        is_candidate = self._filters()[group, self._bit_of(hashed) >> 3] >> (7 - (self._bit_of(hashed) & 7)) & 1
        conflicts = [distinct.head(0)]
        for number in np.unique(group[is_candidate == 1]).tolist():
            candidates = distinct.filter(pl.Series((group == number) & (is_candidate == 1)))
            conflicts.append(candidates.filter(candidates.is_in(pl.read_ipc(self.files[number].path)["request_id"])))
        found = pl.concat(conflicts)
        return found if len(found) else None

    @property
    def _filter_bits(self) -> int:
        """Number of bits of the filter of one group."""
        return 8 * (FILTER_BYTES // self.groups)

    def _bit_of(self, hashed: Int64Array) -> Int64Array:
        """Bit of each id in the filter of its group, independent of its bucket."""
        return (mix(hashed.view(np.uint64)) % np.uint64(self._filter_bits)).astype(np.int64)

    def _filters(self) -> npt.NDArray[np.uint8]:
        """The filters of all groups, (groups, bytes)."""
        filters = np.zeros((self.groups, self._filter_bits // 8), dtype=np.uint8)
        for group, file in self.files.items():
            filters[group] = np.frombuffer(file.bits, dtype=np.uint8)
        return filters


def hash_of(request_ids: pl.Series) -> Int64Array:
    """Return the integer that decides the bucket of each request id.

    Args:
        request_ids: Strings or integers, (N,), without nulls.

    Returns:
        (N,) int64.
    """
    return (hash_string(request_ids) if request_ids.dtype == pl.String else request_ids.cast(pl.Int64)).to_numpy()
