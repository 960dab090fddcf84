"""Where histories end, on hand-made timelines; test_kernel.py tests the same rules on logs."""

from __future__ import annotations

import polars as pl

from longbatch.pipelines.history_ends import Timelines, history_bounds
from longbatch.schemas.spec.build_spec import BuildSpec

BOTH = {"user_id": "user", "item_id": "item"}
SPEC = BuildSpec.model_validate(
    {
        "sources": {"plays": {"path": "plays.parquet"}, "shown": {"path": "shown.parquet"}},
        "history": {"source": "plays", **BOTH, "event_time": {"column": "time", "unit": "s"}, "request_id": "request"},
        "requests": {
            "source": "shown",
            **BOTH,
            "request_time": {"column": "time", "unit": "s"},
            "request_id": "request",
        },
    }
)


def bounds(events: dict[str, list[int]], requests: dict[str, list[int]]) -> tuple[list[int], list[int]]:
    """Return the starts and ends of histories; events without request ids unless they are given."""
    timelines = Timelines.of_events(pl.DataFrame(events, schema_overrides=dict.fromkeys(events, pl.Int64)))
    frame = pl.DataFrame(requests, schema_overrides=dict.fromkeys(requests, pl.Int64))
    start, end = history_bounds(SPEC, timelines, frame)
    return start.tolist(), end.tolist()


def test_the_end_is_the_first_event_that_is_not_visible_before_the_request() -> None:
    events = {"user_id": [7, 7, 9], "visible_time": [10, 20, 15]}
    requests = {"user_id": [7, 7, 9], "request_time": [20, 21, 16]}
    assert bounds(events, requests) == ([0, 0, 2], [1, 2, 3])


def test_a_user_without_events_has_an_empty_history() -> None:
    events = {"user_id": [7, 9], "visible_time": [10, 15]}
    requests = {"user_id": [5, 8, 99], "request_time": [99, 99, 99]}
    start, end = bounds(events, requests)
    assert start == end == [0, 1, 2]


def test_a_bucket_without_events_has_empty_histories() -> None:
    assert bounds({"user_id": [], "visible_time": []}, {"user_id": [7], "request_time": [5]}) == ([0], [0])


def test_the_first_own_event_ends_the_history() -> None:
    events = {"user_id": [7] * 5, "visible_time": [1, 2, 3, 4, 5], "request_id": [1, 8, 1, 8, 1]}
    requests = {"user_id": [7, 7], "request_time": [9, 9], "request_id": [8, 6]}
    assert bounds(events, requests) == ([0, 0], [1, 5])


def test_an_own_event_behind_the_history_does_not_move_its_end() -> None:
    events = {"user_id": [7, 7], "visible_time": [1, 9], "request_id": [1, 8]}
    assert bounds(events, {"user_id": [7], "request_time": [5], "request_id": [8]}) == ([0], [1])
