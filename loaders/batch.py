"""The batch that models consume: requests with their histories (windows form), targets and labels.

Ragged data is flat values plus offsets: the events of request r are
`history[name][history_offsets[r] : history_offsets[r + 1]]`, oldest first; its targets are
`targets[name][target_offsets[r] : target_offsets[r + 1]]`. Nothing is padded, and a history is held
once however many targets its request has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from longbatch.loaders import plan
from longbatch.schemas.errors import DatasetError
from longbatch.schemas.shard import Block

Columns = dict[str, Tensor]
Array = NDArray[Any]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class RequestBatch:
    """R requests with T history events and G targets in all.

    history: name -> (T,): `item_id` int64, `event_time` int64 microseconds since 1970 UTC, features.
    history_offsets: (R + 1,) int64, from 0 to T.
    targets: name -> (G,): `item_id` int64, target features.  target_offsets: (R + 1,) int64, 0 to G.
    labels: name -> (G,).  requests: name -> (R,), the request features.
    request_id, user_id: (R,) int64.  request_time: (R,) int64 microseconds since 1970 UTC.
    is_padding: true for the empty batch (R = G = T = 0) that a rank without data yields so that all
    ranks take the same number of steps; it weighs nothing in a loss summed over targets.
    """

    history: Columns
    history_offsets: Tensor
    targets: Columns
    target_offsets: Tensor
    labels: Columns
    requests: Columns
    request_id: Tensor
    user_id: Tensor
    request_time: Tensor
    is_padding: bool = False

    @property
    def num_requests(self) -> int:
        """R, the number of requests."""
        return self.request_id.shape[0]

    @property
    def num_targets(self) -> int:
        """G, the number of targets of all requests."""
        return self.targets["item_id"].shape[0]

    @property
    def num_events(self) -> int:
        """T, the number of history events of all requests."""
        return self.history["item_id"].shape[0]

    def map(self, function: Callable[[Tensor], Tensor]) -> RequestBatch:
        """The batch with `function` applied to each of its tensors."""
        values: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, dict):
                values[field.name] = {name: function(tensor) for name, tensor in value.items()}
            elif isinstance(value, Tensor):
                values[field.name] = function(value)
        return replace(self, **values)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> RequestBatch:
        """The batch on `device`; pinned batches copy asynchronously with `non_blocking`."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> RequestBatch:
        """The batch in page-locked memory; DataLoader calls this under `pin_memory=True`."""
        return self.map(lambda tensor: tensor.pin_memory())

    def newest(self, length: int) -> RequestBatch:
        """The batch with each history cut to its newest `length` events.

        Equal to reading the dataset with `history_length=length`. Raises ValueError below 0.
        """
        if length < 0:
            raise ValueError(f"history length {length} is negative; give 0 or more")
        ends = self.history_offsets[1:]
        lengths = (ends - self.history_offsets[:-1]).clamp(max=length)
        offsets = offsets_of(lengths)
        index = ragged_index(ends - lengths, lengths)
        history = {name: values[index] for name, values in self.history.items()}
        return replace(self, history=history, history_offsets=offsets)

    def expand(self) -> RequestBatch:
        """The sample-level batch: one request per target, each with its own copy of the history.

        What a loader without request-level batching would yield; the reference for savings and tests.
        Shapes: R becomes G, T becomes the sum over targets of their history lengths.
        """
        counts = self.target_offsets.diff()
        owner = torch.repeat_interleave(torch.arange(self.num_requests, device=counts.device), counts)
        lengths = self.history_offsets.diff()[owner]
        index = ragged_index(self.history_offsets[:-1][owner], lengths)
        return replace(
            self,
            history={name: values[index] for name, values in self.history.items()},
            history_offsets=offsets_of(lengths),
            target_offsets=torch.arange(self.num_targets + 1, device=counts.device),
            requests={name: values[owner] for name, values in self.requests.items()},
            request_id=self.request_id[owner],
            user_id=self.user_id[owner],
            request_time=self.request_time[owner],
        )


