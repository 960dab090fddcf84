"""A block of a dataset as numpy views into its Arrow buffers, of the columns a reader selects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longbatch.schemas.errors import DatasetError
from longbatch.schemas.format.physical_schema import Fields
from longbatch.schemas.format.shard_reader import Block

from .rng import Ints

Array = NDArray[Any]
Column = tuple[str, str | None]  # a field of RequestBatch, and the name in it; None where the field is the column


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
    """One block as numpy views into its Arrow buffers; N requests, E events, K targets. All blocks of a dataset have the same columns.

    events, targets, requests: a batch's column -> (E,), (K,), (N,); of a batch's targets and labels, and of its request features, ids
    and times.  spans: (5, N) for each request the row of its timeline, where in the events its own newest L begin and end, and where
    in the targets its own do.  eligible: row numbers of the requests inside the time range.
    """

    events: dict[Column, Array]
    targets: dict[Column, Array]
    requests: dict[Column, Array]
    spans: Ints
    eligible: Ints

    @property
    def kinds(self) -> tuple[dict[Column, Array], ...]:
        """The columns of events, of targets and of requests."""
        return self.events, self.targets, self.requests


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
    requests, lists, target_lists = block.requests, block.timelines["events"], block.requests["targets"]
    events, targets = lists.values, target_lists.values
    timeline = _required(requests["timeline_row"], "timeline_row", where).astype(np.int64)
    first_event, target_offsets = _offsets(lists)[timeline], _offsets(target_lists)
    history_end = first_event + _required(requests["history_end"], "history_end", where)
    history_start = np.maximum(first_event, history_end - lengths)
    request_time = _required(requests["request_time"], "request_time", where)
    rows = np.arange(first_row, first_row + requests.num_rows)
    return OpenBlock(
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
            ("request_id", None): rows if selection.row_ids else _filled(requests["request_id"]),
            ("user_id", None): _required(requests["user_id"], "user_id", where),
            ("request_time", None): request_time,
        },
        spans=np.array([timeline, history_start, history_end, target_offsets[:-1], target_offsets[1:]]),
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
    array: Array = values.to_numpy(zero_copy_only=False)
    return array.view(np.int64) if array.dtype.kind == "M" else array


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
