"""Byte planes, deltas and lists are lossless, and the stored bytes are those of the format."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from arrow_values import values_of
from hypothesis import given
from hypothesis import strategies as st

from longbatch.schemas.errors import DatasetError
from longbatch.schemas.format.byte_planes import (
    Deltas,
    from_deltas,
    from_planes,
    has_planes,
    make_lists,
    plane_type,
    to_deltas,
    to_planes,
)
from longbatch.schemas.ragged import list_offsets
from longbatch.schemas.types import ArrowArray, ArrowListArray

TIMESTAMP = pa.timestamp("us", tz="UTC")
WIDE: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.int16(): st.integers(-(2**15), 2**15 - 1),
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float32(): st.floats(width=32, allow_nan=False),
    pa.float64(): st.floats(allow_nan=False),
    TIMESTAMP: st.integers(-(2**55), 2**55),
}


def test_each_byte_of_a_value_is_in_its_own_plane() -> None:
    planes = to_planes(pa.array([1, 258, None, -1], pa.int32()))
    assert values_of(planes) == [
        {"0": 1, "1": 0, "2": 0, "3": 0},
        {"0": 2, "1": 1, "2": 0, "3": 0},
        None,
        {"0": 255, "1": 255, "2": 255, "3": 255},
    ]


@given(st.data())
def test_planes_are_decoded_to_the_same_values_and_nulls(data: st.DataObject) -> None:
    arrow_type = data.draw(st.sampled_from(list(WIDE)))
    drawn = data.draw(st.lists(st.none() | WIDE[arrow_type]))
    values: ArrowArray = pa.array(drawn, pa.int64() if arrow_type == TIMESTAMP else arrow_type).cast(arrow_type)
    assert from_planes(to_planes(values), arrow_type).equals(values)


def test_a_slice_of_planes_is_a_slice_of_values() -> None:
    values = pa.array([5, None, 70_000, -3], pa.int32())
    assert from_planes(to_planes(values).slice(1, 2), pa.int32()).to_pylist() == [None, 70_000]


def test_only_wide_values_of_fixed_width_have_planes() -> None:
    assert all(map(has_planes, WIDE))
    narrow: list[pa.DataType] = [pa.int8(), pa.bool_(), pa.string()]
    assert not any(map(has_planes, narrow))


def test_a_null_byte_is_rejected() -> None:
    planes = cast(pa.StructArray, pa.array([{"0": 1, "1": None}], plane_type(pa.int16())))
    with pytest.raises(DatasetError, match="a byte of a value is null"):
        from_planes(planes, pa.int16())


def times(*microseconds: int | None) -> ArrowArray:
    return pa.array(microseconds, pa.int64()).cast(TIMESTAMP)


def test_times_become_zigzag_steps_in_the_coarsest_unit() -> None:
    deltas = to_deltas(times(7_000_001, 9_000_001, 8_000_001, 5), np.array([0, 3, 3, 4]))
    assert deltas.first.tolist() == [7_000_001, 0, 5]
    assert deltas.unit_us == 1_000_000
    assert deltas.steps.to_pylist() == [0, 4, 1, 0]


@pytest.mark.parametrize(("second", "unit"), [(3_000_000, 1_000_000), (3_000, 1_000), (3, 1)])
def test_the_unit_is_the_coarsest_that_is_exact(second: int, unit: int) -> None:
    assert to_deltas(times(0, second), np.array([0, 2])).unit_us == unit


@given(
    lists=st.lists(st.lists(st.integers(-(2**60), 2**60)), max_size=6),
    unit=st.sampled_from([1, 1_000, 1_000_000]),
    shift=st.integers(-5, 5),
)
def test_deltas_are_decoded_to_the_same_times(lists: list[list[int]], unit: int, shift: int) -> None:
    offsets = np.cumsum([0, *map(len, lists)])
    values = times(*(value // unit * unit + shift for row in lists for value in row))
    deltas = to_deltas(values, offsets)
    assert from_deltas(deltas, offsets, TIMESTAMP).equals(values)
    assert deltas.unit_us >= unit


def test_a_null_time_stays_null() -> None:
    offsets = np.array([0, 3])
    deltas = to_deltas(times(5, None, 9), offsets)
    assert from_deltas(Deltas(deltas.first, deltas.unit_us, deltas.steps), offsets, TIMESTAMP).equals(times(5, None, 9))


@given(st.lists(st.none() | st.lists(st.integers(0, 9))), st.integers(0, 3))
def test_lists_are_assembled_from_offsets_and_values(rows: list[Any], skipped: int) -> None:
    lists = cast(ArrowListArray, pa.array(rows, pa.list_(pa.int64())).slice(skipped))
    assert values_of(make_lists(list_offsets(lists), lists.flatten(), lists)) == rows[skipped:]