def offsets_of(lengths: Tensor) -> Tensor:
    """Offsets (N + 1,) int64 of ragged rows with these lengths (N,)."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def ragged_index(starts: Tensor, lengths: Tensor) -> Tensor:
    """Indices (sum of lengths,) of the slices `[starts, starts + lengths)`, one after another."""
    ends = lengths.cumsum(0)
    shift = torch.repeat_interleave(starts - (ends - lengths), lengths)
    return torch.arange(shift.shape[0], device=shift.device) + shift


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


@dataclass(frozen=True)
class OpenBlock:
    """One block as numpy views into its Arrow buffers; N requests, E events, K targets.

    history, targets, labels, requests: name -> (E,), (K,), (K,), (N,).  request_id, user_id,
    request_time: (N,).  history_start, history_end: (N,) places in the events; the newest L events of a
    request are `[max(start, end - L), end)`.  target_offsets: (N + 1,).  lengths: (N,) each request's L.
    eligible: row numbers of the requests inside the time range.
    """

    history: dict[str, Array]
    targets: dict[str, Array]
    labels: dict[str, Array]
    requests: dict[str, Array]
    request_id: Array
    user_id: Array
    request_time: Array
    history_start: Ints
    history_end: Ints
    target_offsets: Ints
    lengths: Ints
    eligible: Ints


def open_block(
    block: Block,
    selection: Selection,
    lengths: Ints,
    first_row: int,
    times_us: tuple[int | None, int | None],
    where: str,
) -> OpenBlock:
    """Views of a block whose offsets were checked when it was read.

    first_row is the block's first request among all of the dataset; times_us the range
    `[after, before)` of request times. Nulls are read as 0, in floats as NaN, in integer labels as an
    error: an unknown label is not a negative one. Raises DatasetError naming `where` and the column.
    """
    requests, events, targets = block.requests, block.timelines["events"], block.requests["targets"]
    if events.null_count or targets.null_count:
        raise DatasetError(f"{where}: a list of events or targets is null; build the dataset again")
    event_offsets = _offsets(events)
    timeline = _required(requests["timeline_row"], "timeline_row", where)
    history_start = event_offsets[timeline]
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
        history_start=history_start,
        history_end=history_start + _required(requests["history_end"], "history_end", where),
        target_offsets=_offsets(targets),
        lengths=lengths,
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


def gather(pieces: Sequence[tuple[OpenBlock, Ints]]) -> RequestBatch:
    """A batch of the requests with these row numbers, one piece per block; the only copy on the way."""
    events = [_history_slices(block, rows) for block, rows in pieces]
    starts = [block.target_offsets[rows] for block, rows in pieces]
    counts = [block.target_offsets[rows + 1] - first for (block, rows), first in zip(pieces, starts, strict=True)]
    event_index = [plan.ragged_index(*slices) for slices in events]
    target_index = [plan.ragged_index(*slices) for slices in zip(starts, counts, strict=True)]
    blocks, rows_of = [block for block, _ in pieces], [rows for _, rows in pieces]
    return RequestBatch(
        history=_taken([block.history for block in blocks], event_index),
        history_offsets=offsets_of(_joined([length for _, length in events])),
        targets=_taken([block.targets for block in blocks], target_index),
        target_offsets=offsets_of(_joined(counts)),
        labels=_taken([block.labels for block in blocks], target_index),
        requests=_taken([block.requests for block in blocks], rows_of),
        request_id=_joined([block.request_id[rows] for block, rows in pieces]),
        user_id=_joined([block.user_id[rows] for block, rows in pieces]),
        request_time=_joined([block.request_time[rows] for block, rows in pieces]),
    )


def _history_slices(block: OpenBlock, rows: Ints) -> tuple[Ints, Ints]:
    """First events and lengths (len(rows),) of the newest L events of these requests."""
    end = block.history_end[rows]
    length = np.minimum(end - block.history_start[rows], block.lengths[rows])
    return end - length, length


def _taken(columns: Sequence[dict[str, Array]], index: Sequence[Ints]) -> Columns:
    return {
        name: _joined([block[name].take(places) for block, places in zip(columns, index, strict=True)])
        for name in columns[0]
    }


def _joined(parts: Sequence[Array]) -> Tensor:
    return torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts))


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
