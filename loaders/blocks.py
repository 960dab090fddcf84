"""A block of a dataset as numpy views into its Arrow buffers, with the columns that a reader selects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longbatch.schemas.errors import DatasetError
from longbatch.schemas.format.physical_schema import Fields
from longbatch.schemas.format.shard_reader import Block
from longbatch.schemas.types import ArrowArray, ArrowListArray, BoolArray, Int64Array

Array = NDArray[Any]
"""A numpy array of any dtype: the dtypes of features are those of the build spec."""

Column = tuple[str, str | None]
"""A field of RequestBatch, and the name within it; the name is None where the field is a single tensor."""


@dataclass(frozen=True)
class TimeRange:
    """Request times `[after_us, before_us)` in microseconds since 1970 UTC; None leaves a side open."""

    after_us: int | None = None
    before_us: int | None = None

    def contains(self, times: Int64Array) -> BoolArray:
        """Return whether each of the times (N,), in microseconds since 1970 UTC, is in the range, (N,)."""
        # Half-open, so that the ranges before and after a split time contain each request exactly once.
        inside = np.ones(len(times), dtype=np.bool_)
        if self.after_us is not None:
            inside &= times >= self.after_us
        if self.before_us is not None:
            inside &= times < self.before_us
        return inside

    def overlaps(self, first: Int64Array, last: Int64Array) -> BoolArray:
        """Return whether the range contains a time of each [first, last], in microseconds since 1970 UTC, (N,)."""
        overlap = np.ones(len(first), dtype=np.bool_)
        if self.after_us is not None:
            overlap &= last >= self.after_us
        if self.before_us is not None:
            overlap &= first < self.before_us
        return overlap


@dataclass(frozen=True)
class Selection:
    """The columns to read of each role, besides item_id and event_time.

    Args:
        history: History features.
        targets: Target features.
        labels: Labels.
        requests: Request features.
        ids_are_row_numbers: Whether request ids are strings, so that batches contain the requests' row numbers instead.
    """

    history: tuple[str, ...]
    targets: tuple[str, ...]
    labels: tuple[str, ...]
    requests: tuple[str, ...]
    ids_are_row_numbers: bool

    @property
    def fields(self) -> Fields:
        """The fields that a shard's reader has to decode."""
        return Fields(events=self.history, targets=(*self.targets, *self.labels))


@dataclass(frozen=True)
class BlockView:
    """One block of N requests, E events and K targets. All blocks of a dataset have the same columns.

    Args:
        events: Columns of the history, (E,) each.
        targets: Columns of the targets and labels, (K,) each.
        requests: Columns of the request features, ids and times, (N,) each.
        spans: For each request the row of its timeline, where its newest L events begin and end in the events, and
            where its targets begin and end in the targets, (5, N).
        selected: Row numbers of the requests inside the time range, ascending.
    """

    events: dict[Column, Array]
    targets: dict[Column, Array]
    requests: dict[Column, Array]
    spans: Int64Array
    selected: Int64Array

    @property
    def column_groups(self) -> tuple[dict[Column, Array], ...]:
        """The columns of events, of targets and of requests."""
        return self.events, self.targets, self.requests


