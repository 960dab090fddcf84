"""Offsets of ragged data, compared with plain Python lists."""

from __future__ import annotations

from typing import cast

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from longbatch.schemas.ragged import concatenated_ranges, list_offsets, offsets_of, owners_of
from longbatch.schemas.types import ArrowListArray

sizes_of_rows = st.lists(st.integers(0, 9), max_size=20)


@given(sizes_of_rows)
def test_offsets_and_owners_describe_the_same_rows(sizes: list[int]) -> None:
    offsets = offsets_of(np.array(sizes, dtype=np.int64))
    assert offsets.tolist() == [sum(sizes[:n]) for n in range(len(sizes) + 1)]
    assert owners_of(offsets).tolist() == [row for row, size in enumerate(sizes) for _ in range(size)]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), max_size=20))
def test_ranges_follow_each_other(ranges: list[tuple[int, int]]) -> None:
    starts, sizes = (np.array([row[i] for row in ranges], dtype=np.int64) for i in (0, 1))
    expected = [element for start, size in ranges for element in range(start, start + size)]
    assert concatenated_ranges(starts, sizes).tolist() == expected


@given(st.lists(st.none() | st.lists(st.integers(0, 9), max_size=3), max_size=9), st.integers(0, 4))
def test_list_offsets_point_into_the_flattened_values(rows: list[list[int] | None], skipped: int) -> None:
    lists = cast("ArrowListArray", pa.array(rows, pa.list_(pa.int64()))[skipped:])
    sizes = [len(row or []) for row in rows[skipped:]]
    assert list_offsets(lists).tolist() == [sum(sizes[:n]) for n in range(len(sizes) + 1)]
