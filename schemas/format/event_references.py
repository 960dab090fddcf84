"""Store a target that is a later event of its own timeline as a reference to the event.

Where one log feeds history and targets, most targets become events. They are matched by value, so a reference gives
exactly the target's own columns: the event has the target's item and the same value in every field that both have.
A reference counts from the request's `history_end`. It is a small number, because a shown item mostly becomes one of
the next events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longbatch.schemas.arrow import int64_array
from longbatch.schemas.errors import DatasetError
from longbatch.schemas.ragged import concatenated_ranges
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.tables import event_type, target_type
from longbatch.schemas.types import ArrowArray, Int64Array

# Stored column of targets: index of the event relative to history_end, null where the target has values of its own.
# The "#" keeps it apart from features, whose names are identifiers.
REFERENCE = "#event"


def shared_fields(spec: BuildSpec) -> tuple[str, ...]:
    """Return the fields besides item_id that events and targets have with the same name and type.

    Args:
        spec: Build spec.

    Returns:
        Names, in the order of the targets.
    """
    events = {field.name: field.type for field in event_type(spec)}
    return tuple(f.name for f in target_type(spec) if f.name != "item_id" and events.get(f.name) == f.type)


def find_references(
    requests: pa.RecordBatch,
    events: Mapping[str, ArrowArray],
    event_offsets: Int64Array,
    targets: Mapping[str, ArrowArray],
    target_offsets: Int64Array,
    shared: Sequence[str],
) -> ArrowArray:
    """Find for each target the first event with its item from the request's history_end on.

    Args:
        requests: R requests, with `timeline_row` and `history_end`.
        events: Columns of the block's events, (T,) each.
        event_offsets: Offsets of the timelines, (N + 1,).
        targets: Columns of the block's targets, (G,) each.
        target_offsets: Offsets of the requests' targets, (R + 1,).
        shared: Fields besides item_id that must be equal.

    Returns:
        Index of the event relative to history_end, (G,) int32; null where no later event of the timeline has the item,
        or a shared field differs.

    Example:
        timeline         a  b  c  b             history_end is 2: the request sees a and b
        targets          b  d  c
        references       1  -  0                the later b is one after history_end; d never happens
    """
    # The item decides which event it is, the shared fields whether it is exact. Later events of the same item are not
    # tried: a reference that is missed costs bytes but loses nothing.
    row, start = _first_unseen_events(requests, event_offsets, target_offsets)
    index = _first_match(events["item_id"], event_offsets, targets["item_id"], row, start)
    is_missing = index < 0
    references: ArrowArray = pa.array((index - start).astype(np.int32), mask=is_missing)
    indices = int64_array(index, is_missing)
    for name in shared:
        target_values, event_values = targets[name], events[name].take(indices)
        if pa.types.is_floating(target_values.type):
            # Compare bits: NaN equals itself, and 0.0 is not -0.0, so that a reference is exact.
            target_values, event_values = _bits(target_values), _bits(event_values)
        are_equal = cast(pa.BooleanArray, pc.equal(target_values, event_values).fill_null(False))
        is_same = pc.or_(are_equal, pc.and_(target_values.is_null(), event_values.is_null()))
        references = pc.if_else(is_same, references, pa.scalar(None, references.type))
    return references


def _bits(values: ArrowArray) -> ArrowArray:
    return values.view(pa.int32() if values.type.bit_width == 32 else pa.int64())


def _first_unseen_events(
    requests: pa.RecordBatch, event_offsets: Int64Array, target_offsets: Int64Array
) -> tuple[Int64Array, Int64Array]:
    """For each target, (G,): the row of its timeline, and the index of the first event its request cannot see."""
    rows = requests["timeline_row"].fill_null(0).to_numpy().astype(np.int64)
    ends = requests["history_end"].fill_null(0).to_numpy().astype(np.int64)
    # Rows of an invalid block may be out of range; the reader reports them later, so only avoid an IndexError here.
    last = max(0, len(event_offsets) - 2)
    start = event_offsets[np.clip(rows, 0, last)] + ends
    sizes = np.diff(target_offsets)
    return np.repeat(rows, sizes), np.repeat(start, sizes)


def _first_match(
    items: ArrowArray, event_offsets: Int64Array, wanted: ArrowArray, row: Int64Array, start: Int64Array
) -> Int64Array:
    """The first event from `start` on in timeline `row` with the wanted item: (G,), -1 where there is none.

    All events that could match get one integer key that sorts by item, timeline and index, so that a single
    binary search finds the first match of every target.

    Example:
        events     a b | b a        timelines 0 and 1, at 0 1 | 2 3
        wanted     a in timeline 1 from index 2 on
        keys       (a,0,0) (a,1,3) (b,0,1) (b,1,2); the first key from (a,1,2) on is (a,1,3): the match is index 3
    """
    # A hash join gives events and targets the same small code for the same item; events of other items drop out.
    matches = np.full(len(wanted), -1, dtype=np.int64)
    distinct = pc.unique(wanted.drop_null())
    candidates = _candidate_events(event_offsets, row, start)
    event_codes = pc.index_in(items.take(int64_array(candidates)), distinct)
    known = np.flatnonzero(event_codes.is_valid().to_numpy(False))
    index = candidates[known]
    target_codes = pc.index_in(wanted, distinct)
    searched = np.flatnonzero(target_codes.is_valid().to_numpy(False) & (row >= 0) & (row < len(event_offsets) - 1))
    if not len(index) or not len(searched):
        return matches
    timeline = np.searchsorted(event_offsets, index, side="right") - 1
    size = int(event_offsets[-1]) + 1
    key = _sort_key(event_codes.take(int64_array(known)), timeline, len(event_offsets), index, size)
    # Sorted keys form one run for each (item, timeline). Each target searches for the lowest key that it accepts; a
    # search that ends in another run has no match.
    order = np.argsort(key)
    first_index = np.clip(start[searched], 0, size - 1)
    lowest_key = _sort_key(
        target_codes.take(int64_array(searched)), row[searched], len(event_offsets), first_index, size
    )
    hit = order[np.minimum(np.searchsorted(key[order], lowest_key), len(order) - 1)]
    # A hit counts if it has the same item and timeline: the part of the key above the index.
    is_match = (key[hit] >= lowest_key) & (key[hit] // size == lowest_key // size)
    matches[searched[is_match]] = index[hit[is_match]]
    return matches


def _candidate_events(event_offsets: Int64Array, row: Int64Array, start: Int64Array) -> Int64Array:
    """Indices of all events that a target could be, ascending: of each timeline those from its earliest start on."""
    is_valid = (row >= 0) & (row < len(event_offsets) - 1)
    starts = event_offsets[1:].copy()  # a timeline without requests has no candidates
    np.minimum.at(starts, row[is_valid], np.maximum(start[is_valid], event_offsets[row[is_valid]]))
    return concatenated_ranges(starts, event_offsets[1:] - starts)


def _sort_key(codes: ArrowArray, timeline: Int64Array, timelines: int, index: Int64Array, size: int) -> Int64Array:
    """One integer that sorts by item, then by timeline, then by index in the block."""
    item = codes.to_numpy(zero_copy_only=False).astype(np.int64)
    return np.asarray((item * timelines + timeline) * size + index, dtype=np.int64)


def referenced_events(
    requests: pa.RecordBatch, event_offsets: Int64Array, target_offsets: Int64Array, references: ArrowArray
) -> ArrowArray:
    """Resolve references to events.

    Args:
        requests: R requests, with `timeline_row` and `history_end`.
        event_offsets: Offsets of the timelines, (N + 1,).
        target_offsets: Offsets of the requests' targets, (R + 1,).
        references: Indices relative to history_end, (G,); null for a target with values of its own.

    Returns:
        Index of the event in the block, (G,) int64; null where the reference is.

    Raises:
        DatasetError: A reference points outside of its timeline.
    """
    row, start = _first_unseen_events(requests, event_offsets, target_offsets)
    # Validated before use: a reference outside its timeline would silently read an event of another user.
    has_reference = references.is_valid().to_numpy(False)
    steps = references.fill_null(0).to_numpy().astype(np.int64)
    index = start + steps
    is_inside = (steps >= 0) & (index < event_offsets[1:][row]) if len(row) else has_reference
    if not is_inside[has_reference].all():
        target = int(np.flatnonzero(has_reference & ~is_inside)[0])
        raise DatasetError(f"target {target} refers to event {steps[target]} after history_end, outside its timeline")
    return int64_array(index, ~has_reference)
