import numpy as np
import pyarrow as pa
import pytest
from arrow_values import values_of

from longbatch.pipelines.expansion import request_level, sample_level, sample_schema, slice_histories
from longbatch.schemas.errors import SpecError
from longbatch.schemas.format.shard_reader import Block
from longbatch.schemas.spec.build_spec import BuildSpec, parse_spec
from longbatch.schemas.tables import requests_schema, timelines_schema

SPEC = """
history_length = 3
[sources.log]
path = "log.parquet"
[history]
source = "log"
user_id = "user"
item_id = "item"
event_time = { column = "time", unit = "s" }
features = { word = "string", flag = "bool" }
[requests]
source = "log"
user_id = "user"
item_id = "item"
request_time = { column = "time", unit = "s" }
request_id = "request"
features = { tab = "int8" }
labels = { click = "int8" }
"""


def event(item: int) -> dict[str, object]:
    return {"item_id": item, "event_time": item, "word": None if item % 3 == 0 else f"w{item}", "flag": item % 2 == 0}


def a_block(spec: BuildSpec) -> Block:
    """Users 1 and 2; three requests with 2, 0 and 1 targets, of which the first two ask user 1."""
    timelines = [
        {"user_id": 1, "segment": 0, "events": [event(item) for item in (1, 2, 3, 4)]},
        {"user_id": 2, "segment": 0, "events": [event(5)]},
    ]
    requests = [
        (10, 1, 0, 2, [{"item_id": 7, "click": 0}, {"item_id": 8, "click": 1}]),
        (11, 1, 0, 4, []),
        (20, 2, 1, 0, [{"item_id": 9, "click": 1}]),
    ]
    names = ("request_id", "user_id", "timeline_row", "history_end", "targets")
    rows = [{**dict(zip(names, row, strict=True)), "segment": 0, "request_time": 9, "tab": 1} for row in requests]
    return Block(
        pa.RecordBatch.from_pylist(timelines, schema=timelines_schema(spec)),
        pa.RecordBatch.from_pylist(rows, schema=requests_schema(spec)),
    )


def test_the_sample_level_has_a_row_per_target_in_the_given_order() -> None:
    spec = parse_spec(SPEC)
    slices = slice_histories(a_block(spec), 1)
    table = sample_level(slices, np.array([2, 0, 0]), np.array([2, 1, 0]))
    table.validate(full=True)
    assert table.schema.equals(sample_schema(spec))
    rows = [(r["request_id"], r["target_item_id"], r["history_item_id"], r["history_word"]) for r in table.to_pylist()]
    assert rows == [(20, 9, [], []), (10, 8, [2], ["w2"]), (10, 7, [2], ["w2"])]


def test_the_request_level_has_a_row_per_request_with_nested_targets() -> None:
    slices = slice_histories(a_block(parse_spec(SPEC)), 3)
    table = request_level(slices, np.array([1, 2, 0]))
    table.validate(full=True)
    assert table.column_names == [
        "request_id",
        "user_id",
        "request_time",
        "tab",
        "history_item_id",
        "history_event_time",
        "history_word",
        "history_flag",
        "targets",
    ]
    rows = [(r["request_id"], r["history_word"], r["history_flag"], len(r["targets"])) for r in table.to_pylist()]
    assert rows == [
        (11, ["w2", None, "w4"], [True, False, True], 0),
        (20, [], [], 1),
        (10, ["w1", "w2"], [False, True], 2),
    ]


def test_the_slices_of_a_part_of_a_block_are_those_of_its_rows() -> None:
    whole = a_block(parse_spec(SPEC))
    part = slice_histories(Block(whole.timelines, whole.requests.slice(1)), 3)
    assert part.history_start.tolist() == [1, 4]
    assert part.history_end.tolist() == [4, 4]
    assert part.target_counts.tolist() == [0, 1]
    assert values_of(part.targets) == [{"item_id": 9, "click": 1}]


def test_a_request_feature_named_like_a_column_of_history_or_targets_is_refused() -> None:
    spec = parse_spec(SPEC.replace("tab = ", "history_word = "))
    with pytest.raises(SpecError, match=r"\['history_word'\] have the names of history or target columns"):
        sample_schema(spec)
