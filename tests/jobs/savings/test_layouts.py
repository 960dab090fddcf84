"""Layouts: slices add up to the table that a naive expansion builds."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measured_datasets import layouts_by_name, naive_samples, read_layout

from longbatch.jobs.savings.layouts import Layout, RowRuns, choose_slices
from longbatch.schemas.format.dataset import Dataset


def layout_of(runs: RowRuns) -> Layout:
    return Layout(
        "x", "x", "sample", interleaves_users=False, runs=runs, tables=lambda rows: (), extrapolation_factor=1.0
    )


def test_the_sample_level_copies_each_history_into_each_target(tiny: Dataset) -> None:
    table = read_layout(layouts_by_name(tiny)["sample_level_by_log"])
    rows = [(r["request_id"], r["target_item_id"], r["history_item_id"]) for r in table.to_pylist()]
    assert rows == [
        (10, 101, []),
        (10, 102, []),
        (20, 201, []),
        (11, 103, [101, 102]),
        (11, 104, [101, 102]),
        (11, 105, [101, 102]),
        (21, 202, [201]),
        (12, 106, [103, 104, 105]),
    ]


@pytest.mark.parametrize("slices", [1, 7, 60])
@pytest.mark.parametrize("order", ["log", "user"])
def test_slices_of_the_sample_level_add_up_to_the_expansion(larger: Dataset, order: str, slices: int) -> None:
    table = read_layout(layouts_by_name(larger)[f"sample_level_by_{order}"], slices)
    assert table.to_pylist() == naive_samples(larger, by_time=order == "log")


@pytest.mark.parametrize("slices", [1, 7, 60])
def test_the_shuffled_layout_contains_each_sample_once(larger: Dataset, slices: int) -> None:
    rows = read_layout(layouts_by_name(larger)["sample_level_shuffled"], slices).to_pylist()
    expected = naive_samples(larger, by_time=False)
    assert rows != expected
    assert sorted(map(repr, rows)) == sorted(map(repr, expected))
    different_requests = [a["request_id"] != b["request_id"] for a, b in pairwise(rows)]
    assert sum(different_requests) > 0.9 * len(different_requests)


@pytest.mark.parametrize("order", ["log", "user"])
def test_slices_of_the_request_level_contain_each_request_once(larger: Dataset, order: str) -> None:
    rows = read_layout(layouts_by_name(larger)[f"request_level_by_{order}"], 9).to_pylist()
    expanded = [(r["request_id"], r["history_item_id"], t["item_id"]) for r in rows for t in r["targets"]]
    expected = naive_samples(larger, by_time=order == "log")
    assert expanded == [(r["request_id"], r["history_item_id"], r["target_item_id"]) for r in expected]
    assert len(rows) == larger.counts.requests


def test_slices_of_the_user_level_point_into_their_own_timelines(larger: Dataset) -> None:
    layout = layouts_by_name(larger)["user_level"]
    histories = []
    for start in range(0, layout.bytes, 2_000):
        slice_rows = layout.rows_starting_in(start, start + 2_000)
        if len(slice_rows.owners):
            timelines, requests = (table.to_pylist() for table in layout.tables(slice_rows))
            for row in requests:
                owner, end = timelines[row["timeline_row"]], row["history_end"]
                assert owner["user_id"] == row["user_id"]
                histories.append([event["item_id"] for event in owner["events"][max(0, end - 3) : end]])
    expected = [[e["item_id"] for e in row["history"]] for b in larger.scan() for row in b.to_pylist()]
    assert histories == expected


def test_timelines_that_are_not_consecutive_raise(larger: Dataset) -> None:
    layout = layouts_by_name(larger)["user_level"]
    one = np.ones(2, dtype=np.int64)
    with pytest.raises(ValueError, match="timelines must be consecutive, found 2 of the rows 0 to 2"):
        layout.tables(RowRuns(np.array([0, 2]), one - 1, one, one))


def test_the_size_of_a_layout_is_the_size_of_its_tables_in_memory(larger: Dataset) -> None:
    for layout in layouts_by_name(larger).values():
        tables = layout.tables(layout.rows_starting_in(0, layout.bytes))
        assert sum(table.nbytes for table in tables) == pytest.approx(layout.bytes, rel=0.01)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 50)), min_size=1, max_size=20), st.data())
def test_each_row_starts_in_exactly_one_of_adjacent_slices(owners: list[tuple[int, int]], data: st.DataObject) -> None:
    rows, sizes = (np.array(column, dtype=np.int64) for column in zip(*owners, strict=True))
    layout = layout_of(RowRuns(np.arange(len(rows)), np.zeros_like(rows), rows, sizes))
    edges = sorted(data.draw(st.lists(st.integers(0, layout.bytes), max_size=6)))
    starts = (np.cumsum(rows * sizes) - rows * sizes).tolist()
    for start, stop in zip([0, *edges], [*edges, layout.bytes], strict=True):
        slice_rows = layout.rows_starting_in(start, stop)
        actual = {
            (int(o), int(f) + k)
            for o, f, c in zip(slice_rows.owners, slice_rows.first, slice_rows.count, strict=True)
            for k in range(c)
        }
        expected = {
            (o, k) for o, (n, size) in enumerate(owners) for k in range(n) if start <= starts[o] + k * size < stop
        }
        assert actual == expected
        assert slice_rows.bytes == sum(owners[o][1] for o, _ in expected)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 10**7), st.integers(1_000, 10**6), st.integers(0, 5))
def test_slices_are_disjoint_and_within_the_budget(rows: int, budget: int, seed: int) -> None:
    one = np.ones(1, dtype=np.int64)
    layout = layout_of(RowRuns(one - 1, one - 1, one * rows, one * 7))
    slices = choose_slices(layout, budget, np.random.default_rng(seed))
    assert all(stop <= start for (_, stop), (start, _) in pairwise(slices))
    total = sum(stop - start for start, stop in slices)
    assert total == layout.bytes if layout.bytes <= budget else total <= budget
    assert slices[0][0] >= 0
    assert slices[-1][1] <= layout.bytes
