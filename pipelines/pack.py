"""Ordered timelines and cut requests -> record batches of both tables, bounded in size.

Numbers first: segments (whose timeline is cut, and where), then blocks (which segments go together), then one
gather of the events that some request can reach.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl
import pyarrow as pa

from longbatch.pipelines.arrays.ragged import changes, offsets_of, places, ranges, running_within
from longbatch.schemas.accounting import Counts
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.tables import event_type, requests_schema, target_type, timelines_schema
from longbatch.schemas.types import BoolArray, Int64Array

from .incremental import AFTER_LAST_REQUEST, BEYOND_HISTORY, NEW, STORED, Reaches
from .kernel import Bucket

SEGMENT_BLOCKS = 4


@dataclass(frozen=True)
class Segments:
    """The timeline slices to store, S of them, by user then segment; and the requests they serve.

    user_id, segment: (S,). event_start, event_end: (S,) into the bucket's sorted events.
    request_order: (R,) request rows by segment; request_start: (S + 1,) into it.
    request_segment: (R,) row of the segment of each reordered request.
    """

    user_id: Int64Array
    segment: Int64Array
    event_start: Int64Array
    event_end: Int64Array
    request_order: Int64Array
    request_start: Int64Array
    request_segment: Int64Array


def cut_segments(bucket: Bucket, spec: BuildSpec) -> Segments:
    """Cut each user's timeline into as few segments as bounds allow: one, but for heavy_users.

    Segment k of a user covers timeline places [k (S - L), k (S - L) + S): consecutive ones overlap by L, so the
    smallest k whose end is not before a request's history_end holds that request's whole history.
    A user with more than `block_targets` targets in a range is cut further, each part with the range's events.
    """
    length = spec.history_length
    span = max(SEGMENT_BLOCKS * spec.block_events, SEGMENT_BLOCKS * length)
    user_id = bucket.requests.requests["user_id"].to_numpy()
    place = np.maximum(0, -(-(bucket.history_end - span) // (span - length)))
    order = np.lexsort((place, user_id)) if place.any() else np.arange(len(place))
    user_id, place = user_id[order], place[order]
    sizes = np.diff(bucket.requests.target_offsets)[order]
    new_range = changes(user_id, place)
    part = running_within(sizes, new_range) // spec.block_targets
    starts = np.flatnonzero(changes(user_id, place, part))
    history_end = bucket.history_end[order]
    history_start = np.maximum(0, history_end - length)
    base = bucket.event_start[order]
    request_start = np.append(starts, len(order))
    first_user = user_id[starts]
    return Segments(
        user_id=first_user,
        segment=bucket.carried.segments_of(first_user) + places(changes(first_user)),
        event_start=_reduce(np.minimum, base + history_start, starts),
        event_end=_reduce(np.maximum, base + history_end, starts),
        request_order=order,
        request_start=request_start,
        request_segment=np.repeat(np.arange(len(starts)), np.diff(request_start)),
    )


def _reduce(ufunc: np.ufunc, values: Int64Array, starts: Int64Array) -> Int64Array:
    return np.asarray(ufunc.reduceat(values, starts)) if len(starts) else values[:0]


def cut_blocks(segments: Segments, target_offsets: Int64Array, spec: BuildSpec) -> Int64Array:
    """Bounds (B + 1,) of the blocks as segment rows: each under twice the budget of events and of targets.

    A segment larger than the budget is a block of its own, or ends one.
    """
    count = len(segments.user_id)
    if not count:
        return np.zeros(1, dtype=np.int64)
    targets = np.diff(target_offsets)[segments.request_order]
    per_segment = np.add.reduceat(targets, segments.request_start[:-1])
    events = segments.event_end - segments.event_start
    cost = np.maximum(events / spec.block_events, per_segment / spec.block_targets)
    block = np.floor(np.cumsum(cost) - cost).astype(np.int64)
    return np.append(np.flatnonzero(changes(block)), count)


def pack(bucket: Bucket, spec: BuildSpec) -> tuple[Iterator[tuple[pa.RecordBatch, pa.RecordBatch]], Counts]:
    """Pack a bucket into pairs of record batches (timelines, requests), and count what is in them."""
    segments = cut_segments(bucket, spec)
    bounds = cut_blocks(segments, bucket.requests.target_offsets, spec)
    return _blocks(bucket, spec, segments, bounds), _count(bucket, spec, segments)


def _count(bucket: Bucket, spec: BuildSpec, segments: Segments) -> Counts:
    """What this bucket adds: an event that came from days before was counted there, and may only be reached further."""
    lengths = segments.event_end - segments.event_start
    before, after = bucket.reaches, reaches_of(bucket, segments)
    gained = {
        reach: int((after == reach).sum() - (before == reach).sum())
        for reach in (STORED, BEYOND_HISTORY, AFTER_LAST_REQUEST)
    }
    users = bucket.requests.requests["user_id"].to_numpy()
    users = users[changes(users)]
    return bucket.counts + Counts(
        users=int((bucket.carried.segments_of(users) == 0).sum()),
        segments=len(lengths),
        requests=bucket.requests.requests.height,
        targets=bucket.requests.targets.height,
        events=int((before == NEW).sum()),
        stored=gained[STORED],
        stored_with_overlap=int(lengths.sum()),
        beyond_history=gained[BEYOND_HISTORY],
        after_last_request=gained[AFTER_LAST_REQUEST],
        history_events=int(np.minimum(bucket.history_end, spec.history_length).sum()),
    )


def reaches_of(bucket: Bucket, segments: Segments) -> Reaches:
    """How far requests reach each event of the bucket, (N,), those of days before included."""
    count = len(bucket.reaches)
    stored = _covered(count, segments.event_start, segments.event_end)
    users = bucket.requests.requests["user_id"].to_numpy()
    begins = np.flatnonzero(changes(users))
    furthest = _reduce(np.maximum, bucket.history_end, begins)
    reached = _covered(count, bucket.event_start[begins], bucket.event_start[begins] + furthest)
    now = np.where(stored, STORED, np.where(reached, BEYOND_HISTORY, AFTER_LAST_REQUEST)).astype(np.int8)
    return np.maximum(now, bucket.reaches)


def _covered(count: int, starts: Int64Array, ends: Int64Array) -> BoolArray:
    """Which of the places [0, count) lie in some of the ranges [start, end)."""
    steps = np.bincount(starts, minlength=count + 1) - np.bincount(ends, minlength=count + 1)
    return np.asarray(np.cumsum(steps[:count]) > 0)


def _struct(frame: pl.DataFrame, names: dict[str, str], kind: pa.StructType) -> pa.StructArray:
    """Turn the columns of a frame (struct field -> column) into one struct array, cast to the schema's types."""
    arrays = [frame[names[f.name]].rechunk().to_arrow().cast(f.type) for f in kind]
    return pa.StructArray.from_arrays(arrays, fields=list(kind))


