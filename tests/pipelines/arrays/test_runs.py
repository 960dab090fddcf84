"""Runs of equal rows, places in them, and ragged offsets, against plain loops."""

from __future__ import annotations

from itertools import accumulate, groupby

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from longbatch.pipelines.arrays.runs import positions_in_run, starts_run, sums_before_in_run
from longbatch.schemas.ragged import concatenated_ranges, offsets_of

some = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)), max_size=20).map(sorted)


@given(some)
def test_places_and_sums_begin_anew_with_each_run(rows: list[tuple[int, int]]) -> None:
    keys = np.array([key for key, _ in rows], dtype=np.int64)
    sizes = np.array([size for _, size in rows], dtype=np.int64)
    begins = starts_run(keys)
    runs = [[size for _, size in run] for _, run in groupby(rows, key=lambda row: row[0])]
    assert positions_in_run(begins).tolist() == [place for run in runs for place in range(len(run))]
    assert sums_before_in_run(sizes, begins).tolist() == [n for run in runs for n in accumulate(run[:-1], initial=0)]


def test_any_column_may_change() -> None:
    assert starts_run(np.array([1, 1, 1, 2]), np.array([5, 5, 6, 6])).tolist() == [True, False, True, True]


@given(st.lists(st.integers(0, 5), max_size=10))
def test_offsets_are_the_sums_before_and_ranges_follow_each_other(sizes: list[int]) -> None:
    offsets = offsets_of(np.array(sizes, dtype=np.int64))
    assert offsets.tolist() == list(accumulate(sizes, initial=0))
    assert concatenated_ranges(offsets[:-1] + 3, np.diff(offsets)).tolist() == [n + 3 for n in range(sum(sizes))]
