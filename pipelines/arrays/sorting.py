"""Total orders over whole frames, by one sort of integers.

Sorting rows by many columns costs several times one sort of 64-bit integers. So as many leading columns as fit are
packed into one integer key. Only rows that tie on it (few, in real logs) are compared on the remaining columns.
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

    Attributes:
        permutation: Row numbers in sorted order, (N,).
        tied: Whether a sorted row ties with a neighbor on the packed columns, (N,). Every other sorted row differs
            from both neighbors.
    """

    permutation: Int64Array
    tied: BoolArray


def sort_rows(frame: pl.DataFrame, columns: list[str]) -> Order:
    """Order rows by columns, ascending, nulls first.

    Rows (a, s) = (2, "x"), (1, "y"), (2, "w"), sorted by a, then s: a is packed, and s is a string, so it is not.
    Sorting the key gives the order [1, 0, 2], in which rows 0 and 2 tie: tied = [False, True, True].
    Only these two are compared by s, and change places: permutation = [1, 2, 0].

    Args:
        frame: N rows.
        columns: Columns to sort by, the most significant first.

    Returns:
        The order; rows that are equal in all columns are in any order.
    """
    if frame.height == 0:
        return Order(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.bool_))
    key, packed = _packed_key(frame, columns)
    # The sort need not be stable: rows with equal keys are ordered below, or are equal in every column.
    permutation = np.argsort(key).astype(np.int64, copy=False)
    sorted_key = key[permutation]
    same = sorted_key[1:] == sorted_key[:-1]
    tied = np.zeros(frame.height, dtype=np.bool_)
    tied[1:] |= same
    tied[:-1] |= same
    if tied.any() and packed < len(columns):
        # Tied rows come in groups of equal keys; with the key in front, one sort orders all groups in place.
        rows = permutation[tied]
        ties = frame[rows].select(pl.Series("_key", sorted_key[tied]), *columns[packed:])
        by = ["_key", *columns[packed:]]
        permutation[tied] = rows[ties.select(pl.arg_sort_by(by, nulls_last=False)).to_series().to_numpy()]
    return Order(permutation, tied)


def _packed_key(frame: pl.DataFrame, columns: list[str]) -> tuple[UInt64Array, int]:
    """Pack leading integer columns into a key, most significant first; return it and the number of packed columns.

    Columns a = [5, 7, 5] and b = [0, 3, 2] take 2 bits each (codes a = [0, 2, 0], b = [0, 3, 2]).
    key = a << 2 | b = [0, 11, 2].
    Ranks need fewer bits than values, but cost a sort, so only the first two columns may be ranked.
    """
    key = np.zeros(frame.height, dtype=np.uint64)
    used = 0
    for index, name in enumerate(columns):
        column = frame[name]
        if not column.dtype.is_integer() or column.null_count():
            if index == 0:
                # Ranks begin at 1 and the rank of a null is null, so 0 puts nulls first.
                column = column.rank("dense").fill_null(0).cast(pl.Int64)
            else:
                return key, index
        # The offset from the minimum needs no sort, and for ids and times it is often short enough.
        codes, bits = compact(column.to_numpy())
        is_sparse = index == 0 and bits > frame.height.bit_length() + 2
        # Users and times may span many bits, but have few distinct values.
        if index < 2 and (is_sparse or used + bits > KEY_BITS):
            codes, bits = dense_rank(column.to_numpy())
        if used + bits > KEY_BITS:
            return key, index
        key <<= np.uint64(bits)
        key |= codes
        used += bits
    return key, len(columns)


@dataclass(frozen=True)
class Scale:
    """A lossless map of integers to codes that keeps their order: `code = (value - low) // unit`.

    Attributes:
        low: The smallest value.
        unit: A common divisor of all differences from `low`.
        bits: Bits of the largest code.
    """

    low: int
    unit: int
    bits: int

    def codes(self, values: npt.NDArray[np.integer], dtype: npt.DTypeLike = np.uint64) -> npt.NDArray[Any]:
        """Return the codes of the values that the scale was made for.

        Args:
            values: (N,) integers.
            dtype: An unsigned type of at least `bits` bits.

        Returns:
            (N,) of `dtype`.
        """
        codes = np.empty(len(values), dtype=dtype)
        for part in cached_parts(len(values)):
            # The division is exact, because `unit` divides every distance: hence lossless.
            codes[part] = _distances(values[part], self.low) // np.uint64(self.unit)
        return codes