def _list(values: pa.Array, offsets: Int64Array, kind: pa.ListType) -> pa.ListArray:
    """List array over the values [offsets[0], offsets[-1]) of a shared array."""
    inner = values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
    return pa.ListArray.from_arrays(pa.array((offsets - offsets[0]).astype(np.int32)), inner, type=kind)


def _blocks(
    bucket: Bucket, spec: BuildSpec, segments: Segments, bounds: Int64Array
) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
    """Gather events, requests and targets once, in storage order, then slice them into blocks."""
    lengths = segments.event_end - segments.event_start
    events = bucket.timelines.events[ranges(segments.event_start, lengths)]
    offsets = offsets_of(lengths)
    kind = event_type(spec)
    names = {f.name: f.name if f.name in ("item_id", "event_time") else f"history.{f.name}" for f in kind}
    values = _struct(events, names, kind)
    requests, target_offsets, targets = _requests_in_order(bucket, spec, segments)
    local = bucket.history_end + bucket.event_start
    local = local[segments.request_order] - segments.event_start[segments.request_segment]
    for first, last in pairwise(bounds.tolist()):
        timelines = pa.RecordBatch.from_arrays(
            [
                pa.array(segments.user_id[first:last]),
                pa.array(segments.segment[first:last].astype(np.int32)),
                _list(values, offsets[first : last + 1], pa.list_(kind)),
            ],
            schema=timelines_schema(spec),
        )
        begin, end = int(segments.request_start[first]), int(segments.request_start[last])
        owner = segments.request_segment[begin:end]
        columns = {
            **{f"request.{name}": None for name in spec.requests.features},
            "segment": pa.array(segments.segment[owner].astype(np.int32)),
            "timeline_row": pa.array((owner - first).astype(np.int32)),
            "history_end": pa.array(local[begin:end].astype(np.int32)),
            "targets": _list(targets, target_offsets[begin : end + 1], pa.list_(target_type(spec))),
        }
        yield timelines, _request_batch(requests.slice(begin, end - begin), columns, requests_schema(spec))


def _requests_in_order(
    bucket: Bucket, spec: BuildSpec, segments: Segments
) -> tuple[pl.DataFrame, Int64Array, pa.StructArray]:
    order = segments.request_order
    sizes = np.diff(bucket.requests.target_offsets)[order]
    offsets = offsets_of(sizes)
    targets = bucket.requests.targets[ranges(bucket.requests.target_offsets[:-1][order], sizes)]
    kind = target_type(spec)
    labels = spec.requests.labels
    names = {f.name: f"label.{f.name}" if f.name in labels else f"target.{f.name}" for f in kind}
    return bucket.requests.requests[order], offsets, _struct(targets, {**names, "item_id": "item_id"}, kind)


def _request_batch(requests: pl.DataFrame, columns: dict[str, pa.Array | None], schema: pa.Schema) -> pa.RecordBatch:
    """Assemble the request columns of a block: those computed in `columns`, the others from the frame."""
    arrays = []
    for field in schema:
        made = columns.get(field.name)
        name = f"request.{field.name}" if f"request.{field.name}" in requests.columns else field.name
        arrays.append(requests[name].rechunk().to_arrow().cast(field.type) if made is None else made)
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
