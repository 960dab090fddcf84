"""A reference is the first event from history_end on that equals the target, as a naive search shows."""

from __future__ import annotations

from typing import cast

import numpy as np
import pyarrow as pa
import pytest
from arrow_values import values_of
from hypothesis import given
from hypothesis import strategies as st

from longbatch.schemas.errors import DatasetError
from longbatch.schemas.format.event_references import find_references, referenced_events, shared_fields
from longbatch.schemas.ragged import list_offsets
from longbatch.schemas.spec.build_spec import parse_spec
from longbatch.schemas.types import ArrowArray, ArrowListArray, Int64Array

SPEC = """
[sources.log]
path = "log.parquet"
[history]
source = "log"
user_id = "user"
item_id = "item"
event_time = { column = "time", unit = "s" }
features = { click = "int8", page = "int16", dwell = "int32" }
[requests]
source = "log"
user_id = "user"
item_id = "item"
request_time = { column = "time", unit = "s" }
target_features = { page = "int16", dwell = "int64" }
labels = { click = "int8" }
"""
Event = tuple[int, int | None]
Request = tuple[int, int, list[Event]]


def find(timelines: list[list[Event]], requests: list[Request]) -> list[int | None]:
    """References of all targets; a request is (timeline_row, history_end, targets), an event or target (item, page)."""
    batch = pa.RecordBatch.from_pydict(
        {
            "timeline_row": pa.array([row for row, _, _ in requests], pa.int32()),
            "history_end": pa.array([end for _, end, _ in requests], pa.int32()),
        }
    )
    events, event_offsets = columns(timelines)
    targets, target_offsets = columns([shown for _, _, shown in requests])
    references = find_references(batch, events, event_offsets, targets, target_offsets, ["page"])
    assert referenced_events(batch, event_offsets, target_offsets, references).null_count == references.null_count
    return values_of(references)


def columns(rows: list[list[Event]]) -> tuple[dict[str, ArrowArray], Int64Array]:
    flat = [pair for row in rows for pair in row]
    lists = cast(ArrowListArray, pa.array([[0] * len(row) for row in rows], pa.list_(pa.int8())))
    values: dict[str, ArrowArray] = {
        "item_id": pa.array([item for item, _ in flat], pa.int64()),
        "page": pa.array([page for _, page in flat], pa.int16()),
    }
    return values, list_offsets(lists)


def naive(timelines: list[list[Event]], requests: list[Request]) -> list[int | None]:
    references: list[int | None] = []
    for row, end, shown in requests:
        for item, page in shown:
            matches = [index for index, event in enumerate(timelines[row][end:]) if event[0] == item]
            is_same = bool(matches) and timelines[row][end + matches[0]][1] == page
            references.append(matches[0] if is_same else None)
    return references


def test_a_target_refers_to_the_next_event_of_its_item() -> None:
    timelines: list[list[Event]] = [[(7, 1), (8, 1), (7, 1), (9, None)], [(7, 1)]]
    assert find(timelines, [(0, 1, [(7, 1), (9, None), (8, 1), (5, 1)]), (1, 1, [(7, 1)])]) == [1, 2, 0, None, None]


def test_a_target_with_other_values_than_the_event_has_no_reference() -> None:
    assert find([[(7, 1), (8, None)]], [(0, 0, [(7, 2), (7, None), (8, 1)])]) == [None, None, None]


def test_no_events_or_no_targets_give_no_references() -> None:
    assert find([[]], [(0, 0, [(7, 1)])]) == [None]
    assert find([[(7, 1)]], [(0, 0, [])]) == []
    assert find([], []) == []


items = st.tuples(st.integers(0, 4), st.none() | st.integers(0, 1))


@pytest.mark.slow
@given(st.data())
def test_references_are_those_of_a_naive_search(data: st.DataObject) -> None:
    timelines = data.draw(st.lists(st.lists(items, max_size=8), min_size=1, max_size=4))
    rows = data.draw(st.lists(st.integers(0, len(timelines) - 1), max_size=6))
    requests: list[Request] = [
        (row, data.draw(st.integers(0, len(timelines[row]))), data.draw(st.lists(items, max_size=4))) for row in rows
    ]
    assert find(timelines, requests) == naive(timelines, requests)


def test_fields_with_the_same_name_and_type_are_shared() -> None:
    assert shared_fields(parse_spec(SPEC)) == ("page", "click")


@pytest.mark.parametrize("ahead", [-1, 2])
def test_a_reference_outside_its_timeline_is_rejected(ahead: int) -> None:
    requests = pa.RecordBatch.from_pydict({"timeline_row": pa.array([0, 0]), "history_end": pa.array([0, 1])})
    offsets = np.array([0, 2, 9]), np.array([0, 1, 2])
    message = f"target 1 refers to event {ahead} after history_end, outside its timeline"
    with pytest.raises(DatasetError, match=message):
        referenced_events(requests, *offsets, pa.array([None, ahead], pa.int32()))
