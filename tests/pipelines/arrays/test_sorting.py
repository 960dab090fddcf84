"""Orders by packed integers, against Polars' own sort and a slow comparison of rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from longbatch.pipelines.arrays.sorting import Order, compact, dense_rank, repeated_rows, sort_rows

often = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
SECOND = 1_000_000
COLUMNS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "small": (pl.Int64, st.integers(0, 3)),
    "tiny": (pl.Int8, st.integers(-128, 127)),
    "time": (pl.Int64, st.integers(-2, 3).map(lambda n: 1_700_000_000 * SECOND + n * SECOND)),
    "huge": (pl.Int64, st.sampled_from([-(2**63), -1, 0, 1, 2**63 - 1])),
    "unsigned": (pl.UInt64, st.sampled_from([0, 1, 2**63, 2**64 - 1])),
    "maybe": (pl.Int64, st.none() | st.integers(-(2**63), 2**63 - 1)),
    "string": (pl.String, st.none() | st.sampled_from(["", "a", "b", "ab", "é", "😀"])),
    "float": (pl.Float64, st.none() | st.sampled_from([0.0, -0.0, 1.5, -1.5, math.inf, -math.inf, math.nan])),
    "flag": (pl.Boolean, st.none() | st.booleans()),
}


@st.composite
def frames(draw: st.DrawFn) -> pl.DataFrame:
    names = draw(st.lists(st.sampled_from(sorted(COLUMNS)), min_size=1, max_size=5, unique=True))
    rows = draw(st.lists(st.tuples(*(COLUMNS[name][1] for name in names)), max_size=25))
    return pl.DataFrame(rows, schema={name: COLUMNS[name][0] for name in names}, orient="row")


@often
@given(frames())
def test_the_order_equals_a_sort_by_all_columns(frame: pl.DataFrame) -> None:
    order = sort_rows(frame, frame.columns)
    assert sorted(order.permutation.tolist()) == list(range(frame.height))
    assert_frame_equal(frame[order.permutation], frame.sort(frame.columns, nulls_last=False))


@often
@given(frames())
def test_only_rows_marked_as_tied_can_equal_a_neighbor(frame: pl.DataFrame) -> None:
    order = sort_rows(frame, frame.columns)
    rows = frame[order.permutation].rows()
    for index in range(1, len(rows)):
        if same(rows[index], rows[index - 1]):
            assert order.tied[index]
            assert order.tied[index - 1]


def same(row: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return all(
        a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))
        for a, b in zip(row, other, strict=True)
    )


@often
@given(frames(), st.randoms(use_true_random=False))
def test_a_repeated_row_equals_the_one_before_it(frame: pl.DataFrame, random: Any) -> None:
    if frame.height:
        frame = frame[[random.randrange(frame.height) for _ in range(20)]]
    order = sort_rows(frame, frame.columns)
    rows = frame[order.permutation].rows()
    expected = [index > 0 and same(rows[index], rows[index - 1]) for index in range(len(rows))]
    assert repeated_rows(frame, order).tolist() == expected


def test_rows_can_be_sorted_by_some_columns() -> None:
    frame = pl.DataFrame({"a": [2, 1, 1], "b": ["x", "z", "y"], "c": [1, 2, 3]})
    assert frame[sort_rows(frame, ["a", "b"]).permutation]["c"].to_list() == [3, 2, 1]


def test_an_empty_frame_has_an_order() -> None:
    frame = pl.DataFrame(schema={"a": pl.Int64})
    order = sort_rows(frame, ["a"])
    assert (len(order.permutation), len(order.tied)) == (0, 0)
    assert len(repeated_rows(frame, order)) == 0


def test_distinct_rows_are_never_marked_as_repeated() -> None:
    frame = pl.DataFrame({"a": [1, 2]})
    assert repeated_rows(frame, Order(np.array([0, 1]), np.array([False, False]))).tolist() == [False, False]


@pytest.mark.parametrize(
    ("values", "bits"),
    [
        ([5, 5, 5], 0),
        ([0, 1], 1),
        ([-1, 2], 2),
        ([-(2**63), 2**63 - 1], 64),
        ([1_700_000_000 * SECOND, 1_700_086_400 * SECOND], 17),
        ([1_700_000_000_001_000, 1_700_086_400_000_000], 27),
        ([1_700_000_000_000_001, 1_700_086_400_000_000], 37),
    ],
)
def test_codes_keep_the_order_in_as_few_bits_as_possible(values: list[int], bits: int) -> None:
    codes, needed = compact(np.array(values, dtype=np.int64))
    assert needed == bits
    assert int(codes[0]) == 0
    assert codes.tolist() == sorted(codes.tolist())
    assert int(codes.max()).bit_length() <= bits


def test_the_rank_is_the_number_of_smaller_distinct_values() -> None:
    codes, bits = dense_rank(np.array([2**62, -5, 2**62, 0], dtype=np.int64))
    assert (codes.tolist(), bits) == ([2, 0, 2, 1], 2)
