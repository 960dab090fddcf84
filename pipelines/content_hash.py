"""Content hash: equal for two datasets with the same requests, histories and targets.

Datasets that differ have different hashes, up to hash collisions. The hash does not depend on storage: order, buckets,
blocks, segments, codecs. Each request is hashed with its whole history, and the hashes are added up modulo 2^64: a
multiset hash, which does not depend on the order of requests.

All histories of a block take one pass over its events, not one pass each. They use a polynomial hash (Karp and Rabin
1987): with event hashes e_i and an odd base B, the prefix sums P_k = sum of e_i B^i for i < k give the hash of the
slice [a, b) as (P_b - P_a) B^-a. The factor B^-a makes equal slices equal wherever they start: it shifts the powers
B^a, ..., B^(b-1) back to B^0, ..., B^(b-a-1). Two bases give 128 bits.

`SampleDigest` is the multiset hash of sample-level rows: the rows that a dataset expands to are hashed without copying
a history, and compared with the rows of a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import numpy as np
import polars as pl
import pyarrow as pa

from longbatch.pipelines.arrays.hashing import UInt64Array, cached_parts, hash_string, mix
from longbatch.schemas.errors import DatasetError
from longbatch.schemas.format.shard_reader import Block
from longbatch.schemas.ragged import list_offsets, owners_of
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.tables import event_type, target_type
from longbatch.schemas.types import ArrowArray, ArrowListArray, Int64Array

from .expansion import HistorySlices, slice_histories

# Odd, so that they have an inverse modulo 2^64.
BASES = (0xD1342543DE82EF95, 0xAF251AF3B0F025B5)
# Stands for a null, and salts event hashes: `mix` maps 0 to 0, and an event whose hash is 0 would add nothing to a
# history.
_SALT = np.uint64(0x6A09E667F3BCC909)
# Tables of powers have at least this many elements, so that most calls share one. One below a power of two, because a
# table has 2^bit_length elements: 2^18 itself would round up to 2^19.
MIN_POWERS = (1 << 18) - 1


def content_hash(blocks: Iterable[Block], history_length: int) -> str:
    """Hash all requests with their histories and targets, in one pass with one block in memory.

    Args:
        blocks: All blocks of a dataset, in any order.
        history_length: The newest events of each history to include.

    Returns:
        32 hex digits.
    """
    totals = np.zeros(len(BASES), dtype=np.uint64)
    for block in blocks:
        slices = slice_histories(block, history_length)
        offsets, targets = slices.target_offsets, _row_hashes(slices.targets.flatten())
        hashed = _with_slices(_requests_with_histories(slices), targets, offsets[:-1], offsets[1:])
        # A sum modulo 2^64 does not depend on the order of requests, and so not on buckets and blocks.
        totals += hashed.sum(axis=1, dtype=np.uint64)
    return _hex(totals)


@dataclass(frozen=True)
class SampleDigest:
    """Multiset hash of sample-level rows; the digests of two sets of rows add up to the digest of both.

    Attributes:
        rows: Number of rows.
        events: Number of events in the histories of all rows.
        hash: Sum of the hashes of all rows (history, request and target together), 32 hex digits.
    """

    rows: int = 0
    events: int = 0
    hash: str = "0" * 32

    def __add__(self, other: SampleDigest) -> SampleDigest:
        """Return the digest of the rows of both."""
        sums = [np.frombuffer(bytes.fromhex(digest.hash), ">u8") for digest in (self, other)]
        return SampleDigest(self.rows + other.rows, self.events + other.events, _hex(sums[0] + sums[1]))


def digest_block(block: Block, history_length: int) -> SampleDigest:
    """Digest the rows that a block expands to, without copying a history.

    Args:
        block: Timelines and requests.
        history_length: The newest events of each history to include.

    Returns:
        The digest, one row per target.
    """
    slices = slice_histories(block, history_length)
    owners = owners_of(slices.target_offsets)
    # One row per target, but the history is hashed once per request and only the 64 bits are repeated.
    hashed = mix(_requests_with_histories(slices)[:, owners] ^ _row_hashes(slices.targets.flatten()))
    events = int((slices.history_sizes * slices.target_counts).sum())
    return SampleDigest(len(owners), events, _hex(hashed.sum(axis=1, dtype=np.uint64)))


def digest_rows(rows: pa.RecordBatch, spec: BuildSpec) -> SampleDigest:
    """Digest sample-level rows.

    Args:
        rows: N rows with the columns of `expansion.sample_schema`.
        spec: The spec of the dataset.

    Returns:
        The digest.

    Raises:
        DatasetError: A history is null, or the lists of a row differ in length.
    """
    target_columns = target_type(spec).num_fields
    request_columns = rows.num_columns - target_columns - event_type(spec).num_fields
    histories = [cast("ArrowListArray", column) for column in rows.columns[request_columns:-target_columns]]
    offsets = list_offsets(histories[0])
    if any(lists.null_count or not np.array_equal(list_offsets(lists), offsets) for lists in histories):
        raise DatasetError("some histories are null, or their columns differ in length")
    events = _row_hashes([lists.flatten() for lists in histories])
    requests = _with_slices(_row_hashes(rows.columns[:request_columns]), events, offsets[:-1], offsets[1:])
    hashed = mix(requests ^ _row_hashes(rows.columns[-target_columns:]))
    return SampleDigest(rows.num_rows, len(events), _hex(hashed.sum(axis=1, dtype=np.uint64)))


def _hex(sums: UInt64Array) -> str:
    return "".join(f"{total:016x}" for total in sums.tolist())


def _requests_with_histories(slices: HistorySlices) -> UInt64Array:
    """Hash requests together with their histories: (2, R)."""
    requests, events = _row_hashes(slices.request_columns.columns), _row_hashes(slices.events.flatten())
    return _with_slices(requests, events, slices.history_start, slices.history_end)


def _with_slices(rows: UInt64Array, values: UInt64Array, starts: Int64Array, ends: Int64Array) -> UInt64Array:
    """Hash rows, (N,) or (2, N), together with a slice [start, end) of values each: (2, N), one row per base."""
    mixed = np.empty_like(values)
    for chunk in cached_parts(len(values)):
        mixed[chunk] = mix(values[chunk] + _SALT)
    # Mixed, so that the hash depends on the row and its slice together: in a sum of unmixed hashes, two requests could
    # swap histories unnoticed.
    return mix(rows ^ np.stack([_slice_hashes(mixed, starts, ends, base) for base in BASES]))


def _row_hashes(columns: Sequence[ArrowArray]) -> UInt64Array:
    """Hash rows over all their columns: (N,); a null differs from a zero."""
    bits = [_value_bits(cast("pl.Series", pl.from_arrow(column))) for column in columns]
    hashed = np.zeros(len(columns[0]), dtype=np.uint64)
    for chunk in cached_parts(len(hashed)):
        for values in bits:
            # Adding 1 makes the hash depend on the number of columns, also where values are zero.
            hashed[chunk] = mix(hashed[chunk] ^ values[chunk]) + np.uint64(1)
    return hashed


def _value_bits(values: pl.Series) -> UInt64Array:
    """Return 64 bits per value, (N,), equal for equal values of types of any width."""
    if values.dtype == pl.String:
        values = hash_string(values)
    elif values.dtype.is_float():
        values = values.cast(pl.Float64) + 0.0  # makes -0.0 equal 0.0
    else:
        # Times become integers, and all integers 64 bits wide, so that a wider type alone does not change the hash.
        values = values.to_physical()
        values = values if values.dtype == pl.Int64 else values.cast(pl.Int64)
    if not values.null_count():
        return values.to_numpy().view(np.uint64)
    return np.where(values.is_null().to_numpy(), _SALT, values.fill_null(0).to_numpy().view(np.uint64))


def _slice_hashes(values: UInt64Array, starts: Int64Array, ends: Int64Array, base: int) -> UInt64Array:
    """Hash each slice [start, end) of `values`, its order and length included: (N,).

    Values [e0, e1, e2] have the prefix sums P = [0, e0, e0 + e1 B, e0 + e1 B + e2 B^2].
    The slice [1, 3) gives (P[3] - P[1]) B^-1 = e1 + e2 B, as if it started at 0.
    All of it modulo 2^64, where an odd base has an inverse.
    """
    # Prefix polynomial hash: one pass over all events, then two look-ups per slice, however long slices are.
    powers = _powers(base, len(values) + 1)
    inverses = _powers(pow(base, -1, 2**64), len(values) + 1)
    prefix = np.zeros(len(values) + 1, dtype=np.uint64)
    np.cumsum(np.multiply(values, powers[:-1], out=prefix[1:]), out=prefix[1:])
    # The length tells slices apart that differ by trailing zeros, which add nothing to the polynomial.
    return (prefix[ends] - prefix[starts]) * inverses[starts] + mix((ends - starts).astype(np.uint64))


def _powers(base: int, count: int) -> UInt64Array:
    """Return base^0 .. base^(count - 1) modulo 2^64, (count,)."""
    # Lengths are rounded up to a power of two, so that blocks of similar size share one cached table.
    return _power_table(base, max(MIN_POWERS, count).bit_length())[:count]


@lru_cache(maxsize=4 * len(BASES))  # two sizes, for each base and its inverse
def _power_table(base: int, bits: int) -> UInt64Array:
    factors = np.full(1 << bits, base, dtype=np.uint64)
    factors[0] = 1
    return np.multiply.accumulate(factors)
