"""Runs of equal rows, and positions and sums within them, compared with plain loops."""

from __future__ import annotations

from itertools import accumulate, groupby

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from longbatch.pipelines.arrays.runs import positions_in_run, starts_run, sums_before_in_run

some = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)), max_size=20).map(sorted)


@given(some)
def test_positions_and_sums_restart_with_each_run(rows: list[tuple[int, int]]) -> None:
    keys = np.array([key for key, _ in rows], dtype=np.int64)
    sizes = np.array([size for _, size in rows], dtype=np.int64)
    starts = starts_run(keys)
    runs = [[size for _, size in run] for _, run in groupby(rows, key=lambda row: row[0])]
    assert positions_in_run(starts).tolist() == [position for run in runs for position in range(len(run))]
    assert sums_before_in_run(sizes, starts).tolist() == [n for run in runs for n in accumulate(run[:-1], initial=0)]


def test_a_run_ends_where_any_column_changes() -> None:
    assert starts_run(np.array([1, 1, 1, 2]), np.array([5, 5, 6, 6])).tolist() == [True, False, True, True]
