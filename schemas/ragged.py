"""Offsets of ragged data: N rows of different sizes in one flat array, row i at [offsets[i], offsets[i + 1])."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from .types import ArrowListArray, Int64Array


def offsets_of(sizes: npt.NDArray[np.integer | np.bool_]) -> Int64Array:
    """Return the offsets of rows with these sizes; also the exclusive prefix sums of any integers.

    Args:
        sizes: Size of each row, (N,).

    Returns:
        Offsets, (N + 1,), from 0 to the sum of the sizes; sums wrap around modulo 2^64.

    Example:
        >>> offsets_of(np.array([2, 0, 3])).tolist()
        [0, 2, 2, 5]
    """
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes, dtype=np.int64)])


def owners_of(offsets: Int64Array) -> Int64Array:
    """Return the row that owns each flat element.

    Args:
        offsets: Offsets of N rows, (N + 1,), from 0 to T.

    Returns:
        Row numbers, (T,), ascending.

    Example:
        >>> owners_of(np.array([0, 2, 2, 5])).tolist()
        [0, 0, 2, 2, 2]
    """
    sizes = np.diff(offsets)
    return np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)


def concatenated_ranges(starts: Int64Array, sizes: Int64Array) -> Int64Array:
    """Return the elements of the ranges [start, start + size), one range after the other.

    Args:
        starts: First element of each range, (N,).
        sizes: Number of elements of each range, (N,).

    Returns:
        All elements, (sum of sizes,): row numbers that gather N slices of an array.

    Example:
        >>> concatenated_ranges(np.array([10, 40]), np.array([2, 3])).tolist()
        [10, 11, 40, 41, 42]
    """
    before = np.cumsum(sizes) - sizes
    return np.repeat(starts - before, sizes) + np.arange(int(sizes.sum()))


def list_offsets(lists: ArrowListArray) -> Int64Array:
    """Return the offsets of a list array into its flattened values.

    Args:
        lists: List array, (N,), possibly a slice of a larger one.

    Returns:
        Offsets, (N + 1,), from 0; a null list has no values.

    Example:
        >>> list_offsets(pa.array([[1, 2], None, [3]])).tolist()
        [0, 2, 2, 3]
    """
    if lists.null_count:
        # `flatten` skips the values that a null list may cover, so stored offsets cannot be used.
        return offsets_of(pc.list_value_length(lists).fill_null(0).to_numpy())
    offsets = lists.offsets.to_numpy()[: len(lists) + 1]
    return np.asarray(offsets - offsets[0], dtype=np.int64) if len(offsets) else np.zeros(1, dtype=np.int64)
