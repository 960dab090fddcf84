"""What follows from a spec for one source: roles, canonical columns, raw columns, and that it is compiled once."""

from __future__ import annotations

import gc
import pickle

import pyarrow as pa
from small_specs import ONE_LOG, TWO_LOGS

from longbatch.schemas import source_schema as module
from longbatch.schemas.source_schema import role_schema, source_schema
from longbatch.schemas.spec.build_spec import BuildSpec, parse_spec

STRING_LIST = """
[sources.log]
path = "log.csv"
explode = { string = { column = "shown", fields = ["item", "clicked"], field_separator = "-" }, position = "rank" }
[history]
source = "log"
where = "clicked = '1'"
user_id = "user"
item_id = "item"
event_time = { column = "time", unit = "ms" }
[requests]
source = "log"
user_id = "user"
item_id = "item"
request_time = { column = "time", unit = "ms" }
target_features = { rank = "int8" }
labels = { bought = { aggregate = "any", within = "1h", where = "price > 0" } }
[actions]
source = "log"
user_id = "user"
item_id = "item"
event_time = { column = "time", unit = "ms" }
"""


def one_log() -> BuildSpec:
    return parse_spec(ONE_LOG)


def test_each_reading_of_a_raw_column_is_one_canonical_column() -> None:
    columns: dict[str, pa.DataType] = {
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
    assert source_schema(one_log(), "log").arrow_schema == pa.schema(columns)


def test_roles_point_to_canonical_columns_in_the_order_that_breaks_ties() -> None:
    schema = source_schema(one_log(), "log")
    history = ["user_id", "event_time", "arrival_time", "item_id", "history.tab", "history.word", "request_id"]
    assert list(schema.role_columns["history"]) == list(schema.names["history"]) == history
    requests = ["user_id", "request_time", "request_id", "item_id", "request.tab", "request.page", "target.price"]
    assert list(schema.role_columns["requests"]) == [*requests, "label.click", "label.like"]
    assert schema.names["history"]["event_time"] == "time#time(ms,None,UTC)"
    assert schema.user_id == "user#id(int64)"
    assert schema.user_column.column == "user"


def test_only_the_columns_of_a_sources_own_roles_are_read_from_it() -> None:
    spec = parse_spec(TWO_LOGS)
    plays = source_schema(spec, "plays")
    assert (plays.roles, source_schema(spec, "shown").roles) == (("history",), ("requests",))
    assert list(plays.columns) == ["user#id(int64)", "time#time(ms,None,UTC)", "item#id(int64)"]
    assert "in_history" not in plays.arrow_schema.names


def test_the_raw_columns_are_named_once_each() -> None:
    raw = ("user", "time", "arrival", "item", "tab", "word", "request", "price", "clicked", "like")
    assert source_schema(one_log(), "log").raw_columns == raw


def test_exploded_and_searched_columns_hold_lists() -> None:
    schema = source_schema(one_log(), "log")
    assert schema.list_columns == {"item", "clicked"}
    assert schema.exploded_from == ("item",)
    assert schema.exploded_to == frozenset()
    assert source_schema(parse_spec(TWO_LOGS), "shown").list_columns == frozenset()


def test_a_string_list_is_read_from_its_column_and_gives_its_fields_and_the_position() -> None:
    schema = source_schema(parse_spec(STRING_LIST), "log")
    assert schema.list_columns == frozenset()
    assert schema.exploded_from == ("shown",)
    assert schema.exploded_to == {"item", "clicked", "rank"}


def test_filters_are_named_by_their_key_in_the_spec() -> None:
    assert source_schema(parse_spec(STRING_LIST), "log").filters == {
        "history": {"history": "clicked = '1'"},
        "requests": {"requests": None},
        "actions": {"actions": None, "requests.labels.bought": "price > 0"},
    }


def test_a_schema_is_compiled_once_per_spec_and_forgotten_with_it() -> None:
    spec, equal = parse_spec(TWO_LOGS), parse_spec(TWO_LOGS)
    assert source_schema(spec, "plays") is source_schema(spec, "plays") is role_schema(spec, "history")
    assert source_schema(equal, "plays") is not source_schema(spec, "plays")
    assert source_schema(equal, "plays") == source_schema(spec, "plays")
    key = id(spec)
    assert key in module._COMPILED
    del spec
    gc.collect()
    assert key not in module._COMPILED


def test_a_schema_can_be_pickled() -> None:
    schema = source_schema(parse_spec(STRING_LIST), "log")
    assert pickle.loads(pickle.dumps(schema)) == schema
