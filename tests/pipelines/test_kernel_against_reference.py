"""Property tests: on random logs the kernel yields exactly what the naive reference yields.

The logs are small and crowded on purpose (three users, six requests, seven seconds), so that ties, late
arrivals, duplicates, conflicts and whales of a few events are the rule, not the exception.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import groupby
from random import Random
from typing import Any

import polars as pl
import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longbatch.pipelines.memory import Built, build_in_memory
from longbatch.schemas.spec import BuildSpec
from longbatch.validation.reference import Reference, build_reference

T = 1_700_000_000  # seconds
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Row = dict[str, Any]
Frames = dict[str, pl.DataFrame]

every_case = settings(
    max_examples=500,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


# What the kernel built, as plain rows


def plain(value: Any) -> Any:
    """Make values comparable: times as microseconds, NaN equal to itself."""
    if isinstance(value, datetime):
        return (value - EPOCH) // timedelta(microseconds=1)
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return tuple(plain(part) for part in value)
    return value


def built_requests(spec: BuildSpec, blocks: list[tuple[pa.RecordBatch, pa.RecordBatch]]) -> Iterator[Row]:
    """Yield each request of a dataset with its history cut out of its timeline."""
    for timelines, requests in blocks:
        rows = timelines.to_pylist()
        for request in requests.to_pylist():
            timeline = rows[request["timeline_row"]]
            assert (timeline["user_id"], timeline["segment"]) == (request["user_id"], request["segment"])
            end = request["history_end"]
            assert 0 <= end <= len(timeline["events"])
            history = timeline["events"][max(0, end - spec.history_length) : end]
            yield plain(request | {"history": [tuple(event.values()) for event in history]})


def reference_requests(spec: BuildSpec, reference: Reference) -> list[Row]:
    """Return the same for the reference, in the same shape."""
    return [
        plain(
            {
                "request_id": request.request_id,
                "user_id": request.user_id,
                "request_time": request.request_time,
                **request.features,
                "targets": request.targets,
                "history": request.history,
            }
        )
        for request in reference.requests
    ]


def check(spec: BuildSpec, frames: Frames, buckets: int) -> None:
    """Hold everything the kernel says against everything the reference says."""
    reference = build_reference(spec, frames)
    built = build_in_memory(spec, frames, buckets=buckets)
    blocks = list(built.blocks)
    requests = list(built_requests(spec, blocks))
    order = [(row["user_id"], row["segment"], row["request_time"], row["request_id"]) for row in requests]
    for user, places in groupby(order, key=lambda place: place[0]):
        listed = list(places)
        assert listed == sorted(listed), f"the requests of user {user} are out of order"
    found = sorted(requests, key=lambda row: (row["user_id"], row["request_time"], row["request_id"]))
    within = ("segment", "timeline_row", "history_end")
    assert [{k: v for k, v in row.items() if k not in within} for row in found] == reference_requests(spec, reference)
    check_counts(spec, built, reference)
    check_segments(spec, blocks)


def check_counts(spec: BuildSpec, built: Built, reference: Reference) -> None:
    assert built.ledgers == reference.ledgers
    events = built.events
    assert events.stored + events.beyond_history == reference.events.stored_or_beyond
    assert events.after_last_request == reference.events.after_last_request
    reached = {
        (request.user_id, place)
        for request in reference.requests
        for place in range(request.history_start, request.history_end)
    }
    assert len(reached) <= events.stored
    assert built.targets == reference.targets
    assert events.requests == len(reference.requests)
    assert events.history_events == sum(len(request.history) for request in reference.requests)
    assert events.users == len({request.user_id for request in reference.requests})


def check_segments(spec: BuildSpec, blocks: list[tuple[pa.RecordBatch, pa.RecordBatch]]) -> None:
    longest = 4 * max(spec.block_events, spec.history_length)
    segments = [(row["user_id"], row["segment"]) for timelines, _ in blocks for row in timelines.to_pylist()]
    lengths = [len(row["events"]) for timelines, _ in blocks for row in timelines.to_pylist()]
    assert all(length <= longest for length in lengths)
    assert max(Counter(segments).values(), default=1) == 1
    assert len({user for user, segment in segments if segment == 0}) == len({user for user, _ in segments})


# Random logs


small_specs = st.fixed_dictionaries(
    {
        "history_length": st.integers(1, 5),
        "block_events": st.integers(1, 6),
        "block_targets": st.integers(1, 6),
    }
)
buckets = st.sampled_from([1, 1, 1, 3])
COLUMNS: dict[str, tuple[Any, list[Any]]] = {
    "user": (pl.Int64, [-1, 0, 1]),
    "request": (pl.Int64, [1, 2, 3, 4, 5, 6]),
    "origin": (pl.Int64, [1, 2, 3, 4, 5, 6]),
    "item": (pl.Int64, [-(2**40), 1, 2, 3]),
    "time": (pl.Int64, [T + second for second in range(7)]),
    "arrival": (pl.Int64, [T + second for second in range(7)]),
    "asked": (pl.Int64, [T + second for second in range(7)]),
    "click": (pl.Int8, [0, 1]),
    "tab": (pl.Int32, [0, 1, 2]),
    "score": (pl.Float64, [0.0, -0.0, 1.5, math.nan, math.inf]),
    "word": (pl.String, ["", "a", "é", "😀", "ﬀ"]),
    "flag": (pl.Boolean, [False, True]),
}
IDS = ("user", "request", "origin", "item")


@st.composite
def frames(draw: st.DrawFn, names: list[str], text_ids: set[str]) -> pl.DataFrame:
    """Draw up to 30 rows, nulls in any column, some rows (almost) twice, some ids as text.

    The values come from a generator that Hypothesis seeds, many times faster than one draw for each; failing
    examples still shrink by rows and by spec.
    """
    size, seed = draw(st.integers(0, 30)), draw(st.integers(0, 2**32))
    random = Random(seed)
    nulls = draw(st.sampled_from([(), (), *((name,) for name in names), tuple(names)]))
    rows = [[a_value(random, name, name in nulls) for name in names] for _ in range(size)]
    if rows and draw(st.booleans()):
        rows += random.choices(rows, k=random.randint(1, 3))
        rows += [almost(random, names, row) for row in random.choices(rows, k=random.randint(1, 3))]
    frame = pl.DataFrame(rows, schema={name: COLUMNS[name][0] for name in names}, orient="row")
    if draw(st.integers(0, 3)):  # most logs give each user request ids of its own; in the others most ids conflict
        mine = 10 * pl.col("user").fill_null(0)
        frame = frame.with_columns(pl.col(name) + mine for name in names if name in ("request", "origin"))
    as_text = (pl.lit("id ").add(pl.col(name).cast(pl.String)).alias(name) for name in names if name in text_ids)
    return frame.with_columns(as_text)


def almost(random: Random, names: list[str], row: list[Any]) -> list[Any]:
    """Return the row with one other value."""
    place = random.randrange(len(names))
    return [a_value(random, name, False) if i == place else row[i] for i, name in enumerate(names)]


def a_value(random: Random, name: str, may_be_null: bool) -> Any:
    return None if may_be_null and random.random() < 0.1 else random.choice(COLUMNS[name][1])


FEATURES = {"tab": "int8", "score": "float32", "word": "string", "flag": "bool"}


def features(draw: st.DrawFn, prefix: str = "") -> dict[str, Any]:
    """Choose some features, with and without defaults, as a section of a spec."""
    chosen = draw(st.lists(st.sampled_from(sorted(FEATURES)), unique=True, max_size=2))
    defaults = {"tab": 1, "score": 1.5, "word": "a", "flag": True}
    return {
        prefix + name: {"column": name, "type": FEATURES[name]}
        | ({"default": defaults[name]} if draw(st.booleans()) else {})
        for name in chosen
    }


def ids(names: tuple[str, ...], text_ids: set[str]) -> dict[str, Any]:
    return {name: {"column": name, "type": "string" if name in text_ids else "int64"} for name in names}


wheres = st.sampled_from([None, None, "click = 1", "tab > 0 or word = 'a'", "flag", "true", "item is not null"])


@st.composite
def one_log(draw: st.DrawFn) -> tuple[BuildSpec, Frames]:
    """Draw a log that is both history and requests, and a spec for it."""
    text_ids = set(draw(st.lists(st.sampled_from(["user", "request", "item"]), unique=True)))
    text_ids |= {"origin"} if "request" in text_ids else set()
    columns = ids(IDS, text_ids)
    named = draw(st.sampled_from(["no", "requests", "both", "both", "other"]))
    own = {"both": "request", "other": "origin"}.get(named)
    asked = draw(st.sampled_from(["time", "time", "asked"]))
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
            "request_time": {"column": asked, "unit": "s"},
            "request_id": None if named == "no" else columns["request"],
            "features": features(draw),
            "target_features": features(draw, "target_"),
            "labels": {"click": label} if draw(st.booleans()) else {},
        },
    }
    return BuildSpec.model_validate(spec), {"log": draw(frames(list(COLUMNS), text_ids))}


@st.composite
def two_logs(draw: st.DrawFn) -> tuple[BuildSpec, Frames]:
    """Draw a history log and a request log whose rows may be lists of items shown and clicked."""
    text_ids = set(draw(st.lists(st.sampled_from(["user", "request"]), unique=True)))
    columns = ids(IDS, text_ids)
    named = draw(st.sampled_from(["no", "requests", "both"]))
    explode = draw(st.booleans())
    clicked = {"contained_in": "clicked"} | ({"default": 0} if draw(st.booleans()) else {})
    event_names = ["user", "item", "time", "arrival", "request", *FEATURES]
    request_names = ["user", "item", "time", "request", "click", *FEATURES]
    impressions = draw(frames(request_names, text_ids))
    position: dict[str, Any] = {}
    if explode:
        impressions = listed(draw, impressions, may_be_null="default" in clicked)
        position = {"target_place": {"column": "place", "type": "int16"}}
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
    how = {"lists": ["item"], "position": "place"} if explode else None
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
        "events": draw(frames(event_names, text_ids)),
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


@every_case
@given(one_log(), buckets)
def test_one_log_for_history_and_requests(case: tuple[BuildSpec, Frames], buckets: int) -> None:
    check(*case, buckets)


@every_case
@given(two_logs(), buckets)
def test_a_log_of_events_and_a_log_of_impressions(case: tuple[BuildSpec, Frames], buckets: int) -> None:
    check(*case, buckets)


@st.composite
def text_log(draw: st.DrawFn) -> tuple[BuildSpec, Frames]:
    """Draw a log as a CSV file gives it, all text, with values that cannot be read here and there."""
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
    kinds = {
        "user": ["1", "2"],
        "item": ["1", "2", "3"],
        "time": [str(T + second) for second in range(7)],
        "request": ["a", "b", "", "é"],
        "tab": ["0", "1", "2"],
        "score": ["0", "-0.0", "1.5", ".5", "1e9", "inf", "NaN"],
        "flag": ["true", "False", "1", "0"],
    }
    spoilt = draw(st.sampled_from([*kinds, None]))
    random = Random(draw(st.integers(0, 2**32)))
    choices = {name: values + ([*junk, None] if name == spoilt else []) for name, values in kinds.items()}
    rows = [[random.choice(values) for values in choices.values()] for _ in range(draw(st.integers(0, 20)))]
    frame = pl.DataFrame(rows, schema=dict.fromkeys(kinds, pl.String), orient="row")
    types = {"tab": draw(st.sampled_from(["int8", "int64", "id"])), "flag": "bool"}
    types |= {"score": draw(st.sampled_from(["float32", "float64"]))}
    time = {"column": "time", "unit": "s"}
    wheres = st.sampled_from([None, "tab > 0", "score > 1", "flag", f"time > {T + 1}", "request != 'a'"])
    numbers = wheres.filter(lambda where: types["tab"] != "id" or where != "tab > 0")
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
        "requests": {**both, "request_time": time, "features": types, "where": draw(numbers)},
    }
    return BuildSpec.model_validate(spec), {"log": frame}


@every_case
@given(text_log())
def test_a_log_of_text(case: tuple[BuildSpec, Frames]) -> None:
    check(*case, 1)


@st.composite
def whales(draw: st.DrawFn) -> tuple[BuildSpec, Frames]:
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
@given(whales())
def test_a_timeline_in_segments(case: tuple[BuildSpec, Frames]) -> None:
    check(*case, 1)


# Cases that the two once disagreed on

LITERAL = {
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


def test_an_event_with_another_requests_id_is_hidden_from_that_request() -> None:
    """The first row is a target of request 1, but its event says that it came out of request 2."""
    log = pl.DataFrame({"user": [1, 1], "request": [1, 2], "origin": [2, 3], "item": [5, 6], "time": [T, T + 5]})
    spec = literal(history={"request_id": "origin"})
    assert [row["history"] for row in built_requests(spec, build_in_memory(spec, {"log": log}).blocks)] == [
        (),
        (),
    ]
    check(spec, {"log": log}, 1)


def test_events_of_segments_that_go_back_in_the_timeline_are_counted_as_stored() -> None:
    """Request 3 (T+6) reaches event 1; request 4 (T+6), kept from its own event 0, reaches nothing before it."""
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
    assert build_in_memory(spec, {"log": log}).ledgers["log"].reasons == {"unparsable:price": 1}
    check(spec, {"log": log}, 1)


def test_without_a_list_of_clicked_items_there_is_no_label() -> None:
    """Nobody knows whether the item of the second row was clicked: that is no negative."""
    log = pl.DataFrame(
        {"user": [1, 1], "request": [1, 2], "item": [5, 6], "time": [T, T], "clicked": [[5], None]},
        schema_overrides={"clicked": pl.List(pl.Int64)},
    )
    spec = literal(requests={"labels": {"click": {"contained_in": "clicked"}}})
    assert build_in_memory(spec, {"log": log}).ledgers["log"].reasons == {"missing_label:click": 1}
    check(spec, {"log": log}, 1)


def test_a_decimal_time_keeps_its_fraction() -> None:
    log = pl.DataFrame({"user": [1], "request": [1], "item": [5], "time": [Decimal(T) + Decimal("0.25")]})
    spec = literal()
    (request,) = built_requests(spec, build_in_memory(spec, {"log": log}).blocks)
    assert request["request_time"] == T * 1_000_000 + 250_000
    check(spec, {"log": log}, 1)


def test_rows_that_differ_only_in_the_roles_that_select_them_are_no_duplicates() -> None:
    """`shown` is mapped to nothing, but makes the second row alone a target; both rows are the same event."""
    log = pl.DataFrame({"user": [1, 1], "request": [1, 1], "item": [5, 5], "time": [T, T], "shown": [0, 1]})
    spec = literal(requests={"where": "shown = 1"})
    built = build_in_memory(spec, {"log": log})
    assert (built.ledgers["log"].duplicate, built.counts.events, built.targets) == (0, 2, 1)
    check(spec, {"log": log}, 1)
