"""The Arrow schemas of the stored tables follow from the spec."""

from __future__ import annotations

import pyarrow as pa
from small_specs import ONE_LOG, TWO_LOGS

from longbatch.schemas.spec.build_spec import parse_spec
from longbatch.schemas.tables import event_type, requests_schema, target_type, timelines_schema

UTC = pa.timestamp("us", tz="UTC")


def struct(**fields: pa.DataType) -> pa.StructType:
    return pa.struct(list(fields.items()))


def columns_of(schema: pa.Schema) -> dict[str, pa.DataType]:
    return {field.name: field.type for field in schema}


def test_the_tables_have_the_columns_and_types_of_the_spec() -> None:
    spec = parse_spec(ONE_LOG)
    event = struct(item_id=pa.int64(), event_time=UTC, tab=pa.int8(), word=pa.string())
    target = struct(item_id=pa.int64(), price=pa.float32(), click=pa.int8(), like=pa.bool_())
    assert event_type(spec) == event
    assert target_type(spec) == target
    assert columns_of(timelines_schema(spec)) == {
        "user_id": pa.int64(),
        "segment": pa.int32(),
        "events": pa.list_(event),
    }
    assert columns_of(requests_schema(spec)) == {
        "request_id": pa.string(),
        "user_id": pa.int64(),
        "segment": pa.int32(),
        "timeline_row": pa.int32(),
        "request_time": UTC,
        "history_end": pa.int32(),
        "tab": pa.int8(),
        "page": pa.int16(),
        "targets": pa.list_(target),
    }
    assert requests_schema(spec).names[-1] == "targets"


def test_a_generated_request_id_is_an_integer() -> None:
    assert requests_schema(parse_spec(TWO_LOGS)).field("request_id").type == pa.int64()