def scale_of(values: npt.NDArray[np.integer]) -> Scale:
    """Choose a scale for values: from the smallest, in seconds or milliseconds if all differences are multiples.

    Args:
        values: (N,) integers, at least one; often times in microseconds.

    Returns:
        The scale; a unit above 1 only where the values span 2^32 or more.
    """
    low, high = int(values.min()), int(values.max())
    # Many logs have whole seconds or milliseconds, which saves 20 or 10 bits. Values that span less than 2^32 fit in 32
    # bits as they are, so the search for a unit is not worth its pass.
    for unit in (1_000_000, 1_000):
        if high - low >= 2**32 and all(_divides(unit, _distances(values[p], low)) for p in cached_parts(len(values))):
            return Scale(low, unit, ((high - low) // unit).bit_length())
    return Scale(low, 1, (high - low).bit_length())


def _distances(values: npt.NDArray[np.integer], low: int) -> UInt64Array:
    # A difference of two int64 may need 64 bits: modulo 2^64 it is right as uint64.
    return values.astype(np.int64, copy=False).view(np.uint64) - np.uint64(low % 2**64)


def _divides(unit: int, numbers: UInt64Array) -> bool:
    """Return whether all numbers are multiples, by multiplying back, several times as fast as the remainder."""
    return bool((numbers // np.uint64(unit) * np.uint64(unit) == numbers).all())


def compact(values: npt.NDArray[np.integer]) -> tuple[UInt64Array, int]:
    """Return order-preserving codes from 0, (N,) -> (N,), and the bits of the largest."""
    scale = scale_of(values)
    return scale.codes(values), scale.bits


def dense_rank(values: npt.NDArray[np.integer]) -> tuple[UInt64Array, int]:
    """Return the rank of each value among the distinct values, (N,) -> (N,), and the bits of the largest."""
    # Only the distinct values are sorted, and each value is then found by binary search: users repeat many times.
    distinct = pl.Series(values).unique().sort().to_numpy()
    return np.searchsorted(distinct, values).astype(np.uint64), (len(distinct) - 1).bit_length()


def paired_keys(groups: npt.NDArray[np.integer], times: Int64Array) -> UInt64Array:
    """Return keys that order as the pairs (group, time) do.

    Args:
        groups: Group of each pair, (N,).
        times: Time of each pair, (N,).

    Returns:
        (N,) uint64.
    """
    if not len(groups):
        return np.empty(0, dtype=np.uint64)
    return ranked_keys(*dense_rank(groups), times)


def ranked_keys(ranks: UInt64Array, rank_bits: int, times: Int64Array) -> UInt64Array:
    """Return keys that order as the pairs (rank, time) do, for groups that have ranks already.

    Ranks [1, 0, 1] and times [30, 99, 10] get the codes [20, 89, 0] of 7 bits.
    Keys: [1 << 7 | 20, 0 << 7 | 89, 1 << 7 | 0] = [148, 89, 128].

    Args:
        ranks: Rank of each group, (N,), below 2^rank_bits.
        rank_bits: Bits of a rank.
        times: Time of each pair, (N,).

    Returns:
        (N,) uint64.
    """
    codes, code_bits = compact(times)
    if rank_bits + code_bits > 64:
        # Ranks of N times have at most log2(N) bits, and so have the groups', so both fit for any N below 2^32.
        codes, code_bits = dense_rank(times)
    codes |= ranks << np.uint64(code_bits)
    return codes


def repeated_rows(frame: pl.DataFrame, order: Order) -> BoolArray:
    """Return which sorted rows equal the row before them in every column.

    Sorted rows [a, b, b, c, d, d], where c and d tie on the packed columns and differ in another one:
    tied = [no, yes, yes, yes, yes, yes], so the rows b, b, c, d, d are compared, each with the one before it.
    Result: [no, no, yes, no, no, yes].

    Args:
        frame: N rows.
        order: The order of the frame by all its columns.

    Returns:
        (N,), in sorted order.
    """
    repeated = np.zeros(frame.height, dtype=np.bool_)
    if not order.tied.any():
        return repeated
    # Equal rows tie on the packed key, so only tied rows are compared.
    ties = frame[order.permutation[order.tied]]
    # Two nulls are equal here (docs/semantics.md, duplicate). The first row has none before it: what `shift` puts there
    # is null too, so it needs the second condition.
    equal = pl.all_horizontal(pl.col(c).eq_missing(pl.col(c).shift()) for c in ties.columns)
    same = ties.select(equal & (pl.int_range(pl.len()) > 0)).to_series().to_numpy()
    repeated[np.flatnonzero(order.tied)[same]] = True
    return repeated