def open_block(
    block: Block, selection: Selection, lengths: Int64Array, first_row: int, times: TimeRange, where: str
) -> BlockView:
    """Create views of a block whose lists and offsets were checked when it was read.

    Nulls are read as 0, in floats as NaN. A null in an integer label is an error, because an unknown label is not a
    negative one.

    Args:
        block: The block as stored.
        selection: The columns to read.
        lengths: History length of each request, (N,).
        first_row: Requests of the dataset before this block.
        times: Range of request times to read.
        where: File and block number, for error messages.

    Returns:
        The views. A column with nulls, and a column of booleans, is a copy.

    Raises:
        DatasetError: A column that needs a value has nulls.

    Example:
        Timelines with event offsets [0 3 8], requests with timeline_row [0 1 1] and history_end [2 1 5], lengths all 3:
        histories begin at [0 3 5] and end at [2 4 8] in the events.
    """
    # Views into the decoded (or memory-mapped) Arrow buffers. They keep the buffers alive: evicting a block frees its
    # memory once the last thread that copies from it is done.
    requests = block.requests
    events_lists, target_lists = _lists(block.timelines, "events"), _lists(requests, "targets")
    events, targets = _records(events_lists), _records(target_lists)
    timeline = _required(requests["timeline_row"], "timeline_row", where).astype(np.int64)
    first_event, target_offsets = _offsets(events_lists)[timeline], _offsets(target_lists)
    # A list of Arrow has offsets into a flat array, so a history is a range of it: no events are copied here.
    history_end = first_event + _required(requests["history_end"], "history_end", where)
    # Without the maximum, a history shorter than its length would begin in the timeline of the user before.
    history_start = np.maximum(first_event, history_end - lengths)
    request_time = _required(requests["request_time"], "request_time", where)
    rows = np.arange(first_row, first_row + requests.num_rows)
    return BlockView(
        events={
            **{("history", name): _required(events.field(name), name, where) for name in ("item_id", "event_time")},
            **{("history", name): _filled(events.field(name)) for name in selection.history},
        },
        targets={
            ("targets", "item_id"): _required(targets.field("item_id"), "item_id", where),
            **{("targets", name): _filled(targets.field(name)) for name in selection.targets},
            **{("labels", name): _label(targets.field(name), name, where) for name in selection.labels},
        },
        requests={
            **{("requests", name): _filled(requests[name]) for name in selection.requests},
            ("request_id", None): rows if selection.ids_are_row_numbers else _filled(requests["request_id"]),
            ("user_id", None): _required(requests["user_id"], "user_id", where),
            ("request_time", None): request_time,
        },
        # One array of all bounds, so that the collator gathers the rows of a batch with a single `take` per block.
        spans=np.array([timeline, history_start, history_end, target_offsets[:-1], target_offsets[1:]]),
        selected=np.flatnonzero(times.contains(request_time)),
    )


def _lists(batch: pa.RecordBatch, name: str) -> ArrowListArray:
    column = batch[name]
    if not isinstance(column, pa.ListArray):
        raise TypeError(f"column {name!r} has type {column.type}, not a list")
    return column


def _records(lists: ArrowListArray) -> pa.StructArray:
    values: ArrowArray = lists.values
    if not isinstance(values, pa.StructArray):
        raise TypeError(f"a list has elements of type {values.type}, not records")
    return values


def _offsets(lists: ArrowListArray) -> Int64Array:
    """Offsets (N + 1,) into `lists.values`; Arrow may store none at all for zero rows."""
    # `values` ignores the offset of a sliced list array, so stored offsets fit as they are (`flatten` would not).
    return _numbers(lists.offsets).astype(np.int64) if len(lists) else np.zeros(1, dtype=np.int64)


def _numbers(values: ArrowArray) -> Array:
    """A numpy view of an array without nulls (a copy for booleans); times as int64 microseconds."""
    # Without nulls only booleans are copied: Arrow stores them as bits, NumPy and torch as bytes.
    array: Array = values.to_numpy(zero_copy_only=False)
    return array.view(np.int64) if array.dtype.kind == "M" else array


def _filled(values: ArrowArray) -> Array:
    """Numbers with nulls as 0, False or NaN."""
    # Nulls are replaced in Arrow: `to_numpy` would convert a column of integers with nulls to floats.
    if values.null_count:
        missing: float | int | bool = 0
        if pa.types.is_floating(values.type):
            missing = float("nan")
        elif pa.types.is_boolean(values.type):
            missing = False
        values = values.fill_null(pa.scalar(missing, values.type))
    return _numbers(values)


def _label(values: ArrowArray, name: str, where: str) -> Array:
    return _filled(values) if pa.types.is_floating(values.type) else _required(values, name, where)


def _required(values: ArrowArray, name: str, where: str) -> Array:
    if values.null_count:
        raise DatasetError(
            f"{where}: column {name!r} has {values.null_count} nulls, which cannot be read as numbers; "
            "give the column a default in the build spec, or leave it out"
        )
    return _numbers(values)
