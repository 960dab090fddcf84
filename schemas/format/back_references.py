"""Targets that are later events of their own timeline: a reference in place of a copy.

Where one log feeds both history and targets, most targets become events. They are found by value, so a reference says
exactly what the target's own columns would: the event has the target's item and every field that both have.
A reference counts from the request's `history_end`, since what was shown is mostly seen next: it is a small number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longbatch.schemas.errors import DatasetError
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.tables import event_type, target_type
from longbatch.schemas.types import Int64Array

# the stored column of targets: places after history_end, null where the target has its own values; no feature can have its name
REFERENCE = "#event"


def shared_fields(spec: BuildSpec) -> tuple[str, ...]:
    """Fields besides item_id that events and targets have with the same name and type, in the targets' order."""
    events = {field.name: field.type for field in event_type(spec)}
    return tuple(f.name for f in target_type(spec) if f.name != "item_id" and events.get(f.name) == f.type)


def find_references(
    requests: pa.RecordBatch,
    events: Mapping[str, pa.Array],
    event_offsets: Int64Array,
    targets: Mapping[str, pa.Array],
    target_offsets: Int64Array,
    shared: Sequence[str],
) -> pa.Array:
    """For each of G targets the first event from its request's history_end on that has its item: (G,) int32.

    A place relative to history_end; null where there is none in the timeline, or a shared field differs.
    """
    row, start = _starts(requests, event_offsets, target_offsets)
    place = _first_from(events["item_id"], event_offsets, targets["item_id"], row, start)
    found = place >= 0
    ahead = pa.array((place - start).astype(np.int32), mask=~found)
    places = pa.array(place, mask=~found)
    for name in shared:
        mine, other = targets[name], events[name].take(places)
        if pa.types.is_floating(mine.type):
            mine, other = (_bits(values) for values in (mine, other))
        same = pc.or_(pc.equal(mine, other).fill_null(False), pc.and_(mine.is_null(), other.is_null()))
        ahead = pc.if_else(same, ahead, pa.scalar(None, ahead.type))
    return ahead


def _bits(values: pa.Array) -> pa.Array:
    return values.view(pa.int32() if values.type.bit_width == 32 else pa.int64())


def _starts(
    requests: pa.RecordBatch, event_offsets: Int64Array, target_offsets: Int64Array
) -> tuple[Int64Array, Int64Array]:
    """For each target, (G,): the row of its timeline, and the place of the first event its request does not see."""
    rows = requests["timeline_row"].fill_null(0).to_numpy().astype(np.int64)
    ends = requests["history_end"].fill_null(0).to_numpy().astype(np.int64)
    last = max(0, len(event_offsets) - 2)
    start = event_offsets[np.clip(rows, 0, last)] + ends
    sizes = np.diff(target_offsets)
    return np.repeat(rows, sizes), np.repeat(start, sizes)


def _first_from(
    items: pa.Array, event_offsets: Int64Array, wanted: pa.Array, row: Int64Array, start: Int64Array
) -> Int64Array:
    """The first place from `start` on in timeline `row` with the wanted item: (G,), -1 where there is none."""
    place = np.full(len(wanted), -1, dtype=np.int64)
    values = pc.unique(wanted.drop_null())
    near = _from_the_first(event_offsets, row, start)
    code = pc.index_in(items.take(pa.array(near)), values)
    found = np.flatnonzero(code.is_valid().to_numpy(False))
    at = near[found]
    asked = pc.index_in(wanted, values)
    asking = np.flatnonzero(asked.is_valid().to_numpy(False) & (row >= 0) & (row < len(event_offsets) - 1))
    if not len(at) or not len(asking):
        return place
    timeline = np.searchsorted(event_offsets, at, side="right") - 1
    total = int(event_offsets[-1]) + 1
    key = _key(code.take(pa.array(found)), timeline, len(event_offsets), at, total)
    order = np.argsort(key)
    goal = _key(
        asked.take(pa.array(asking)), row[asking], len(event_offsets), np.clip(start[asking], 0, total - 1), total
    )
    hit = order[np.minimum(np.searchsorted(key[order], goal), len(order) - 1)]
    same = (key[hit] >= goal) & (key[hit] // total == goal // total)
    place[asking[same]] = at[hit[same]]
    return place


def _from_the_first(event_offsets: Int64Array, row: Int64Array, start: Int64Array) -> Int64Array:
    """Places of the events of each timeline from the earliest start on: those that a target could be, ascending."""
    inside = (row >= 0) & (row < len(event_offsets) - 1)
    begins = event_offsets[1:].copy()
    np.minimum.at(begins, row[inside], np.maximum(start[inside], event_offsets[row[inside]]))
    sizes = event_offsets[1:] - begins
    shifts = np.repeat(begins - (np.cumsum(sizes) - sizes), sizes)
    return np.asarray(np.arange(len(shifts)) + shifts, dtype=np.int64)


def _key(code: pa.Array, timeline: Int64Array, timelines: int, place: Int64Array, places: int) -> Int64Array:
    """One number that orders by item, then timeline, then place in the block."""
    item = code.to_numpy(zero_copy_only=False).astype(np.int64)
    return np.asarray((item * timelines + timeline) * places + place, dtype=np.int64)


def referred_places(
    requests: pa.RecordBatch, event_offsets: Int64Array, target_offsets: Int64Array, ahead: pa.Array
) -> pa.Array:
    """The place in the block of the event each target refers to, (G,), null where it refers to none.

    Raises DatasetError if one lies outside its timeline.
    """
    row, start = _starts(requests, event_offsets, target_offsets)
    known = ahead.is_valid().to_numpy(False)
    steps = ahead.fill_null(0).to_numpy().astype(np.int64)
    place = start + steps
    inside = (steps >= 0) & (place < event_offsets[1:][row]) if len(row) else known
    if not inside[known].all():
        bad = int(np.flatnonzero(known & ~inside)[0])
        raise DatasetError(
            f"target {bad} refers to an event {steps[bad]} places after its history, outside the timeline"
        )
    return pa.array(place, mask=~known)
