"""Total orders over whole frames, by one integer sort.

Sorting rows by many columns costs several times one sort of 64-bit integers. So the leading columns are packed
into one integer, as many as fit; only rows that tie on it (few, in real logs) are compared on the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from longbatch.schemas.types import BoolArray, Int64Array

from .hashing import UInt64Array, cached_parts

KEY_BITS = 63


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
        codes, bits = compact(column.to_numpy())
        sparse = position == 0 and bits > frame.height.bit_length() + 2
        if position < 2 and (sparse or used + bits > KEY_BITS):
            codes, bits = dense_rank(column.to_numpy())
        if used + bits > KEY_BITS:
            return key, position
        key <<= np.uint64(bits)
        key |= codes
        used += bits
    return key, len(columns)


@dataclass(frozen=True)
class Scale:
    """How integers become codes that keep their order: `(value - low) // unit`, below 2^bits, nothing lost."""

    low: int
    unit: int
    bits: int

    def codes(self, values: npt.NDArray[np.integer], dtype: npt.DTypeLike = np.uint64) -> npt.NDArray[Any]:
        """The codes of the values that the scale was made for, (N,) of `dtype`."""
        found = np.empty(len(values), dtype=dtype)
        for part in cached_parts(len(values)):
            found[part] = _above(values[part], self.low) // np.uint64(self.unit)
        return found


def scale_of(values: npt.NDArray[np.integer]) -> Scale:
    """A scale for these values: from the smallest, in a unit of which all are multiples where they span much."""
    low, high = int(values.min()), int(values.max())
    for unit in (1_000_000, 1_000):
        if high - low >= 2**32 and all(_divides(unit, _above(values[p], low)) for p in cached_parts(len(values))):
            return Scale(low, unit, ((high - low) // unit).bit_length())
    return Scale(low, 1, (high - low).bit_length())


def _above(values: npt.NDArray[np.integer], low: int) -> UInt64Array:
    return values.astype(np.int64, copy=False).view(np.uint64) - np.uint64(low % 2**64)


def _divides(unit: int, numbers: UInt64Array) -> bool:
    """Whether all numbers are multiples; multiplied back, which is several times as fast as the remainder."""
    return bool((numbers // np.uint64(unit) * np.uint64(unit) == numbers).all())


def compact(values: npt.NDArray[np.integer]) -> tuple[UInt64Array, int]:
    """Order-preserving codes from 0 and the bits they need."""
    scale = scale_of(values)
    return scale.codes(values), scale.bits


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
    codes, code_bits = compact(moments)
    if rank_bits + code_bits > 64:
        codes, code_bits = dense_rank(moments)
    codes |= ranks << np.uint64(code_bits)
    return codes


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
