"""Requests without an id: sessions, windows of them, and ties."""

from __future__ import annotations

import polars as pl

from longbatch.pipelines.arrays.hashing import mix, request_ids_of
from longbatch.pipelines.request_grouping import group_targets
from longbatch.schemas.spec.build_spec import BuildSpec

US = 1_000_000


def spec_with(**keys: object) -> BuildSpec:
    """Spec of one log without request ids, with these keys in [requests]."""
    return BuildSpec.model_validate(
        {
            "sources": {"log": {"path": "log.parquet"}},
            "history": {"source": "log", "user_id": "u", "item_id": "i", "event_time": "t"},
            "requests": {"source": "log", "user_id": "u", "item_id": "i", "request_time": "t", **keys},
        }
    )


def group(rows: list[tuple[int, int, int]], **keys: object) -> list[tuple[int, int, list[int]]]:
    """(user, request time, items) of the requests that rows of (user, time, item) become."""
    spec = spec_with(**keys)
    frame = pl.DataFrame(rows, schema=dict.fromkeys(["user_id", "request_time", "item_id"], pl.Int64), orient="row")
    grouped = group_targets(spec, frame)
    items = grouped.targets["item_id"].to_list()
    bounds = grouped.target_offsets.tolist()
    return [
        (user, time, items[a:b])
        for (user, time), a, b in zip(
            grouped.requests.select("user_id", "request_time").rows(), bounds[:-1], bounds[1:], strict=True
        )
    ]


def test_rows_with_one_time_are_one_request() -> None:
    assert group([(1, 5, 8), (1, 5, 7), (1, 6, 9), (2, 5, 7)]) == [(1, 5, [7, 8]), (1, 6, [9]), (2, 5, [7])]


def test_a_session_continues_over_exactly_the_gap_but_not_over_a_longer_one() -> None:
    rows = [(1, 0, 1), (1, 2 * US, 2), (1, 4 * US, 3), (1, 6 * US + 1, 4)]
    assert group(rows, session_gap="2s") == [(1, 0, [1, 2, 3]), (1, 6 * US + 1, [4])]


def test_a_session_is_split_into_parts_from_its_first_row() -> None:
    rows = [(1, n, n) for n in range(5)] + [(1, 9 * US, 9)]
    assert group(rows, session_gap="1s", max_targets=2) == [
        (1, 0, [0, 1]),
        (1, 2, [2, 3]),
        (1, 4, [4]),
        (1, 9 * US, [9]),
    ]


def test_ties_at_a_split_are_decided_by_the_item() -> None:
    rows = [(1, 7, 3), (1, 7, 1), (1, 7, 2)]
    assert sorted(group(rows, max_targets=2)) == [(1, 7, [1, 2]), (1, 7, [3])]
    assert sorted(group(rows[::-1], max_targets=2)) == [(1, 7, [1, 2]), (1, 7, [3])]


def test_sessions_with_the_same_user_and_time_have_different_ids() -> None:
    user, time = pl.Series([1, 1, 1]).to_numpy(), pl.Series([7, 7, 7]).to_numpy()
    first, second, third = request_ids_of(user, time, pl.Series([0, 1, 2]).to_numpy()).tolist()
    base = mix(mix(pl.Series([1], dtype=pl.UInt64).to_numpy()) ^ pl.Series([7], dtype=pl.UInt64).to_numpy())
    assert first == int(base[0]) >> 1 == int(request_ids_of(user[:1], time[:1])[0])
    assert second == int(mix(base + pl.Series([1], dtype=pl.UInt64).to_numpy())[0]) >> 1
    assert len({first, second, third}) == 3


def test_no_rows_give_no_requests() -> None:
    assert group([], session_gap="1s", max_targets=3) == []


def test_equal_rows_are_split_in_the_order_in_which_they_come() -> None:
    spec = spec_with(max_targets=3)
    rows = 600  # enough that NumPy's default sort does not keep the order of equal rows
    frame = pl.DataFrame({"user_id": [1] * rows, "request_time": [7, 5] * (rows // 2), "item_id": [9] * rows})
    requests = group_targets(spec, frame).rows.reshape(-1, 3)
    expected = [[row, row + 2, row + 4] for first in (0, 1) for row in range(first, rows, 6)]
    assert sorted(sorted(row) for row in requests.tolist()) == sorted(expected)
