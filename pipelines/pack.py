"""Ordered timelines and grouped requests -> record batches of both tables, bounded in size.

First come plans, as arrays of numbers: segments (slices of timelines to store), then blocks (segments that are stored
together). Then one gather copies the events that some request's history includes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl
import pyarrow as pa

from longbatch.pipelines.arrays.runs import positions_in_run, starts_run, sums_before_in_run
from longbatch.schemas.accounting import Counts
from longbatch.schemas.arrow import int32_array
from longbatch.schemas.ragged import concatenated_ranges, offsets_of
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.tables import event_type, requests_schema, target_type, timelines_schema
from longbatch.schemas.types import ArrowArray, ArrowListArray, BoolArray, Int64Array

from .incremental import AFTER_LAST_REQUEST, BEYOND_HISTORY, NEW, STORED, EventStatus
from .kernel import BuiltBucket

# The range of a segment spans this many times a block's budget of events or a history, whichever is longer. The longer
# the range, the smaller the share of events that two ranges store twice.
SEGMENT_BLOCKS = 4


@dataclass(frozen=True)
class Segments:
    """The timeline slices to store, S of them by user then segment number, and the R requests that they serve.

    Attributes:
        user_id: User of each segment, (S,): a segment has the events and requests of one user.
        segment: Number of each segment among those of its user, (S,).
        event_start: First event, a row of the bucket's sorted events, (S,).
        event_end: End of the events, exclusive, (S,).
        request_order: Request rows ordered by segment, (R,).
        request_start: Offsets of each segment's requests in `request_order`, (S + 1,).
        request_segment: Segment of each request in `request_order`, (R,).
    """

    user_id: Int64Array
    segment: Int64Array
    event_start: Int64Array
    event_end: Int64Array
    request_order: Int64Array
    request_start: Int64Array
    request_segment: Int64Array


def plan_segments(bucket: BuiltBucket, spec: BuildSpec) -> Segments:
    """Split timelines into as few segments as possible: one per user, more for long timelines or very many targets.

    Range k of a user is the events [k (span - L), k (span - L) + span) of the timeline. Consecutive ranges overlap by
    the history length L, so the first range that does not end before a request's history_end contains its history.
    A range with more than `block_targets` targets is split into several segments, each with the events it needs.

    Span 8, L = 2: range 0 is the events [0, 8), range 1 is [6, 14), range 2 is [12, 20).
    One user's requests with history_end [3, 8, 9, 15] have the histories [1, 3), [6, 8), [7, 9), [13, 15):
    ranges [0, 0, 1, 2], so three segments, of the events [1, 8), [7, 9) and [13, 15).

    Args:
        bucket: The bucket to store.
        spec: The build spec.

    Returns:
        The segments, each from the first to the last event that its requests' histories include: at most `span`
        events.
    """
    length = spec.history_length
    # span >= 4 L keeps span - L positive, and the L events that a range repeats are at most a third of the span - L
    # events that it adds.
    span = SEGMENT_BLOCKS * max(spec.block_events, length)
    user_id = bucket.requests.requests["user_id"].to_numpy()
    # ceil((history_end - span) / (span - length)), not below 0
    range_number = np.maximum(0, -(-(bucket.history_end - span) // (span - length)))
    # Requests are sorted by user and time already, so one range per user needs no sort.
    order = np.lexsort((range_number, user_id)) if range_number.any() else np.arange(len(range_number))
    user_id, range_number = user_id[order], range_number[order]
    sizes = np.diff(bucket.requests.target_offsets)[order]
    # Greedy packing by cumulative cost, in each range: with block_targets = 10, requests of [4, 4, 4, 4] targets have
    # [0, 4, 8, 12] targets before them, hence the splits [0, 0, 0, 1]. A request belongs to the split in whose budget
    # of targets it begins: only the last request of a split can go beyond the budget, and none is divided.
    split_number = sums_before_in_run(sizes, starts_run(user_id, range_number)) // spec.block_targets
    starts = np.flatnonzero(starts_run(user_id, range_number, split_number))
    history_end = bucket.history_end[order]
    # A segment is the union of its requests' histories, not the whole range.
    history_start = np.maximum(0, history_end - length)
    base = bucket.event_start[order]
    request_start = np.append(starts, len(order))
    segment_user = user_id[starts]
    return Segments(
        user_id=segment_user,
        # Numbers continue after the segments of earlier increments, so (user, segment) stays unique in the dataset.
        segment=bucket.previous_state.segment_counts(segment_user) + positions_in_run(starts_run(segment_user)),
        event_start=_reduce(np.minimum, base + history_start, starts),
        event_end=_reduce(np.maximum, base + history_end, starts),
        request_order=order,
        request_start=request_start,
        request_segment=np.repeat(np.arange(len(starts)), np.diff(request_start)),
    )


def _reduce(ufunc: np.ufunc, values: Int64Array, starts: Int64Array) -> Int64Array:
    return np.asarray(ufunc.reduceat(values, starts)) if len(starts) else values[:0]


def plan_blocks(segments: Segments, target_offsets: Int64Array, spec: BuildSpec) -> Int64Array:
    """Group consecutive segments into blocks.

    The normalized cost of a segment is its events / block_events or its targets / block_targets, whichever is larger.
    Costs [0.5, 0.4, 0.3, 2.0, 0.1] begin at 0, 0.5, 0.9, 1.2 and 3.2; rounded down: blocks [0, 0, 0, 1, 3].
    Result: bounds [0, 3, 4, 5].

    Args:
        segments: The segments to store.
        target_offsets: Offsets of each request's targets, (R + 1,).
        spec: The build spec, with the budgets block_events and block_targets.

    Returns:
        Bounds of the blocks as rows of `segments`, (B + 1,): each block is under twice the budget, unless one segment
        alone is over it.
    """
    count = len(segments.user_id)
    if not count:
        return np.zeros(1, dtype=np.int64)
    targets = np.diff(target_offsets)[segments.request_order]
    per_segment = np.add.reduceat(targets, segments.request_start[:-1])
    events = segments.event_end - segments.event_start
    cost = np.maximum(events / spec.block_events, per_segment / spec.block_targets)
    # Greedy packing by cumulative cost: a segment belongs to the block in whose budget, a cost of 1, it begins.
    block = np.floor(np.cumsum(cost) - cost).astype(np.int64)
    return np.append(np.flatnonzero(starts_run(block)), count)


def pack(bucket: BuiltBucket, spec: BuildSpec) -> tuple[Iterator[tuple[pa.RecordBatch, pa.RecordBatch]], Counts]:
    """Pack a bucket into blocks.

    Args:
        bucket: The bucket to store.
        spec: The build spec.

    Returns:
        The blocks, each a pair of record batches (timelines, requests), and the counts of what they hold.
    """
    segments = plan_segments(bucket, spec)
    bounds = plan_blocks(segments, bucket.requests.target_offsets, spec)
    return _blocks(bucket, spec, segments, bounds), _counts(bucket, spec, segments)


def _counts(bucket: BuiltBucket, spec: BuildSpec, segments: Segments) -> Counts:
    """Count what this bucket adds; an event of an earlier increment counts only for the change of its status."""
    lengths = segments.event_end - segments.event_start
    before, after = bucket.previous_status, event_status(bucket, segments)
    added = {
        status: int((after == status).sum() - (before == status).sum())
        for status in (STORED, BEYOND_HISTORY, AFTER_LAST_REQUEST)
    }
    users = bucket.requests.requests["user_id"].to_numpy()
    users = users[starts_run(users)]
    return bucket.counts + Counts(
        users=int((bucket.previous_state.segment_counts(users) == 0).sum()),
        segments=len(lengths),
        requests=bucket.requests.requests.height,
        targets=bucket.requests.targets.height,
        events=int((before == NEW).sum()),
        stored=added[STORED],
        stored_with_overlap=int(lengths.sum()),
        beyond_history=added[BEYOND_HISTORY],
        after_last_request=added[AFTER_LAST_REQUEST],
        history_events=int(np.minimum(bucket.history_end, spec.history_length).sum()),
    )


def event_status(bucket: BuiltBucket, segments: Segments) -> EventStatus:
    """Return the status of each event after this increment.

    A user with events 0 to 9, a request with history_end 8, and a segment of events [5, 8):
    0 to 4 are visible but not stored, 5 to 7 are stored, and 8 and 9 come after the last request.
    Status: BEYOND_HISTORY five times, STORED three times, AFTER_LAST_REQUEST twice.

    Args:
        bucket: The bucket.
        segments: Its segments.

    Returns:
        AFTER_LAST_REQUEST, BEYOND_HISTORY or STORED, (N,); never below the status before the increment.
    """
    count = len(bucket.previous_status)
    stored = _covered(count, segments.event_start, segments.event_end)
    users = bucket.requests.requests["user_id"].to_numpy()
    starts = np.flatnonzero(starts_run(users))
    last_end = _reduce(np.maximum, bucket.history_end, starts)
    # Each user's events up to the furthest history end are visible to some request.
    visible = _covered(count, bucket.event_start[starts], bucket.event_start[starts] + last_end)
    status = np.where(stored, STORED, np.where(visible, BEYOND_HISTORY, AFTER_LAST_REQUEST)).astype(np.int8)
    # An event that an earlier increment stored is on disk, also if no request of this increment includes it.
    return np.maximum(status, bucket.previous_status)


def _covered(count: int, starts: Int64Array, ends: Int64Array) -> BoolArray:
    """Return which of the positions [0, count) some range [start, end) covers, by a difference array."""
    steps = np.bincount(starts, minlength=count + 1) - np.bincount(ends, minlength=count + 1)
    return np.asarray(np.cumsum(steps[:count]) > 0)


def _blocks(
    bucket: BuiltBucket, spec: BuildSpec, segments: Segments, bounds: Int64Array
) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
    """Gather events, requests and targets once, in storage order, then slice them into blocks.

    Bounds [0, 2, 3] give two blocks: segments 0 and 1, then segment 2. Within a block timeline_row counts from 0,
    and history_end counts from the first event of the request's segment.
    """
    lengths = segments.event_end - segments.event_start
    events = bucket.timelines.events[concatenated_ranges(segments.event_start, lengths)]
    offsets = offsets_of(lengths)
    type_of_event = event_type(spec)
    names = {f.name: f.name if f.name in ("item_id", "event_time") else f"history.{f.name}" for f in type_of_event}
    values = _struct(events, names, type_of_event)
    requests, target_offsets, targets = _requests_in_order(bucket, spec, segments)
    # history_end counts from the user's first event; in the file it counts from the segment's first event.
    end_in_segment = (bucket.history_end + bucket.event_start)[segments.request_order]
    end_in_segment = end_in_segment - segments.event_start[segments.request_segment]
    for first, last in pairwise(bounds.tolist()):
        timelines = pa.RecordBatch.from_arrays(
            [
                pa.array(segments.user_id[first:last]),
                int32_array(segments.segment[first:last]),
                _lists(values, offsets[first : last + 1]),
            ],
            schema=timelines_schema(spec),
        )
        # The requests of consecutive segments are consecutive too.
        begin, end = int(segments.request_start[first]), int(segments.request_start[last])
        owner = segments.request_segment[begin:end]
        columns: dict[str, ArrowArray] = {
            "segment": int32_array(segments.segment[owner]),
            "timeline_row": int32_array(owner - first),
            "history_end": int32_array(end_in_segment[begin:end]),
            "targets": _lists(targets, target_offsets[begin : end + 1]),
        }
        yield timelines, _request_batch(requests.slice(begin, end - begin), columns, requests_schema(spec))


def _requests_in_order(
    bucket: BuiltBucket, spec: BuildSpec, segments: Segments
) -> tuple[pl.DataFrame, Int64Array, pa.StructArray]:
    """Return the requests by segment, the offsets of their targets, and the targets."""
    order = segments.request_order
    sizes = np.diff(bucket.requests.target_offsets)[order]
    targets = bucket.requests.targets[concatenated_ranges(bucket.requests.target_offsets[:-1][order], sizes)]
    type_of_target = target_type(spec)
    labels = spec.requests.labels
    names = {f.name: f"label.{f.name}" if f.name in labels else f"target.{f.name}" for f in type_of_target}
    values = _struct(targets, {**names, "item_id": "item_id"}, type_of_target)
    return bucket.requests.requests[order], offsets_of(sizes), values


def _struct(frame: pl.DataFrame, names: Mapping[str, str], struct_type: pa.StructType) -> pa.StructArray:
    """Turn the columns of a frame (struct field -> column) into one struct array, cast to the types of the struct."""
    arrays = [frame[names[field.name]].rechunk().to_arrow().cast(field.type) for field in struct_type]
    return pa.StructArray.from_arrays(arrays, fields=list(struct_type))


def _lists(values: pa.StructArray, offsets: Int64Array) -> ArrowListArray:
    """Build a list array over the values [offsets[0], offsets[-1]) of a shared array, without copying them."""
    # Offsets in the file count from the block's first value, else every block would repeat all values before it.
    inner = values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
    return pa.ListArray.from_arrays(int32_array(offsets - offsets[0]), inner, type=pa.list_(values.type))


def _request_batch(requests: pl.DataFrame, computed: Mapping[str, ArrowArray], schema: pa.Schema) -> pa.RecordBatch:
    """Assemble the request columns of a block: those in `computed`, the others from the frame."""
    arrays: list[ArrowArray] = []
    for field in schema:
        if field.name in computed:
            arrays.append(computed[field.name])
        else:
            name = f"request.{field.name}" if f"request.{field.name}" in requests.columns else field.name
            arrays.append(requests[name].rechunk().to_arrow().cast(field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
