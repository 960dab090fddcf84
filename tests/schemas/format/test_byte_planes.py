"""Planes, deltas and lists give back what was put in, and lay bytes where the format says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longbatch.schemas.errors import DatasetError
from longbatch.schemas.format.byte_planes import (
    Deltas,
    from_deltas,
    from_planes,
    has_planes,
    make_lists,
    to_deltas,
    to_planes,
)
from longbatch.schemas.ragged import list_offsets

TIMESTAMP = pa.timestamp("us", tz="UTC")
WIDE = {
    pa.int16(): st.integers(-(2**15), 2**15 - 1),
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float32(): st.floats(width=32, allow_nan=False),
    pa.float64(): st.floats(allow_nan=False),
    TIMESTAMP: st.integers(-(2**55), 2**55),
}


def test_bytes_of_values_lie_side_by_side() -> None:
    planes = to_planes(pa.array([1, 258, None, -1], pa.int32()))
    assert planes.to_pylist() == [
        {"0": 1, "1": 0, "2": 0, "3": 0},
        {"0": 2, "1": 1, "2": 0, "3": 0},
        None,
        {"0": 255, "1": 255, "2": 255, "3": 255},
    ]


@given(st.data())
def test_planes_give_back_values_and_nulls(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(list(WIDE)))
    values = pa.array(data.draw(st.lists(st.none() | WIDE[kind])), type=pa.int64() if kind == TIMESTAMP else kind)
    values = values.cast(kind)
    assert from_planes(to_planes(values), kind).equals(values)


def test_a_slice_of_planes_is_a_slice_of_values() -> None:
    values = pa.array([5, None, 70_000, -3], pa.int32())
    assert from_planes(to_planes(values).slice(1, 2), pa.int32()).to_pylist() == [None, 70_000]


def test_only_wide_values_of_fixed_width_have_planes() -> None:
    assert all(map(has_planes, WIDE))
    assert not any(map(has_planes, (pa.int8(), pa.bool_(), pa.string())))


def test_a_null_byte_is_refused() -> None:
    planes = pa.array([{"0": 1, "1": None}], pa.struct({"0": pa.uint8(), "1": pa.uint8()}))
    with pytest.raises(DatasetError, match="a byte of a value is null"):
        from_planes(planes, pa.int16())


def times(*microseconds: int | None) -> pa.Array:
    return pa.array(microseconds, pa.int64()).cast(TIMESTAMP)


def test_times_are_steps_of_the_coarsest_unit_with_the_sign_in_the_lowest_bit() -> None:
    deltas = to_deltas(times(7_000_001, 9_000_001, 8_000_001, 5), np.array([0, 3, 3, 4]))
    assert deltas.first.tolist() == [7_000_001, 0, 5]
    assert deltas.unit_us == 1_000_000
    assert deltas.steps.to_pylist() == [0, 4, 1, 0]


@pytest.mark.parametrize(("second", "unit"), [(3_000_000, 1_000_000), (3_000, 1_000), (3, 1)])
def test_the_unit_is_that_of_the_times(second: int, unit: int) -> None:
    assert to_deltas(times(0, second), np.array([0, 2])).unit_us == unit


@given(
    lists=st.lists(st.lists(st.integers(-(2**60), 2**60)), max_size=6),
    unit=st.sampled_from([1, 1_000, 1_000_000]),
    shift=st.integers(-5, 5),
)
def test_deltas_give_back_times(lists: list[list[int]], unit: int, shift: int) -> None:
    offsets = np.cumsum([0, *map(len, lists)])
    values = times(*(value // unit * unit + shift for row in lists for value in row))
    deltas = to_deltas(values, offsets)
    assert from_deltas(deltas, offsets, TIMESTAMP).equals(values)
    assert deltas.unit_us >= unit


def test_a_time_that_is_null_stays_null() -> None:
    offsets = np.array([0, 3])
    deltas = to_deltas(times(5, None, 9), offsets)
    assert from_deltas(Deltas(deltas.first, deltas.unit_us, deltas.steps), offsets, TIMESTAMP).equals(times(5, None, 9))


@given(st.lists(st.none() | st.lists(st.integers(0, 9))), st.integers(0, 3))
def test_offsets_and_values_make_the_lists_again(rows: list[Any], skipped: int) -> None:
    lists = pa.array(rows, pa.list_(pa.int64())).slice(skipped)
    assert make_lists(list_offsets(lists), lists.flatten(), lists).to_pylist() == rows[skipped:]
