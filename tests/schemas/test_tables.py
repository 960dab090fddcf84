"""The tables between the stages: one canonical column per reading of a raw column."""

from __future__ import annotations

import pyarrow as pa

from longbatch.schemas.spec.build_spec import BuildSpec, parse_spec
from longbatch.schemas.tables import (
    canonical_columns,
    canonical_schema,
    event_type,
    history_columns,
    list_columns,
    raw_columns,
    request_columns,
    requests_schema,
    source_roles,
    target_type,
    timelines_schema,
)

ONE_LOG = """
[sources.log]
path = "log.parquet"
explode = { lists = "item" }
[history]
source = "log"
user_id = "user"
item_id = { column = "item", type = "string" }
event_time = { column = "time", unit = "ms" }
arrival_time = { column = "arrival", unit = "ms" }
request_id = { column = "request", type = "string" }
features = { tab = "int8", word = "string" }
[requests]
source = "log"
user_id = "user"
item_id = { column = "item", type = "string" }
request_time = { column = "time", unit = "s" }
request_id = { column = "request", type = "string" }
features = { tab = "int8", place = { column = "tab", type = "int16" } }
target_features = { price = { type = "float32", default = 0.5 } }
labels = { click = { contained_in = "clicked" }, like = "bool" }
"""
TWO_LOGS = """
[sources.plays]
path = "plays.parquet"
[sources.shown]
path = "shown.parquet"
[history]
source = "plays"
user_id = "user"
item_id = "item"
event_time = { column = "time", unit = "ms" }
[requests]
source = "shown"
user_id = "user"
item_id = "item"
request_time = { column = "time", unit = "ms" }
"""
UTC = pa.timestamp("us", tz="UTC")


def one_log() -> BuildSpec:
    return parse_spec(ONE_LOG)


def test_each_reading_of_a_raw_column_is_one_canonical_column() -> None:
    assert canonical_schema(one_log(), "log") == pa.schema(
        {
            "user#id(int64)": pa.int64(),
            "time#time(ms,None,UTC)": pa.int64(),
            "arrival#time(ms,None,UTC)": pa.int64(),
            "item#id(string)": pa.int64(),
            "tab#int8": pa.int8(),
            "word#string": pa.string(),
            "request#request_id(string)": pa.string(),
            "time#time(s,None,UTC)": pa.int64(),
            "tab#int16": pa.int16(),
            "price#float32 default=0.5": pa.float32(),
            "#in(clicked,int8)": pa.int8(),
            "like#bool": pa.bool_(),
            "in_history": pa.bool_(),
            "is_target": pa.bool_(),
        }
    )


def test_roles_point_to_canonical_columns_in_the_order_that_breaks_ties() -> None:
    history = ["user_id", "event_time", "arrival_time", "item_id", "history.tab", "history.word", "request_id"]
    assert list(history_columns(one_log())) == history
    requests = ["user_id", "request_time", "request_id", "item_id", "request.tab", "request.place", "target.price"]
    assert list(request_columns(one_log())) == [*requests, "label.click", "label.like"]


def test_only_the_columns_of_a_sources_own_roles_are_read_from_it() -> None:
    spec = parse_spec(TWO_LOGS)
    assert (source_roles(spec, "plays"), source_roles(spec, "shown")) == (("history",), ("requests",))
    assert list(canonical_columns(spec, "plays")) == ["user#id(int64)", "time#time(ms,None,UTC)", "item#id(int64)"]
    assert "in_history" not in canonical_schema(spec, "plays").names


def test_the_raw_columns_are_named_once_each() -> None:
    raw = ["user", "time", "arrival", "item", "tab", "word", "request", "price", "clicked", "like"]
    assert raw_columns(one_log(), "log") == raw


def test_exploded_and_searched_columns_hold_lists() -> None:
    assert list_columns(one_log(), "log") == {"item", "clicked"}
    assert list_columns(parse_spec(TWO_LOGS), "shown") == set()


def test_the_tables_on_disk_have_the_types_of_the_spec() -> None:
    spec = one_log()
    event = pa.struct({"item_id": pa.int64(), "event_time": UTC, "tab": pa.int8(), "word": pa.string()})
    target = pa.struct({"item_id": pa.int64(), "price": pa.float32(), "click": pa.int8(), "like": pa.bool_()})
    assert event_type(spec) == event
    assert target_type(spec) == target
    assert timelines_schema(spec) == pa.schema(
        {"user_id": pa.int64(), "segment": pa.int32(), "events": pa.list_(event)}
    )
    assert requests_schema(spec) == pa.schema(
        {
            "request_id": pa.string(),
            "user_id": pa.int64(),
            "segment": pa.int32(),
            "timeline_row": pa.int32(),
            "request_time": UTC,
            "history_end": pa.int32(),
            "tab": pa.int8(),
            "place": pa.int16(),
            "targets": pa.list_(target),
        }
    )


def test_a_request_id_that_the_log_lacks_is_an_integer() -> None:
    assert requests_schema(parse_spec(TWO_LOGS)).field("request_id").type == pa.int64()
