"""Runs of equal rows in sorted arrays, and the offsets of ragged ones."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from longbatch.schemas.types import BoolArray, Int64Array


def changes(*columns: Int64Array) -> BoolArray:
    """Where any column differs from the row before; the first row always does."""
    changed = np.ones(len(columns[0]), dtype=np.bool_)
    if len(changed):
        changed[1:] = np.logical_or.reduce([c[1:] != c[:-1] for c in columns])
    return changed


def places(begins: BoolArray) -> Int64Array:
    """Place of each row in its run, from 0; `begins` says where runs begin, the first row does."""
    rows = np.arange(len(begins))
    return rows - np.maximum.accumulate(np.where(begins, rows, 0))


def running_within(sizes: Int64Array, begins: BoolArray) -> Int64Array:
    """Sum of the sizes before each row within its run."""
    before = np.cumsum(sizes) - sizes
    group = np.cumsum(begins) - 1
    return np.asarray(before - before[begins][group], dtype=np.int64)


def offsets_of(sizes: npt.NDArray[np.integer | np.bool_]) -> Int64Array:
    """Offsets (N + 1,) of N ragged rows of these sizes: also the sums before each row, and of all."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes, dtype=np.int64)])


def ranges(starts: Int64Array, sizes: Int64Array) -> Int64Array:
    """Concatenate the ranges [start, start + size)."""
    before = np.cumsum(sizes) - sizes
    return np.repeat(starts - before, sizes) + np.arange(int(sizes.sum()))
