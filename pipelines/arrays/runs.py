"""Runs of equal rows in sorted arrays: where they start, and positions and sums within them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from longbatch.schemas.types import BoolArray, Int64Array


def starts_run(*columns: npt.NDArray[np.integer]) -> BoolArray:
    """Return which rows differ from the row before them in any column; the first row always does.

    Args:
        *columns: One or more arrays of the same length, (N,).

    Returns:
        Mask of the first row of each run, (N,).

    Example:
        >>> starts_run(np.array([7, 7, 9]), np.array([1, 2, 2])).tolist()
        [True, True, True]
    """
    # Run-length starts: each column is compared with itself, shifted by one row.
    starts = np.ones(len(columns[0]), dtype=np.bool_)
    if len(starts):
        starts[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return starts


def positions_in_run(starts: BoolArray) -> Int64Array:
    """Return the position of each row in its run, from 0.

    Args:
        starts: Mask of the first row of each run, (N,); the first row starts one.

    Returns:
        Positions, (N,).

    Example:
        >>> positions_in_run(np.array([True, False, False, True])).tolist()
        [0, 1, 2, 0]
    """
    rows = np.arange(len(starts))
    # Segmented prefix maximum: the running maximum of the run starts is the start of the row's own run.
    return rows - np.maximum.accumulate(np.where(starts, rows, 0))


def sums_before_in_run(sizes: Int64Array, starts: BoolArray) -> Int64Array:
    """Return the sum of the sizes of the earlier rows of each row's run.

    Args:
        sizes: A size per row, (N,).
        starts: Mask of the first row of each run, (N,).

    Returns:
        Sums, (N,).

    Example:
        >>> sums_before_in_run(np.array([5, 2, 1, 4]), np.array([True, False, False, True])).tolist()
        [0, 5, 7, 0]
    """
    # Segmented exclusive prefix sum: the sum before the row, less the sum before the first row of its run.
    before = np.cumsum(sizes) - sizes
    run = np.cumsum(starts) - 1
    return np.asarray(before - before[starts][run], dtype=np.int64)
