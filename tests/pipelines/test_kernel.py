"""The kernel, rule by rule of docs/semantics.md; test_kernel_against_reference.py tries them all together."""

from __future__ import annotations

import math
from typing import Any

import polars as pl
import pytest

from longbatch.pipelines.arrays.hashing import request_ids_of
from longbatch.pipelines.canonicalize import LogFacts, canonicalize
from longbatch.pipelines.kernel import BuiltBucket, build_bucket
from longbatch.schemas.spec.build_spec import BuildSpec

T = 1_700_000_000
US = 1_000_000
Row = dict[str, Any]


def spec_of(history: Row | None = None, requests: Row | None = None) -> BuildSpec:
    both = {"user_id": "user", "item_id": "item"}
    return BuildSpec.model_validate(
        {
            "sources": {"plays": {"path": "plays.parquet"}, "shown": {"path": "shown.parquet"}},
            "history": {"source": "plays", **both, "event_time": {"column": "time", "unit": "s"}, **(history or {})},
            "requests": {
                "source": "shown",
                **both,
                "request_time": {"column": "time", "unit": "s"},
                "request_id": "request",
                **(requests or {}),
            },
        }
    )


PLAY: Row = {"user": 1, "item": 10, "time": 0}
SHOWN: Row = {"user": 1, "item": 20, "time": 5, "request": 1}


def kernel(spec: BuildSpec, plays: list[Row], shown: list[Row], conflicts: pl.Series | None = None) -> BuiltBucket:
    """Run the kernel on PLAY and SHOWN with some values changed; times are seconds after T."""
    rows = {}
    for source, default, changed in (("plays", PLAY, plays), ("shown", SHOWN, shown)):
        filled = pl.DataFrame([{**default, **row} for row in changed], schema=None if changed else list(default))
        filled = filled.with_columns(pl.col("user", "item", "time").cast(pl.Int64))
        if source == "shown":
            filled = filled.with_columns(pl.col("request").cast(pl.Int64))
        timed = filled.with_columns(pl.col(name) + T for name in ("time", "arrival") if name in filled.columns)
        rows[source] = canonicalize(timed, spec, source).rows
    return build_bucket(spec, rows, LogFacts(conflicts))


def history_ends(spec: BuildSpec, plays: list[Row], shown: list[Row]) -> dict[int, int]:
    bucket = kernel(spec, plays, shown)
    return dict(zip(bucket.requests.requests["request_id"].to_list(), bucket.history_end.tolist(), strict=True))


def test_an_event_is_visible_strictly_before_the_request() -> None:
    plays = [{"time": 4}, {"time": 5, "item": 11}, {"time": 6, "item": 12}]
    shown = [{"request": 1, "time": 4}, {"request": 2, "time": 5}, {"request": 3, "time": 6}, {"request": 4, "time": 7}]
    assert history_ends(spec_of(), plays, shown) == {1: 0, 2: 1, 3: 2, 4: 3}


def test_a_delay_hides_events_from_earlier_requests() -> None:
    spec = spec_of(history={"delay": "1500ms"})
    assert history_ends(spec, [{"time": 3}, {"time": 4, "item": 11}], [{"time": 5}]) == {1: 1}


def test_an_event_is_visible_from_its_arrival_on() -> None:
    spec = spec_of(history={"arrival_time": {"column": "arrival", "unit": "s"}})
    plays = [{"time": 0, "arrival": 9}, {"time": 3, "arrival": 2, "item": 11}]
    bucket = kernel(spec, plays, [{"time": 5}])
    assert bucket.history_end.tolist() == [1]
    assert bucket.timelines.events["item_id"].to_list() == [11, 10], "by visible time, not by event time"


def test_events_that_tie_are_ordered_by_item_then_features() -> None:
    spec = spec_of(history={"features": {"score": "float64", "word": "string", "flag": "bool"}})
    nothing = {"score": 1.0, "word": "a", "flag": False}
    plays = [
        {**nothing, "item": 11},
        {**nothing, "score": math.nan},
        {**nothing, "score": 2.0},
        {**nothing, "score": None},
        {**nothing, "word": "é"},
        {**nothing, "word": "z"},
        {**nothing, "word": None},
        {**nothing, "flag": True},
        {**nothing, "flag": None},
        nothing,
    ]
    events = kernel(spec, plays, [{}]).timelines.events
    features = events.select("item_id", "history.score", "history.word", "history.flag").rows()
    assert str(features) == str(
        [
            (10, None, "a", False),
            (10, 1.0, None, False),
            (10, 1.0, "a", None),
            (10, 1.0, "a", False),
            (10, 1.0, "a", True),
            (10, 1.0, "z", False),
            (10, 1.0, "é", False),
            (10, 2.0, "a", False),
            (10, math.nan, "a", False),
            (11, 1.0, "a", False),
        ]
    )


def test_rows_that_are_equal_in_every_mapped_column_are_duplicates() -> None:
    plays = [{"more": 1}, {"more": 2}, {"item": 11, "more": 1}]
    bucket = kernel(spec_of(), plays, [{}, {}, {}])
    assert bucket.timelines.events.height == 2
    assert bucket.requests.targets.height == 1
    assert (bucket.row_accounting["plays"].duplicate, bucket.row_accounting["plays"].accepted) == (1, -1)
    assert (bucket.row_accounting["shown"].duplicate, bucket.row_accounting["shown"].accepted) == (2, -2)


