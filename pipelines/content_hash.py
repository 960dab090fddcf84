"""The content hash: equal for two datasets iff they hold the same requests, histories and targets.

It does not see how the content is stored: order, buckets, blocks, segments, codecs. Each request is hashed with its
whole history; hashes are added up. A history's hash takes no pass over the history: with event hashes e_i and an odd
base B, prefix sums P_k = sum of e_i B^i (mod 2^64) give the slice [a, b) as (P_b - P_a) B^-a.

The same of the sample level (`SampleDigest`): the rows that a dataset expands to are hashed without copying a history, and
compared with those that are in a table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import polars as pl
import pyarrow as pa

from longbatch.pipelines.arrays.hashing import UInt64Array, cached_parts, hash_string, mix
from longbatch.schemas.errors import DatasetError
from longbatch.schemas.format.shard_reader import Block
from longbatch.schemas.ragged import list_offsets
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.tables import event_type, target_type
from longbatch.schemas.types import Int64Array

from .expansion import slice_histories

BASES = (0xD1342543DE82EF95, 0xAF251AF3B0F025B5)
_NULL = np.uint64(0x6A09E667F3BCC909)
LEAST_POWERS = (1 << 18) - 1  # so that most calls share their tables of powers


def content_hash(blocks: Iterable[Block], history_length: int) -> str:
    """Hash of all requests with their histories and targets, 32 hex digits; one pass, one block in memory."""
    totals = np.zeros(len(BASES), dtype=np.uint64)
    for block in blocks:
        cuts = slice_histories(block, history_length)
        offsets, targets = cuts.target_offsets, _row_hashes(cuts.targets.flatten())
        asked = _slices_within(
            _row_hashes(cuts.request_columns.columns),
            _row_hashes(cuts.events.flatten()),
            cuts.history_start,
            cuts.history_end,
        )
        totals += _slices_within(asked, targets, offsets[:-1], offsets[1:]).sum(axis=1, dtype=np.uint64)
    return _hex(totals)


@dataclass(frozen=True)
class SampleDigest:
    """A multiset of sample-level rows: how many, the events in their histories, and what tells it from others.

    hash: the sum of the hashes of all rows (history, request and target together), 32 hex digits.
    """

    rows: int = 0
    events: int = 0
    hash: str = "0" * 32

    def __add__(self, other: SampleDigest) -> SampleDigest:
        """Return the rows of both."""
        sums = [np.frombuffer(bytes.fromhex(samples.hash), ">u8") for samples in (self, other)]
        return SampleDigest(self.rows + other.rows, self.events + other.events, _hex(sums[0] + sums[1]))


def digest_block(block: Block, history_length: int) -> SampleDigest:
    """The rows that a block expands to; no history is copied."""
    cuts = slice_histories(block, history_length)
    asked = _slices_within(
        _row_hashes(cuts.request_columns.columns),
        _row_hashes(cuts.events.flatten()),
        cuts.history_start,
        cuts.history_end,
    )
    owners = np.repeat(np.arange(cuts.request_columns.num_rows), cuts.target_counts)
    hashed = mix(asked[:, owners] ^ _row_hashes(cuts.targets.flatten()))
    events = int((cuts.history_sizes * cuts.target_counts).sum())
    return SampleDigest(len(owners), events, _hex(hashed.sum(axis=1, dtype=np.uint64)))


def digest_rows(rows: pa.RecordBatch, spec: BuildSpec) -> SampleDigest:
    """The rows of a batch of the sample level, whose columns are those of `sample_schema`.

    Raises DatasetError if a history is null, or its columns differ in length.
    """
    targets = target_type(spec).num_fields
    own = rows.num_columns - targets - event_type(spec).num_fields
    histories = rows.columns[own:-targets]
    offsets = list_offsets(histories[0])
    if any(lists.null_count or not np.array_equal(list_offsets(lists), offsets) for lists in histories):
        raise DatasetError("there are histories that are null, or whose columns differ in length")
    events = _row_hashes([lists.flatten() for lists in histories])
    asked = _slices_within(_row_hashes(rows.columns[:own]), events, offsets[:-1], offsets[1:])
    hashed = mix(asked ^ _row_hashes(rows.columns[-targets:]))
    return SampleDigest(rows.num_rows, len(events), _hex(hashed.sum(axis=1, dtype=np.uint64)))


def _hex(sums: UInt64Array) -> str:
    """Both sums, one for each base, as text."""
    return "".join(f"{total:016x}" for total in sums.tolist())


def _slices_within(rows: UInt64Array, values: UInt64Array, starts: Int64Array, ends: Int64Array) -> UInt64Array:
    """Hash rows, (N,) or (2, N), together with the slice of values [start, end) of each: (2, N), one for each base."""
    mixed = np.empty_like(values)
    for part in cached_parts(len(values)):
        mixed[part] = mix(values[part] + _NULL)
    return mix(rows ^ np.stack([_slice_hashes(mixed, starts, ends, base) for base in BASES]))


def _row_hashes(columns: list[pa.Array]) -> UInt64Array:
    """Hash rows over all their columns, nulls told from zeros."""
    bits = [_value_bits(pl.Series(pl.from_arrow(column))) for column in columns]
    hashed = np.zeros(len(columns[0]), dtype=np.uint64)
    for part in cached_parts(len(hashed)):
        for values in bits:
            hashed[part] = mix(hashed[part] ^ values[part]) + np.uint64(1)
    return hashed


def _value_bits(values: pl.Series) -> UInt64Array:
    if values.dtype == pl.String:
        values = hash_string(values)
    elif values.dtype.is_float():
        values = values.cast(pl.Float64) + 0.0
    else:
        values = values.to_physical()
        values = values if values.dtype == pl.Int64 else values.cast(pl.Int64)
    if not values.null_count():
        return values.to_numpy().view(np.uint64)
    return np.where(values.is_null().to_numpy(), _NULL, values.fill_null(0).to_numpy().view(np.uint64))


def _slice_hashes(values: UInt64Array, starts: Int64Array, ends: Int64Array, base: int) -> UInt64Array:
    """Hash of each slice [start, end) of `values`, its order and length included."""
    powers = _powers(base, len(values) + 1)
    inverses = _powers(pow(base, -1, 2**64), len(values) + 1)
    prefix = np.zeros(len(values) + 1, dtype=np.uint64)
    np.cumsum(np.multiply(values, powers[:-1], out=prefix[1:]), out=prefix[1:])
    return (prefix[ends] - prefix[starts]) * inverses[starts] + mix((ends - starts).astype(np.uint64))


def _powers(base: int, count: int) -> UInt64Array:
    """Powers base^0 .. base^(count - 1) modulo 2^64."""
    return _power_table(base, max(LEAST_POWERS, count).bit_length())[:count]


@lru_cache(maxsize=4 * len(BASES))  # two sizes, for each base and its inverse
def _power_table(base: int, bits: int) -> UInt64Array:
    factors = np.full(1 << bits, base, dtype=np.uint64)
    factors[0] = 1
    return np.multiply.accumulate(factors)
