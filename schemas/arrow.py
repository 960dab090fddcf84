"""Typed conversions between NumPy and Arrow, where the type stubs of pyarrow do not know the result."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .types import ArrowArray, ArrowListArray, Int64Array


def int32_array(values: npt.NDArray[np.integer]) -> pa.Int32Array:
    """Return values, (N,), as an Arrow array of int32; they must be in its range."""
    return cast("pa.Int32Array", pa.array(values.astype(np.int32)))


def int64_array(values: npt.NDArray[np.integer], mask: npt.NDArray[np.bool_] | None = None) -> pa.Int64Array:
    """Return values, (N,), as an Arrow array of int64, null where `mask`, (N,), is true."""
    return cast("pa.Int64Array", pa.array(values.astype(np.int64, copy=False), mask=mask))


def list_column(batch: pa.RecordBatch, name: str) -> ArrowListArray:
    """Return a column of lists of a record batch."""
    return cast("ArrowListArray", batch[name])


def gather_slices(values: ArrowArray, starts: Int64Array, sizes: Int64Array) -> ArrowArray:
    """Concatenate slices of an array.

    Args:
        values: (T,), fewer than 2^31.
        starts: First element of each slice, (N,).
        sizes: Length of each slice, (N,).

    Returns:
        All elements of all slices, in order.

    Example:
        >>> gather_slices(pa.array(["a", "b", "c"]), np.array([1, 0]), np.array([2, 1])).to_pylist()
        ['b', 'c', 'a']
    """
    # A list view may overlap and repeat values, so flattening one is Arrow's fastest gather of many slices.
    # The stubs lack its parameter `sizes`.
    make = cast("Callable[[pa.Int32Array, pa.Int32Array, ArrowArray], ArrowListArray]", pa.ListViewArray.from_arrays)
    return make(int32_array(starts), int32_array(sizes), values).flatten()
