"""Encode columns as bytes that compress well: byte planes, and deltas of times. Pure functions of arrays.

*Byte planes* store the first bytes of all values, then the second bytes of all, and so on, each as a column of its own.
High bytes hardly vary, so a codec removes them, and it compresses the rest several times faster than whole integers.
This is the idea of Blosc's shuffle filter and of Parquet's BYTE_STREAM_SPLIT.

*Deltas* store each time as the distance from the previous time of its list, in the coarsest unit of s, ms and us that
is exact, with the sign folded into the lowest bit (zigzag). Parquet and Protocol Buffers encode integers this way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from longbatch.schemas.arrow import int32_array, int64_array
from longbatch.schemas.errors import DatasetError
from longbatch.schemas.types import ArrowArray, ArrowListArray, Int64Array

# Units of the steps between times in microseconds, the coarsest first. Logs with times in seconds or milliseconds then
# have small steps, whose upper byte planes are all zero.
TIME_UNITS_US = (1_000_000, 1_000, 1)


def has_planes(arrow_type: pa.DataType) -> bool:
    """Return whether values of a type are stored in planes: all types of a fixed width of more than a byte."""
    return pa.types.is_primitive(arrow_type) and arrow_type.bit_width > 8


def plane_type(arrow_type: pa.DataType) -> pa.StructType:
    """Return the struct type of a value's bytes; field `0` is the lowest byte."""
    return pa.struct([(str(byte), pa.uint8()) for byte in range(arrow_type.bit_width // 8)])


def to_planes(values: ArrowArray) -> pa.StructArray:
    """Split values into their bytes.

    Args:
        values: (N,), of a type that has planes.

    Returns:
        Structs of bytes, (N,); a null becomes a null struct of zeros.

    Example:
        >>> to_planes(pa.array([258], pa.int16())).to_pylist()
        [{'0': 2, '1': 1}]
    """
    # Arrow leaves the value under a null undefined; zeros make the file reproducible and compress best.
    nulls = values.is_null() if values.null_count else None
    filled = values.fill_null(pa.scalar(0, values.type)) if values.null_count else values
    numbers = _as_integers(filled)
    width = numbers.dtype.itemsize
    byte_rows = numbers.view(np.uint8).reshape(-1, width)
    # One copy per byte: numpy transposes rows of a few bytes more slowly than it gathers one byte of each row.
    planes = [pa.array(np.ascontiguousarray(byte_rows[:, byte])) for byte in range(width)]
    return pa.StructArray.from_arrays(planes, fields=list(plane_type(values.type)), mask=nulls)


def _as_integers(values: ArrowArray) -> npt.NDArray[Any]:
    """The values as a contiguous NumPy array; timestamps as int64."""
    if pa.types.is_timestamp(values.type):
        values = values.view(pa.int64())
    return np.ascontiguousarray(values.to_numpy(zero_copy_only=False))


def from_planes(planes: pa.StructArray, arrow_type: pa.DataType) -> ArrowArray:
    """Assemble values from their bytes; the inverse of `to_planes`.

    Args:
        planes: Structs of bytes, (N,).
        arrow_type: Type of the values.

    Returns:
        The values, (N,).

    Raises:
        DatasetError: A single byte is null.
    """
    # Transpose the planes (width, N) into rows (N, width), which are the little-endian values.
    width = arrow_type.bit_width // 8
    values = np.zeros((len(planes), width), dtype=np.uint8)
    for byte in range(width):
        plane = planes.field(byte)
        if plane.null_count:
            raise DatasetError("a byte of a value is null")
        plane_bytes = plane.to_numpy()
        # High planes are mostly all zero, and checking is cheaper than a strided write.
        if plane_bytes.any():
            values[:, byte] = plane_bytes
    return _from_buffer(values, arrow_type, planes)


def _from_buffer(values: npt.NDArray[Any], arrow_type: pa.DataType, nulls_of: ArrowArray) -> ArrowArray:
    """An array over the bytes of `values`, with the nulls of another array."""
    valid = nulls_of.is_valid().buffers()[1] if nulls_of.null_count else None
    return pa.Array.from_buffers(arrow_type, len(nulls_of), [valid, pa.py_buffer(values.data)])


@dataclass(frozen=True)
class Deltas:
    """Encoded times of N lists with T values in all.

    Attributes:
        first: First time of each list in microseconds, (N,) int64; 0 for an empty list.
        unit_us: Microseconds of a step.
        steps: Zigzag-coded difference from the previous time of the list, (T,) int64; 0 for the first time, and null
            where the time is null.
    """

    first: Int64Array
    unit_us: int
    steps: ArrowArray


def to_deltas(times: ArrowArray, offsets: Int64Array) -> Deltas:
    """Encode times.

    Args:
        times: Timestamps in microseconds, (T,).
        offsets: Offsets of the lists, (N + 1,), from 0 to T.

    Returns:
        The deltas.

    Example:
        times    10 s  12 s  11 s | 50 s      two lists, offsets 0 3 4
        steps       0    +2    -1 |    0      in the unit of a second; the first times are 10 s and 50 s
        zigzag      0     4     1 |    0      2 * step, or -2 * step - 1 for a negative one
    """
    integers = times.view(pa.int64())
    # A null gets the time before it, so that it neither changes the unit nor the next step.
    filled = pc.fill_null_forward(integers).fill_null(0) if times.null_count else integers
    numbers: Int64Array = filled.to_numpy()
    is_filled = np.diff(offsets) > 0
    starts = offsets[:-1][is_filled]
    first = np.zeros(len(offsets) - 1, dtype=np.int64)
    first[is_filled] = numbers[starts]
    # One difference over all lists at once; what crosses a list boundary is overwritten with 0.
    steps = np.diff(numbers, prepend=np.int64(0))
    steps[starts] = 0
    unit = next(unit for unit in TIME_UNITS_US if _is_multiple(steps, unit))
    if unit > 1:
        steps //= unit
    # Zigzag: -1 becomes 1 instead of 2^64 - 1, whose bytes would all be 255. The shift by 63 copies the sign bit.
    zigzag = (steps << 1) ^ (steps >> 63)
    return Deltas(first, unit, int64_array(zigzag, times.is_null().to_numpy(False) if times.null_count else None))


def _is_multiple(steps: Int64Array, unit: int) -> bool:
    """Whether all steps are multiples of a unit; if not, one of the first mostly shows it."""
    return unit == 1 or not ((steps[:1024] % unit).any() or (steps % unit).any())


def from_deltas(deltas: Deltas, offsets: Int64Array, arrow_type: pa.DataType) -> ArrowArray:
    """Decode times; the inverse of `to_deltas`. Sums of damaged steps wrap around.

    Args:
        deltas: The encoded times.
        offsets: Offsets of the lists, (N + 1,), from 0 to T.
        arrow_type: Timestamp type of the result.

    Returns:
        Timestamps, (T,).

    Example:
        steps          0  +2  -1 |  0       after undoing the zigzag; offsets 0 3 4
        running sum    0   2   1 |  1       over all lists at once
        shift         10  10  10 | 49       first time minus the running sum at the list's start
    """
    zigzag = deltas.steps.fill_null(0).to_numpy() if deltas.steps.null_count else deltas.steps.to_numpy()
    # Undo the zigzag with a logical shift; numpy shifts signed integers arithmetically, which would copy the sign.
    unsigned = zigzag.view(np.uint64)
    steps = (unsigned >> np.uint64(1)).view(np.int64) ^ -(zigzag & 1)
    # A segmented prefix sum: one running sum over all lists, then each list is shifted to its first time.
    times = np.cumsum(steps)
    starts, sizes = offsets[:-1], np.diff(offsets)
    is_filled = sizes > 0
    shift = deltas.first[is_filled] - times[starts[is_filled]] * deltas.unit_us
    times *= deltas.unit_us
    times += np.repeat(shift, sizes[is_filled])
    return _from_buffer(times, arrow_type, deltas.steps)


def make_lists(offsets: Int64Array, values: ArrowArray, nulls_of: ArrowArray) -> ArrowListArray:
    """Make lists over values.

    Args:
        offsets: Offsets of the lists, (N + 1,).
        values: Flat values, (T,).
        nulls_of: Array, (N,), with the nulls of the result.

    Returns:
        Lists, (N,).
    """
    mask = nulls_of.is_null() if nulls_of.null_count else None
    return cast(ArrowListArray, pa.ListArray.from_arrays(int32_array(offsets), values, mask=mask))
