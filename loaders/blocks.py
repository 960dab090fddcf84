"""A block of a dataset as numpy views into its Arrow buffers, of the columns a reader selects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longbatch.loaders.draws import Ints
from longbatch.schemas.errors import DatasetError
from longbatch.schemas.shard import Block
from longbatch.schemas.stored import Fields

Array = NDArray[Any]


@dataclass(frozen=True)
class Selection:
    """The columns to read of each role, besides item_id and event_time, and where request ids come from.

    row_ids: whether request ids are text, so that batches hold the requests' row numbers instead.
    """

    history: tuple[str, ...]
    targets: tuple[str, ...]
    labels: tuple[str, ...]
    requests: tuple[str, ...]
    row_ids: bool

    @property
    def fields(self) -> Fields:
        """What a shard's reader decodes for it."""
        return Fields(events=self.history, targets=(*self.targets, *self.labels))


@dataclass(frozen=True)
class OpenBlock:
    """One block as numpy views into its Arrow buffers; N requests, E events, K targets.

    history, targets, labels, requests: name -> (E,), (K,), (K,), (N,).  request_id, user_id,
    request_time: (N,).  timeline: (N,) rows of the timelines.  history_start, history_end: (N,) places in the events
    of the request's own newest L: its history is `[start, end)`.  target_offsets: (N + 1,).  eligible: row numbers of
    the requests inside the time range.
    """

    history: dict[str, Array]
    targets: dict[str, Array]
    labels: dict[str, Array]
    requests: dict[str, Array]
    request_id: Array
    user_id: Array
    request_time: Array
    timeline: Ints
    history_start: Ints
    history_end: Ints
    target_offsets: Ints
    eligible: Ints


def open_block(
    block: Block,
    selection: Selection,
    lengths: Ints,
    first_row: int,
    times_us: tuple[int | None, int | None],
    where: str,
) -> OpenBlock:
    """Views of a block whose lists and offsets were checked when it was read.

    first_row is the block's first request among all of the dataset; times_us the range
    `[after, before)` of request times. Nulls are read as 0, in floats as NaN, in integer labels as an
    error: an unknown label is not a negative one. Raises DatasetError naming `where` and the column.
    """
    requests, events, targets = block.requests, block.timelines["events"], block.requests["targets"]
    timeline = _required(requests["timeline_row"], "timeline_row", where).astype(np.int64)
    first_event = _offsets(events)[timeline]
    history_end = first_event + _required(requests["history_end"], "history_end", where)
    request_time = _required(requests["request_time"], "request_time", where)
    rows = np.arange(first_row, first_row + requests.num_rows)
    return OpenBlock(
        history={
            **{name: _required(events.values.field(name), name, where) for name in ("item_id", "event_time")},
            **{name: _filled(events.values.field(name)) for name in selection.history},
        },
        targets={
            "item_id": _required(targets.values.field("item_id"), "item_id", where),
            **{name: _filled(targets.values.field(name)) for name in selection.targets},
        },
        labels={name: _label(targets.values.field(name), name, where) for name in selection.labels},
        requests={name: _filled(requests[name]) for name in selection.requests},
        request_id=rows if selection.row_ids else _filled(requests["request_id"]),
        user_id=_required(requests["user_id"], "user_id", where),
        request_time=request_time,
        timeline=timeline,
        history_start=np.maximum(first_event, history_end - lengths),
        history_end=history_end,
        target_offsets=_offsets(targets),
        eligible=np.flatnonzero(within(request_time, times_us)),
    )


def within(times: Ints, times_us: tuple[int | None, int | None]) -> NDArray[np.bool_]:
    """Whether each time (N,) lies in `[after, before)`; None leaves a side open."""
    after, before = times_us
    inside = np.ones(len(times), dtype=np.bool_)
    if after is not None:
        inside &= times >= after
    if before is not None:
        inside &= times < before
    return inside


def _offsets(lists: pa.ListArray) -> Ints:
    """Offsets (N + 1,) int64 into `lists.values`; none are stored for no rows."""
    return _numbers(lists.offsets).astype(np.int64) if len(lists) else np.zeros(1, dtype=np.int64)


def _numbers(values: pa.Array) -> Array:
    """A numpy view of an array without nulls (a copy for booleans); times as int64 microseconds."""
    if pa.types.is_timestamp(values.type):
        values = values.view(pa.int64())
    array: Array = values.to_numpy(zero_copy_only=False)
    return array


def _filled(values: pa.Array) -> Array:
    if values.null_count:
        empty: float | int | bool = 0
        if pa.types.is_floating(values.type):
            empty = float("nan")
        elif pa.types.is_boolean(values.type):
            empty = False
        values = values.fill_null(pa.scalar(empty, values.type))
    return _numbers(values)


def _label(values: pa.Array, name: str, where: str) -> Array:
    return _filled(values) if pa.types.is_floating(values.type) else _required(values, name, where)


def _required(values: pa.Array, name: str, where: str) -> Array:
    if values.null_count:
        raise DatasetError(
            f"{where}: column {name!r} has {values.null_count} nulls, which have no value to read; "
            "give it a default in the build spec, or leave the column out"
        )
    return _numbers(values)
