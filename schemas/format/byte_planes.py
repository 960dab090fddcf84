"""Columns as bytes that compress well, and back: planes, deltas, lists. Arrays in, arrays out; nothing knows of tables.

*Planes*: the first bytes of all values, then the second bytes of all, and so on, each a column of its own. High bytes
hardly vary, so a codec removes them, and what is left it compresses several times faster than whole integers
(the idea of Blosc's shuffle filter and of Parquet's BYTE_STREAM_SPLIT).
*Deltas*: each time as the distance from the one before it in its list, in the coarsest of s, ms, us that loses nothing,
signs folded into the lowest bit (zigzag), as Parquet's and Protocol Buffers' encodings do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from longbatch.schemas.errors import DatasetError
from longbatch.schemas.types import Int64Array

TIME_UNITS_US = (1_000_000, 1_000, 1)


def has_planes(kind: pa.DataType) -> bool:
    """Whether values of a type are stored in planes: all of a fixed width of more than a byte."""
    return bool(pa.types.is_primitive(kind) and kind.bit_width > 8)


def plane_type(kind: pa.DataType) -> pa.DataType:
    """The struct of a value's bytes, `0` the lowest."""
    return pa.struct({str(place): pa.uint8() for place in range(kind.bit_width // 8)})


def to_planes(values: pa.Array) -> pa.StructArray:
    """Split values, (N,), into their bytes. A null is a null struct of zeros."""
    nulls = values.is_null() if values.null_count else None
    whole = values.fill_null(pa.scalar(0, values.type)) if values.null_count else values
    numbers = _bits(whole)
    width = numbers.dtype.itemsize
    # copied column by column: numpy transposes small rows slower than it gathers one byte of each
    planes = [np.ascontiguousarray(numbers.view(np.uint8).reshape(-1, width)[:, place]) for place in range(width)]
    return pa.StructArray.from_arrays(
        [pa.array(plane) for plane in planes], fields=list(plane_type(values.type)), mask=nulls
    )


def _bits(values: pa.Array) -> npt.NDArray[Any]:
    if pa.types.is_timestamp(values.type):
        values = values.view(pa.int64())
    return np.ascontiguousarray(values.to_numpy(zero_copy_only=False))


def from_planes(planes: pa.StructArray, kind: pa.DataType) -> pa.Array:
    """Put values, (N,), together from their bytes. Raises DatasetError if a single byte is null."""
    width = kind.bit_width // 8
    values = np.zeros((len(planes), width), dtype=np.uint8)
    for place in range(width):
        plane = planes.field(place)
        if plane.null_count:
            raise DatasetError("a byte of a value is null")
        part = plane.to_numpy()
        if part.any():
            values[:, place] = part
    return _from_buffer(values, kind, planes)


def _from_buffer(values: npt.NDArray[Any], kind: pa.DataType, nulls_of: pa.Array) -> pa.Array:
    """An array over the bytes of `values`, null where another array is."""
    valid = nulls_of.is_valid().buffers()[1] if nulls_of.null_count else None
    return pa.Array.from_buffers(kind, len(nulls_of), [valid, pa.py_buffer(values)])


@dataclass(frozen=True)
class Deltas:
    """Times of N lists with T values in all.

    first: (N,) int64 microseconds, the first time of each list, 0 for an empty one. unit_us: microseconds of a step.
    steps: (T,) int64, folded: from the time before in the list, 0 for the first; null where a time is.
    """

    first: Int64Array
    unit_us: int
    steps: pa.Array


def to_deltas(times: pa.Array, offsets: Int64Array) -> Deltas:
    """Encode times, (T,) timestamps, of lists with these offsets, (N + 1,) from 0 to T."""
    whole = times.view(pa.int64())
    numbers = (pc.fill_null_forward(whole).fill_null(0) if times.null_count else whole).to_numpy()
    begins = offsets[:-1][np.diff(offsets) > 0]
    first = np.zeros(len(offsets) - 1, dtype=np.int64)
    first[np.diff(offsets) > 0] = numbers[begins]
    steps = np.diff(numbers, prepend=np.int64(0))
    steps[begins] = 0
    unit = next(unit for unit in TIME_UNITS_US if _divides(unit, steps))
    if unit > 1:
        steps //= unit
    folded = (steps << 1) ^ (steps >> 63)
    return Deltas(first, unit, pa.array(folded, mask=times.is_null().to_numpy(False) if times.null_count else None))


def _divides(unit: int, steps: Int64Array) -> bool:
    """Whether all steps are whole units; mostly the first of them tell."""
    return unit == 1 or not ((steps[:1024] % unit).any() or (steps % unit).any())


def from_deltas(deltas: Deltas, offsets: Int64Array, kind: pa.DataType) -> pa.Array:
    """Decode to timestamps, (T,); the inverse of `to_deltas`. Sums wrap around where bytes were damaged."""
    folded = deltas.steps.fill_null(0).to_numpy() if deltas.steps.null_count else deltas.steps.to_numpy()
    unsigned = folded.view(np.uint64)
    steps = (unsigned >> np.uint64(1)).view(np.int64) ^ -(folded & 1)
    times = np.cumsum(steps)
    begins, sizes = offsets[:-1], np.diff(offsets)
    filled = sizes > 0
    shift = deltas.first[filled] - times[begins[filled]] * deltas.unit_us
    times *= deltas.unit_us
    times += np.repeat(shift, sizes[filled])
    return _from_buffer(times, kind, deltas.steps)


def make_lists(offsets: Int64Array, values: pa.Array, nulls_of: pa.Array) -> pa.ListArray:
    """Lists over values, null where another list array is."""
    mask = nulls_of.is_null() if nulls_of.null_count else None
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values, mask=mask)
