"""Property tests: on random logs the kernel yields exactly what the naive reference yields.

Of labels from later events, sessions and policies see test_policies_against_reference.py.
"""

from __future__ import annotations

from decimal import Decimal
from random import Random
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_logs import (
    COLUMNS,
    FEATURES,
    IDS,
    Frames,
    Row,
    T,
    a_value,
    buckets,
    built_requests,
    check,
    every_case,
    features,
    frames,
    ids,
    small_specs,
    wheres,
)

from longbatch.pipelines.in_memory import build_in_memory
from longbatch.schemas.spec.build_spec import BuildSpec


@st.composite
def one_log(draw: st.DrawFn) -> tuple[BuildSpec, Frames]:
    """Draw a log that is both history and requests, and a spec for it."""
    string_ids = set(draw(st.lists(st.sampled_from(["user", "request", "item"]), unique=True)))
    string_ids |= {"origin"} if "request" in string_ids else set()
    columns = ids(IDS, string_ids)
    named = draw(st.sampled_from(["no", "requests", "both", "both", "other"]))
    own = {"both": "request", "other": "origin"}.get(named)
    time_column = draw(st.sampled_from(["time", "time", "asked"]))
    label = {"column": "click"} | ({"default": 0} if draw(st.booleans()) else {})
    spec = {
        **draw(small_specs),
        "sources": {"log": {"path": "log.parquet"}},
        "history": {
            "source": "log",
            "where": draw(wheres),
            "user_id": columns["user"],
            "item_id": columns["item"],
            "event_time": {"column": "time", "unit": "s"},
            "arrival_time": draw(st.sampled_from([None, {"column": "arrival", "unit": "s"}])),
            "delay": draw(st.sampled_from(["0s", "0s", "1s", "1500ms"])),
            "request_id": columns[own] if own else None,
            "features": features(draw),
        },
        "requests": {
            "source": "log",
            "where": draw(wheres),
            "user_id": columns["user"],
            "item_id": columns["item"],
            "request_time": {"column": time_column, "unit": "s"},
            "request_id": None if named == "no" else columns["request"],
            "features": features(draw),
            "target_features": features(draw, "target_"),
            "labels": {"click": label} if draw(st.booleans()) else {},
        },
    }
    return BuildSpec.model_validate(spec), {"log": draw(frames(list(COLUMNS), string_ids))}


@st.composite
def two_logs(draw: st.DrawFn) -> tuple[BuildSpec, Frames]:
    """Draw a history log and a request log whose rows may be lists of items shown and clicked."""
    string_ids = set(draw(st.lists(st.sampled_from(["user", "request"]), unique=True)))
    columns = ids(IDS, string_ids)
    named = draw(st.sampled_from(["no", "requests", "both"]))
    explode = draw(st.booleans())
    clicked = {"contained_in": "clicked"} | ({"default": 0} if draw(st.booleans()) else {})
    event_names = ["user", "item", "time", "arrival", "request", *FEATURES]
    request_names = ["user", "item", "time", "request", "click", *FEATURES]
    impressions = draw(frames(request_names, string_ids))
    position: dict[str, Any] = {}
    if explode:
        impressions = listed(draw, impressions, may_be_null="default" in clicked)
        position = {"target_rank": {"column": "rank", "type": "int16"}}
    request = {
        "source": "impressions",
        "where": draw(wheres.filter(lambda where: where is None or "click" not in where)),
        "user_id": columns["user"],
        "item_id": columns["item"],
        "request_time": {"column": "time", "unit": "s"},
        "request_id": None if named == "no" else columns["request"],
        "features": features(draw),
        "target_features": features(draw, "target_") | position,
        "labels": {"click": clicked if explode else {"column": "click"}},
    }
    how = {"lists": ["item"], "position": "rank"} if explode else None
    spec = {
        **draw(small_specs),
        "sources": {
            "events": {"path": "events.parquet"},
            "impressions": {"path": "impressions.parquet", "explode": how},
        },
        "history": {
            "source": "events",
            "where": draw(st.sampled_from([None, "tab > 0", "score > 1 or flag"])),
            "user_id": columns["user"],
            "item_id": columns["item"],
            "event_time": {"column": "time", "unit": "s"},
            "arrival_time": draw(st.sampled_from([None, {"column": "arrival", "unit": "s"}])),
            "delay": draw(st.sampled_from(["0s", "1s"])),
            "request_id": columns["request"] if named == "both" else None,
            "features": features(draw),
        },
        "requests": request,
    }
    return BuildSpec.model_validate(spec), {
        "events": draw(frames(event_names, string_ids)),
        "impressions": impressions,
    }


