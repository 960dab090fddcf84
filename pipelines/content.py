"""The content hash: equal for two datasets iff they hold the same requests, histories and targets.

It does not see how the content is stored: order, buckets, blocks, segments, codecs. Each request is hashed with its
whole history; hashes are added up. A history's hash takes no pass over the history: with event hashes e_i and an odd
base B, prefix sums P_k = sum of e_i B^i (mod 2^64) give the slice [a, b) as (P_b - P_a) B^-a.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import polars as pl
import pyarrow as pa

from longbatch.pipelines.hashing import Int64Array, UInt64Array, hash_text, mix
from longbatch.schemas.shard import Block

BASES = (0xD1342543DE82EF95, 0xAF251AF3B0F025B5)
_NULL = np.uint64(0x6A09E667F3BCC909)
_POINTERS = ("segment", "timeline_row", "history_end", "targets")


def content_hash(blocks: Iterable[Block], history_length: int) -> str:
    """Hash of all requests with their histories and targets, 32 hex digits; one pass, one block in memory."""
    totals = [0, 0]
    for block in blocks:
        for i, base in enumerate(BASES):
            hashed = _request_hashes(block, history_length, base)
            totals[i] = (totals[i] + int(hashed.sum(dtype=np.uint64))) % 2**64
    return "".join(f"{total:016x}" for total in totals)


def _request_hashes(block: Block, history_length: int, base: int) -> UInt64Array:
    """(R,) hashes of a block's requests."""
    requests, timelines = block.requests, block.timelines
    events = timelines["events"]
    targets = requests["targets"]
    starts = _offsets(events)[:-1][requests["timeline_row"].to_numpy()]
    ends = starts + requests["history_end"].to_numpy()
    begins = np.maximum(starts, ends - history_length)
    target_offsets = _offsets(targets)
    hashed = _row_hashes([requests[name] for name in requests.schema.names if name not in _POINTERS])
    hashed = mix(hashed ^ _slice_hashes(_struct_hashes(events), begins, ends, base))
    return mix(hashed ^ _slice_hashes(_struct_hashes(targets), target_offsets[:-1], target_offsets[1:], base))


def _offsets(lists: pa.ListArray) -> Int64Array:
    """Offsets into the flattened values of a list array, (N + 1,)."""
    offsets = lists.offsets.to_numpy()[: len(lists) + 1]
    return np.asarray(offsets - offsets[0], dtype=np.int64)


def _struct_hashes(lists: pa.ListArray) -> UInt64Array:
    return _row_hashes(lists.flatten().flatten())


def _row_hashes(columns: list[pa.Array]) -> UInt64Array:
    """Hash rows over all their columns, nulls told from zeros."""
    hashed = np.zeros(len(columns[0]), dtype=np.uint64)
    for column in columns:
        hashed = mix(hashed ^ _value_bits(pl.Series(pl.from_arrow(column)))) + np.uint64(1)
    return hashed


def _value_bits(values: pl.Series) -> UInt64Array:
    if values.dtype == pl.String:
        values = hash_text(values)
    elif values.dtype.is_float():
        values = values.cast(pl.Float64) + 0.0
        bits = values.fill_null(0.0).to_numpy().view(np.uint64)
        return np.where(values.is_null().to_numpy(), _NULL, bits)
    integers = values.to_physical().cast(pl.Int64)
    bits = integers.fill_null(0).to_numpy().view(np.uint64)
    return np.where(integers.is_null().to_numpy(), _NULL, bits) if integers.null_count() else bits


def _slice_hashes(
    values: UInt64Array,
    starts: Int64Array,
    ends: Int64Array,
    base: int,
) -> UInt64Array:
    """Hash of each slice [start, end) of `values`, its order and length included."""
    powers = _powers(base, len(values) + 1)
    inverses = _powers(pow(base, -1, 2**64), len(values) + 1)
    prefix = np.zeros(len(values) + 1, dtype=np.uint64)
    np.cumsum(mix(values + _NULL) * powers[:-1], out=prefix[1:])
    return (prefix[ends] - prefix[starts]) * inverses[starts] + mix((ends - starts).astype(np.uint64))


def _powers(base: int, count: int) -> UInt64Array:
    """Powers base^0 .. base^(count - 1) modulo 2^64."""
    factors = np.full(count, base, dtype=np.uint64)
    factors[0] = 1
    return np.multiply.accumulate(factors)
