"""Total orders over whole frames, by one integer sort.

Sorting rows by many columns costs several times one sort of 64-bit integers. So the leading columns are packed
into one integer, as many as fit; only rows that tie on it (few, in real logs) are compared on the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from longbatch.pipelines.hashing import Int64Array, UInt64Array

KEY_BITS = 63
PROBED = 1_000
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Order:
    """A sorted permutation of N rows.

    permutation: (N,) row numbers, sorted. tied: (N,) whether a sorted row ties with a neighbour on the packed
    columns; every other sorted row differs from both neighbours.
    """

    permutation: Int64Array
    tied: BoolArray


def sort_rows(frame: pl.DataFrame, columns: list[str]) -> Order:
    """Order the rows by `columns`, ascending, nulls first; rows equal in all of them stay in any order."""
    if frame.height == 0:
        return Order(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.bool_))
    key, packed = _packed_key(frame, columns)
    permutation = np.argsort(key).astype(np.int64, copy=False)
    sorted_key = key[permutation]
    same = sorted_key[1:] == sorted_key[:-1]
    tied = np.zeros(frame.height, dtype=np.bool_)
    tied[1:] |= same
    tied[:-1] |= same
    if tied.any() and packed < len(columns):
        rows = permutation[tied]
        ties = frame[rows].select(pl.Series("_key", sorted_key[tied]), *columns[packed:])
        by = ["_key", *columns[packed:]]
        permutation[tied] = rows[ties.select(pl.arg_sort_by(by, nulls_last=False)).to_series().to_numpy()]
    return Order(permutation, tied)


def _packed_key(frame: pl.DataFrame, columns: list[str]) -> tuple[UInt64Array, int]:
    """Pack leading integer columns, most significant first; return the key and how many columns it holds.

    Ranks take fewer bits than values but cost a sort, so only the first two columns are worth them.
    """
    key = np.zeros(frame.height, dtype=np.uint64)
    used = 0
    for position, name in enumerate(columns):
        column = frame[name]
        if not column.dtype.is_integer() or column.null_count():
            if position == 0:
                column = column.rank("dense").fill_null(0).cast(pl.Int64)
            else:
                return key, position
        codes, bits, _ = compact(column.to_numpy())
        sparse = position == 0 and bits > frame.height.bit_length() + 2
        if position < 2 and (sparse or used + bits > KEY_BITS):
            codes, bits = dense_rank(column.to_numpy())
        if used + bits > KEY_BITS:
            return key, position
        key = (key << np.uint64(bits)) | codes
        used += bits
    return key, len(columns)


def compact(values: npt.NDArray[np.integer]) -> tuple[UInt64Array, int, int]:
    """Order-preserving codes from 0 (shifted by the minimum, divided by a common unit), the bits they need, the unit."""
    low, high = int(values.min()), int(values.max())
    codes = values.astype(np.int64, copy=False).view(np.uint64) - np.uint64(low % 2**64)
    for unit in (1_000_000, 1_000):
        if high - low >= 2**32 and not (codes[:PROBED] % np.uint64(unit)).any():
            counts = codes // np.uint64(unit)
            if np.array_equal(counts * np.uint64(unit), codes):  # several times as fast as the remainder
                return counts, ((high - low) // unit).bit_length(), unit
    return codes, (high - low).bit_length(), 1


def dense_rank(values: npt.NDArray[np.integer]) -> tuple[UInt64Array, int]:
    """Ranks among the distinct values and the bits they need."""
    distinct = pl.Series(values).unique().sort().to_numpy()
    return np.searchsorted(distinct, values).astype(np.uint64), (len(distinct) - 1).bit_length()


def paired_keys(groups: npt.NDArray[np.integer], moments: Int64Array) -> UInt64Array:
    """Keys (N,) that order as the pairs (group, moment) do."""
    if not len(groups):
        return np.empty(0, dtype=np.uint64)
    return ranked_keys(*dense_rank(groups), moments)


def ranked_keys(ranks: UInt64Array, rank_bits: int, moments: Int64Array) -> UInt64Array:
    """The same where the groups are ranks (N,) below 2^rank_bits already."""
    codes, code_bits, _ = compact(moments)
    if rank_bits + code_bits > 64:
        codes, code_bits = dense_rank(moments)
    return (ranks << np.uint64(code_bits)) | codes


def repeated_rows(frame: pl.DataFrame, order: Order) -> BoolArray:
    """Which sorted rows equal the row before in every column, (N,); `order` must sort by all columns."""
    repeated = np.zeros(frame.height, dtype=np.bool_)
    if not order.tied.any():
        return repeated
    ties = frame[order.permutation[order.tied]]
    equal = pl.all_horizontal(pl.col(c).eq_missing(pl.col(c).shift()) for c in ties.columns)
    same = ties.select(equal & (pl.int_range(pl.len()) > 0)).to_series().to_numpy()
    repeated[np.flatnonzero(order.tied)[same]] = True
    return repeated