def test_rows_with_one_request_id_are_one_request_at_its_earliest_time() -> None:
    spec = spec_of(requests={"features": {"tab": "int8"}})
    shown = [{"time": 7, "item": 1, "tab": 1}, {"time": 5, "item": 9, "tab": 2}, {"time": 5, "item": 8, "tab": 3}]
    bucket = kernel(spec, [{"time": 4}, {"time": 6, "item": 11}], shown)
    assert bucket.requests.requests.rows() == [(1, 1, (T + 5) * US, 3)], "its features are those of its first row"
    assert bucket.requests.targets["item_id"].to_list() == [1, 8, 9]
    assert bucket.history_end.tolist() == [1]


def test_one_request_id_of_two_users_of_a_bucket_stays_two_requests() -> None:
    bucket = kernel(spec_of(), [], [{"user": 1}, {"user": 2}])
    assert bucket.requests.requests["user_id"].to_list() == [1, 2]


def test_rows_of_known_conflicts_are_rejected() -> None:
    bucket = kernel(spec_of(), [], [{"request": 1}, {"request": 2}], pl.Series([1]))
    assert bucket.requests.requests["request_id"].to_list() == [2]
    accounting = bucket.row_accounting["shown"]
    assert (accounting.rejected, accounting.accepted, accounting.reasons) == (1, -1, {"conflicting_request": 1})


def test_without_request_ids_a_user_and_a_time_make_a_request() -> None:
    spec = spec_of().model_dump()
    spec["requests"]["request_id"] = None
    shown = [{"time": 5}, {"time": 5, "item": 21}, {"time": 6}, {"user": 2, "time": 5}]
    bucket = kernel(BuildSpec.model_validate(spec), [], shown)
    requests = bucket.requests.requests
    assert bucket.requests.target_offsets.tolist() == [0, 2, 3, 4]
    expected = request_ids_of(requests["user_id"].to_numpy(), requests["request_time"].to_numpy())
    assert requests["request_id"].to_list() == expected.tolist()


def test_requests_are_ordered_by_user_time_and_id() -> None:
    shown = [
        {"user": 2, "request": 1},
        {"user": 1, "request": 9},
        {"user": 1, "request": 8},
        {"user": 1, "request": 10, "time": 4},
    ]
    requests = kernel(spec_of(), [], shown).requests.requests
    assert requests["request_id"].to_list() == [10, 8, 9, 1]


def test_a_history_ends_before_the_first_event_with_the_requests_own_id() -> None:
    """Event 11 carries request 1's id and an early clock: request 1 sees nothing from there on, request 2 all."""
    spec = spec_of(history={"request_id": "request"})
    plays: list[Row] = [
        {"time": 1, "request": None},
        {"time": 2, "item": 11, "request": 1},
        {"time": 3, "item": 12, "request": 7},
    ]
    assert history_ends(spec, plays, [{"request": 1, "time": 9}, {"request": 2, "time": 9}]) == {1: 1, 2: 3}


def test_another_users_event_with_the_same_request_id_hides_nothing() -> None:
    spec = spec_of(history={"request_id": "request"})
    plays = [{"time": 1, "request": 5}, {"time": 1, "user": 2, "request": 1}]
    assert history_ends(spec, plays, [{"request": 1, "time": 9}]) == {1: 1}


def test_distant_users_and_times_stay_separate() -> None:
    plays = [{"user": user, "time": time} for user in (-(2**63), 0, 2**63 - 1) for time in (0, 1)]
    shown = [
        {"user": user, "time": time, "request": number}
        for number, (user, time) in enumerate([(-(2**63), 1), (0, 2), (2**63 - 1, 0), (7, 9)])
    ]
    assert history_ends(spec_of(), plays, shown) == {0: 1, 1: 2, 2: 0, 3: 0}


def test_an_empty_bucket_is_built() -> None:
    bucket = kernel(spec_of(), [], [])
    assert (bucket.history_end.tolist(), bucket.requests.target_offsets.tolist()) == ([], [0])


@pytest.mark.parametrize("selected", ["history", "requests"])
def test_each_role_of_one_log_takes_the_rows_that_it_selects(selected: str) -> None:
    both = {"source": "log", "user_id": "user", "item_id": "item"}
    time = {"column": "time", "unit": "s"}
    where = {selected: {"where": "item < 12"}}
    spec = BuildSpec.model_validate(
        {
            "sources": {"log": {"path": "log.parquet"}},
            "history": {**both, "event_time": time, **where.get("history", {})},
            "requests": {**both, "request_time": time, **where.get("requests", {})},
        }
    )
    raw = pl.DataFrame({"user": 1, "item": [10, 11, 12], "time": [T, T + 1, T + 2]})
    bucket = build_bucket(spec, {"log": canonicalize(raw, spec, "log").rows})
    counts = bucket.timelines.events.height, bucket.requests.requests.height
    assert counts == ((2, 3) if selected == "history" else (3, 2))
    assert bucket.history_end.tolist() == ([0, 1, 2] if selected == "history" else [0, 1])