def listed(draw: st.DrawFn, impressions: pl.DataFrame, may_be_null: bool) -> pl.DataFrame:
    """Replace the item of each row by lists of items seen and clicked."""
    random = Random(draw(st.integers(0, 2**32)))

    def items() -> list[Any]:
        return [a_value(random, "item", True) for _ in range(random.randint(0, 3))]

    seen = [items() if random.random() < 0.9 else None for _ in range(impressions.height)]
    clicked = [None if may_be_null and random.random() < 0.1 else items() for _ in range(impressions.height)]
    lists = pl.List(pl.Int64)
    return impressions.with_columns(item=pl.Series(seen, dtype=lists), clicked=pl.Series(clicked, dtype=lists))


@pytest.mark.slow
@every_case
@given(one_log(), buckets)
def test_one_log_for_history_and_requests(case: tuple[BuildSpec, Frames], buckets: int) -> None:
    check(*case, buckets)


@pytest.mark.slow
@every_case
@given(two_logs(), buckets)
def test_a_log_of_events_and_a_log_of_impressions(case: tuple[BuildSpec, Frames], buckets: int) -> None:
    check(*case, buckets)


@st.composite
def text_log(draw: st.DrawFn) -> tuple[BuildSpec, Frames]:
    """Draw a log as a CSV file gives it, all strings, with values that cannot be read here and there."""
    junk = [
        "",
        " ",
        "1.0",
        " 1",
        "+1",
        "1.5",
        ".0",
        "1_0",
        "x",
        "300",
        "-129",
        "1e2",
        "nan",
        "NULL",
        "TRUE",
        "99999999999999999999",
    ]
    strings: dict[str, list[str | None]] = {
        "user": ["1", "2"],
        "item": ["1", "2", "3"],
        "time": [str(T + second) for second in range(7)],
        "request": ["a", "b", "", "é"],
        "tab": ["0", "1", "2"],
        "score": ["0", "-0.0", "1.5", ".5", "1e9", "inf", "NaN"],
        "flag": ["true", "False", "1", "0"],
    }
    column_with_junk = draw(st.sampled_from([*strings, None]))
    random = Random(draw(st.integers(0, 2**32)))
    choices = {name: values + ([*junk, None] if name == column_with_junk else []) for name, values in strings.items()}
    rows = [[random.choice(values) for values in choices.values()] for _ in range(draw(st.integers(0, 20)))]
    frame = pl.DataFrame(rows, schema=dict.fromkeys(strings, pl.String), orient="row")
    types = {"tab": draw(st.sampled_from(["int8", "int64", "id"])), "flag": "bool"}
    types |= {"score": draw(st.sampled_from(["float32", "float64"]))}
    time = {"column": "time", "unit": "s"}
    wheres = st.sampled_from([None, "tab > 0", "score > 1", "flag", f"time > {T + 1}", "request != 'a'"])
    numbers = wheres.filter(lambda where: types["tab"] != "id" or where != "tab > 0")
    high = {"column": "score", "at_least": 1.5} | ({"default": 1} if draw(st.booleans()) else {})
    labels = {"high": high} if draw(st.booleans()) else {}
    both = {
        "source": "log",
        "user_id": "user",
        "item_id": "item",
        "request_id": {"column": "request", "type": "string"},
    }
    spec = {
        **draw(small_specs),
        "sources": {"log": {"path": "log.csv"}},
        "history": {**both, "event_time": time, "features": types, "where": draw(numbers)},
        "requests": {**both, "request_time": time, "features": types, "where": draw(numbers), "labels": labels},
    }
    return BuildSpec.model_validate(spec), {"log": frame}


@pytest.mark.slow
@every_case
@given(text_log())
def test_a_log_of_strings(case: tuple[BuildSpec, Frames]) -> None:
    check(*case, 1)


@st.composite
def heavy_users(draw: st.DrawFn) -> tuple[BuildSpec, Frames]:
    """Draw a user with more events than a segment holds, and requests anywhere among them."""
    random = Random(draw(st.integers(0, 2**32)))
    size = draw(st.integers(1, 60))
    rows = [(random.randint(0, 2), random.choice([0, 0, 1])) for _ in range(size)]
    frame = pl.DataFrame(rows, schema=["gap", "click"], orient="row").select(
        user=pl.lit(7), item=pl.int_range(pl.len()) % 5, time=T + pl.col("gap").cum_sum(), click="click"
    )
    named = {"user_id": "user", "item_id": "item", "source": "log"}
    spec = {
        "history_length": draw(st.integers(1, 3)),
        "block_events": draw(st.integers(1, 3)),
        "block_targets": draw(st.integers(1, 8)),
        "sources": {"log": {"path": "log.parquet"}},
        "history": {**named, "event_time": {"column": "time", "unit": "s"}},
        "requests": {**named, "request_time": {"column": "time", "unit": "s"}, "where": "click = 1"},
    }
    return BuildSpec.model_validate(spec), {"log": frame}


