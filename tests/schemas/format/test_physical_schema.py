"""The compact encoding is lossless for any spec and rows, and invalid stored columns are rejected."""

from __future__ import annotations

from typing import cast

import pyarrow as pa
import pytest
from arrow_values import flat_values, lists_of
from hypothesis import given
from hypothesis import strategies as st
from shard_rows import BlockRows, Row, as_batches

from longbatch.schemas.errors import DatasetError
from longbatch.schemas.format.byte_planes import to_planes
from longbatch.schemas.format.decoder import Decoder
from longbatch.schemas.format.dictionaries import read_dictionaries
from longbatch.schemas.format.encoder import encode_blocks
from longbatch.schemas.format.physical_schema import Batches, Fields, stored_requests_schema, stored_timelines_schema
from longbatch.schemas.spec.build_spec import BuildSpec, parse_spec
from longbatch.schemas.tables import TIMESTAMP
from longbatch.schemas.types import ArrowArray

SPEC = """
compression = "zstd"
[sources.log]
path = "log.parquet"
[items]
features = ["author"]
[history]
source = "log"
user_id = "user"
item_id = "item"
event_time = { column = "time", unit = "s" }
features = { author = "int32", word = "string", score = "float32", click = "int8", action = "id", item = "int16" }
[requests]
source = "log"
user_id = "user"
item_id = "item"
request_time = { column = "time", unit = "s" }
features = { page = "int16" }
target_features = { author = "int32", word = "string", action = "id", event = "int32" }
labels = { click = "int8" }
"""
SPECS = {
    "all": SPEC,
    "no items": SPEC.replace('[items]\nfeatures = ["author"]\n', ""),
    "text items": SPEC.replace('item_id = "item"', 'item_id = { column = "item", type = "string" }'),
    "two logs": SPEC.replace('[requests]\nsource = "log"', '[requests]\nsource = "shown"').replace(
        "[items]", '[sources.shown]\npath = "shown.parquet"\n[items]'
    ),
    "plain": SPEC.replace('[items]\nfeatures = ["author"]\n', "").replace('"zstd"', '"none"'),
}

event = st.fixed_dictionaries(
    {
        "item_id": st.integers(0, 3) | st.integers(-(2**63), 2**63 - 1),
        "event_time": st.integers(0, 50).map(lambda s: s * 1_000_000) | st.integers(-(2**50), 2**50),
        "author": st.none() | st.integers(-5, 5),
        "word": st.none() | st.sampled_from(["", "top", "müll"]),
        "score": st.none() | st.floats(width=32, allow_nan=False),
        "click": st.none() | st.integers(0, 1),
        "action": st.none() | st.integers(-(2**63), 2**63 - 1),
        "item": st.none() | st.integers(-9, 9),  # named like the stored column "#item"
    }
)
target = st.fixed_dictionaries(
    {
        "item_id": st.integers(0, 3),
        "author": st.none() | st.integers(0, 1),
        "word": st.none() | st.just("top"),
        "action": st.none() | st.just(7),
        "click": st.integers(0, 1),
        "event": st.none() | st.integers(-9, 9),
    }
)


@st.composite
def blocks_of(draw: st.DrawFn) -> list[BlockRows]:
    blocks: list[BlockRows] = []
    for _ in range(draw(st.integers(1, 2))):
        timelines: list[Row] = [
            {"user_id": user, "segment": 0, "events": draw(st.lists(event, max_size=5))}
            for user in range(draw(st.integers(1, 3)))
        ]
        requests = []
        for number in range(draw(st.integers(0, 4))):
            row = draw(st.integers(0, len(timelines) - 1))
            events = timelines[row]["events"]
            end = draw(st.integers(0, len(events)))
            seen_later = [
                {name: e[name] for name in ("item_id", "author", "word", "action", "click")} | {"event": e["item"]}
                for e in events[end:]
            ]
            shown = draw(st.lists(target, max_size=3)) + draw(
                st.lists(st.sampled_from(seen_later), max_size=3) if seen_later else st.just([])
            )
            requests.append(
                {
                    "request_id": number, "user_id": row, "segment": 0, "timeline_row": row,
                    "request_time": draw(st.integers(0, 2**50)), "history_end": end,
                    "page": draw(st.none() | st.integers(-9, 9)),
                    "targets": [{**one, "click": one["click"] or 0} for one in shown],
                }
            )  # fmt: skip
        blocks.append((timelines, requests))
    return blocks


def decoded(
    spec: BuildSpec, dictionaries: pa.RecordBatch | None, stored: Batches, fields: Fields | None = None
) -> Batches:
    if not spec.is_compact:
        return stored
    entries = {} if dictionaries is None else read_dictionaries(spec, dictionaries)
    decoder = Decoder(spec, entries, fields or Fields())
    timelines, events = decoder.timelines(stored[0])
    return timelines, decoder.requests(stored[1], timelines, events)


@pytest.mark.slow
@given(st.sampled_from(list(SPECS)), blocks_of())
def test_every_block_is_decoded_to_the_same_rows(name: str, rows: list[BlockRows]) -> None:
    spec = parse_spec(SPECS[name])
    blocks = [as_batches(spec, block_rows) for block_rows in rows]
    dictionaries, stored = encode_blocks(spec, blocks)
    for block, encoded in zip(blocks, stored, strict=True):
        assert encoded[0].schema == stored_timelines_schema(spec)
        assert encoded[1].schema == stored_requests_schema(spec)
        for batch in encoded:
            batch.validate(full=True)
        timelines, requests = decoded(spec, dictionaries, encoded)
        assert timelines.equals(block[0])
        assert requests.equals(block[1])