@every_case
@given(heavy_users())
def test_a_timeline_in_segments(case: tuple[BuildSpec, Frames]) -> None:
    check(*case, 1)


# Cases that the two once disagreed on

LITERAL: dict[str, dict[str, Any]] = {
    "sources": {"log": {"path": "log.parquet"}},
    "history": {
        "source": "log",
        "user_id": "user",
        "item_id": "item",
        "event_time": {"column": "time", "unit": "s"},
        "request_id": "request",
    },
    "requests": {
        "source": "log",
        "user_id": "user",
        "item_id": "item",
        "request_time": {"column": "time", "unit": "s"},
        "request_id": "request",
    },
}


def literal(history: Row | None = None, requests: Row | None = None, **spec: Any) -> BuildSpec:
    """Return the literal spec with some keys of its sections replaced."""
    sections = {
        "history": LITERAL["history"] | (history or {}),
        "requests": LITERAL["requests"] | (requests or {}),
    }
    return BuildSpec.model_validate(LITERAL | sections | spec)


def test_an_event_with_a_requests_id_is_hidden_from_that_request() -> None:
    """The first row is a target of request 1, but its event says that it came out of request 2."""
    log = pl.DataFrame({"user": [1, 1], "request": [1, 2], "origin": [2, 3], "item": [5, 6], "time": [T, T + 5]})
    spec = literal(history={"request_id": "origin"})
    assert [row["history"] for row in built_requests(spec, build_in_memory(spec, {"log": log}).blocks)] == [
        (),
        (),
    ]
    check(spec, {"log": log}, 1)


def test_events_of_segments_that_go_back_in_the_timeline_are_counted_as_stored() -> None:
    """Request 3 (T+6) includes event 1; request 4 (T+6) ends before its own event 0, which is the first."""
    rows = [(1, 4, 0, T + 1, T, T + 6), (1, 1, 1, T, T, T + 5), (1, 3, 2, T + 5, T, T + 6)]
    log = pl.DataFrame(rows, schema=["user", "request", "item", "time", "arrival", "asked"], orient="row")
    spec = literal(
        history={"arrival_time": {"column": "arrival", "unit": "s"}},
        requests={"request_time": {"column": "asked", "unit": "s"}},
        history_length=1,
        block_events=1,
        block_targets=1,
    )
    assert build_in_memory(spec, {"log": log}).counts.stored == 2
    check(spec, {"log": log}, 1)


def test_a_number_that_float32_cannot_hold_is_unparsable() -> None:
    log = pl.DataFrame({"user": [1, 1], "request": [1, 2], "item": [5, 6], "time": [T, T], "price": [1e39, 1.0]})
    spec = literal(requests={"features": {"price": "float32"}})
    assert build_in_memory(spec, {"log": log}).row_accounting["log"].reasons == {"unparsable:price": 1}
    check(spec, {"log": log}, 1)


def test_without_a_list_of_clicked_items_there_is_no_label() -> None:
    """Nobody knows whether the item of the second row was clicked: that is no negative."""
    log = pl.DataFrame(
        {"user": [1, 1], "request": [1, 2], "item": [5, 6], "time": [T, T], "clicked": [[5], None]},
        schema_overrides={"clicked": pl.List(pl.Int64)},
    )
    spec = literal(requests={"labels": {"click": {"contained_in": "clicked"}}})
    assert build_in_memory(spec, {"log": log}).row_accounting["log"].reasons == {"missing_label:click": 1}
    check(spec, {"log": log}, 1)


def test_a_decimal_time_keeps_its_fraction() -> None:
    log = pl.DataFrame({"user": [1], "request": [1], "item": [5], "time": [Decimal(T) + Decimal("0.25")]})
    spec = literal()
    (request,) = built_requests(spec, build_in_memory(spec, {"log": log}).blocks)
    assert request["request_time"] == T * 1_000_000 + 250_000
    check(spec, {"log": log}, 1)


def test_rows_that_differ_only_in_their_roles_are_not_duplicates() -> None:
    """`shown` is mapped to nothing, but makes the second row alone a target; both rows are the same event."""
    log = pl.DataFrame({"user": [1, 1], "request": [1, 1], "item": [5, 5], "time": [T, T], "shown": [0, 1]})
    spec = literal(requests={"where": "shown = 1"})
    built = build_in_memory(spec, {"log": log})
    assert (built.row_accounting["log"].duplicate, built.counts.events, built.counts.targets) == (0, 2, 1)
    check(spec, {"log": log}, 1)