@pytest.mark.slow
@given(
    st.sampled_from(list(SPECS)),
    blocks_of(),
    st.sets(st.sampled_from(["author", "word", "score", "click", "action"])),
    st.sets(st.sampled_from(["author", "word", "click", "action"])),
)
def test_chosen_fields_are_decoded_to_the_same_values(
    name: str, rows: list[BlockRows], events: set[str], targets: set[str]
) -> None:
    spec = parse_spec(SPECS[name])
    if not spec.is_compact:
        return
    dictionaries, stored = encode_blocks(spec, [as_batches(spec, block_rows) for block_rows in rows])
    fields = Fields(tuple(sorted(events)), tuple(sorted(targets)))
    for encoded in stored:
        complete, part = decoded(spec, dictionaries, encoded), decoded(spec, dictionaries, encoded, fields)
        for column, table, chosen in (("events", 0, events), ("targets", 1, targets)):
            expected, actual = (cast(pa.StructArray, flat_values(b[table][column])) for b in (complete, part))
            names = {field.name for field in actual.type}
            assert names == {"item_id", *chosen, *(["event_time"] if table == 0 else [])}
            assert all(actual.field(f.name).equals(expected.field(f.name)) for f in actual.type)


def block(spec: BuildSpec, items: list[int], shown: list[int]) -> Batches:
    """One timeline with these items at seconds 0, 1, ...; one request that sees the first of them."""
    value = {"author": 1, "word": "top", "click": 1, "action": 7}
    own = {"score": 0.5, "item": 4}
    events = [{"item_id": item, "event_time": 1_000_000 * n, **own, **value} for n, item in enumerate(items)]
    request = {"request_id": 1, "user_id": 5, "segment": 0, "timeline_row": 0, "request_time": 9, "history_end": 1}
    targets = [{"item_id": item, "event": 6, **value} for item in shown]
    rows = ([{"user_id": 5, "segment": 0, "events": events}], [{**request, "page": 1, "targets": targets}])
    return as_batches(spec, rows)


def test_a_target_that_is_a_later_event_stores_only_a_reference() -> None:
    spec = parse_spec(SPEC)
    _, stored = encode_blocks(spec, [block(spec, [30, 31, 32], [32, 99])])
    ((_, requests),) = stored
    referring, own = lists_of(requests["targets"])[0]
    assert referring == {
        "#event": {"0": 1, "1": 0, "2": 0, "3": 0},
        "#item": None,
        "event": {"0": 6, "1": 0, "2": 0, "3": 0},
        "word": None,
        "action": None,
        "click": None,
    }
    assert (own["#event"], own["click"]) == (None, 1)


def test_each_field_of_events_is_a_list_and_times_have_a_unit() -> None:
    spec = parse_spec(SPECS["no items"])
    _, stored = encode_blocks(spec, [block(spec, [30, 31, 32], [])])
    ((timelines, _),) = stored
    assert [name for name in timelines.schema.names if "." not in name] == [
        "user_id", "segment", "first_event_time", "time_unit_us",
    ]  # fmt: skip
    assert timelines["time_unit_us"].to_pylist() == [1_000_000]
    assert [step["0"] for step in lists_of(timelines["events.event_time"])[0]] == [0, 2, 2]


def changed(spec: BuildSpec, table: int, column: str, values: ArrowArray) -> tuple[pa.RecordBatch, Batches]:
    """A stored block with one column replaced."""
    dictionaries, stored = encode_blocks(spec, [block(spec, [30, 31, 32], [32, 99])])
    assert dictionaries is not None
    parts = list(next(iter(stored)))
    index = parts[table].schema.get_field_index(column)
    parts[table] = parts[table].set_column(index, parts[table].schema.field(index), values)
    return dictionaries, (parts[0], parts[1])


def planes(*values: int) -> ArrowArray:
    stored = to_planes(pa.array(values, pa.int32()))
    return pa.ListArray.from_arrays([0, len(values)], stored)


@pytest.mark.parametrize(
    ("table", "column", "values", "message"),
    [
        (0, "events.#item", planes(0, 1, 77), "an index into the dictionary 'items' is outside its 4 entries: 0 to 77"),
        (0, "events.#item", planes(0, 1), "the lists of 'events.#item' and 'events.event_time' differ in length"),
        (
            0,
            "time_unit_us",
            pa.array([7], pa.int32()),
            r"time_unit_us is \[7\], but must be one of \(1000000, 1000, 1\)",
        ),
        (0, "time_unit_us", pa.array([0], pa.int32()), r"time_unit_us is \[0\], but must be one of"),
        (0, "time_unit_us", pa.array([None], pa.int32()), r"time_unit_us is \[None\], but must be one of"),
        (0, "first_event_time", pa.array([None], TIMESTAMP), "first_event_time has nulls but must have none"),
        (
            1,
            "history_end",
            pa.array([2], pa.int32()),
            "target 0 refers to event 1 after history_end, outside its timeline",
        ),
    ],
)
def test_invalid_stored_columns_are_rejected(table: int, column: str, values: ArrowArray, message: str) -> None:
    spec = parse_spec(SPEC)
    dictionaries, stored = changed(spec, table, column, values)
    with pytest.raises(DatasetError, match=message):
        decoded(spec, dictionaries, stored)
