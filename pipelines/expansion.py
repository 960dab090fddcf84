"""Histories as slices of timelines, and the tables that copy them out: sample level and request level.

The sample level has one row per target: the columns of its request, `history_<column>` (a list) for each column of the
history's events, and `target_<column>` for each column of the target, labels last. The request level has one row per
request, with its targets nested.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longbatch.schemas.arrow import gather_slices, int32_array
from longbatch.schemas.errors import SpecError
from longbatch.schemas.format.shard_reader import Block
from longbatch.schemas.ragged import list_offsets, offsets_of
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.tables import event_type, requests_schema, target_type
from longbatch.schemas.types import ArrowArray, ArrowListArray, Int64Array

# Columns of the requests table that point into the timelines table, or hold the targets.
POINTER_COLUMNS = ("segment", "timeline_row", "history_end", "targets")
OFFSET_BYTES = 4


@dataclass(frozen=True)
class HistorySlices:
    """R requests over T events and G targets: each request has a slice of the events and a slice of the targets.

    Attributes:
        request_columns: The requests' own columns, R rows.
        events: All events, (T,) struct.
        targets: All targets, (G,) struct.
        history_start: First event of each request's history, (R,).
        history_end: End of each request's history, exclusive, (R,).
        target_offsets: Offsets of each request's targets, (R + 1,).
    """

    request_columns: pa.RecordBatch
    events: pa.StructArray
    targets: pa.StructArray
    history_start: Int64Array
    history_end: Int64Array
    target_offsets: Int64Array

    @property
    def history_sizes(self) -> Int64Array:
        """Events in the history of each request, (R,)."""
        return self.history_end - self.history_start

    @property
    def target_counts(self) -> Int64Array:
        """Targets of each request, (R,)."""
        return np.diff(self.target_offsets)

    @property
    def event_bytes(self) -> float:
        """Mean bytes of an event in memory."""
        return _mean_bytes(self.events)

    @property
    def target_bytes(self) -> float:
        """Mean bytes of a target in memory."""
        return _mean_bytes(self.targets)

    @property
    def request_bytes(self) -> float:
        """Mean bytes in memory of a request's own columns: id, user, time, request features."""
        return float(self.request_columns.nbytes / max(1, self.request_columns.num_rows))

    @property
    def copy_bytes(self) -> npt.NDArray[np.float64]:
        """Bytes in memory of each request's own columns and its history copied out, (R,)."""
        # A copied history is one list per event column, each with an offset.
        offsets = OFFSET_BYTES * self.events.type.num_fields
        return np.asarray(self.request_bytes + offsets + self.history_sizes * self.event_bytes)


def _mean_bytes(records: pa.StructArray) -> float:
    return float(sum(column.nbytes for column in records.flatten()) / max(1, len(records)))


def slice_histories(block: Block, history_length: int) -> HistorySlices:
    """Locate the history of each request among the events of a block, without copying.

    Args:
        block: Timelines and requests that belong together.
        history_length: The newest events of a history to include.

    Returns:
        Slices into the block's events and targets.
    """
    events = cast("ArrowListArray", block.timelines["events"])
    targets = cast("ArrowListArray", block.requests["targets"])
    # timeline_row points to a timeline, and history_end counts from the start of that timeline.
    starts = list_offsets(events)[:-1][block.requests["timeline_row"].to_numpy()]
    ends = starts + block.requests["history_end"].to_numpy()
    return HistorySlices(
        request_columns=block.requests.drop_columns(list(POINTER_COLUMNS)),
        events=cast("pa.StructArray", events.flatten()),
        targets=cast("pa.StructArray", targets.flatten()),
        # The newest L events, but never an event of the timeline before it in the same array.
        history_start=np.maximum(starts, ends - history_length),
        history_end=ends,
        target_offsets=list_offsets(targets),
    )


def sample_schema(spec: BuildSpec) -> pa.Schema:
    """Return the Arrow schema of the sample level.

    Args:
        spec: The build spec.

    Returns:
        Request columns, then history columns, then target columns.

    Raises:
        SpecError: A request feature has the name of a history or target column.
    """
    request = [field for field in requests_schema(spec) if field.name not in POINTER_COLUMNS]
    history = [pa.field(f"history_{field.name}", pa.list_(field.type)) for field in event_type(spec)]
    targets = [pa.field(f"target_{field.name}", field.type) for field in target_type(spec)]
    # A table cannot have two columns of one name, and the prefixes do not exclude it: a request feature may be called
    # history_item_id.
    duplicates = {field.name for field in request} & {field.name for field in (*history, *targets)}
    if duplicates:
        raise SpecError(
            f"request features {sorted(duplicates)} have the names of history or target columns of the sample level. "
            "Rename these features in the spec and build the dataset again."
        )
    return pa.schema([*request, *history, *targets])


def sample_level(slices: HistorySlices, requests: Int64Array, targets: Int64Array) -> pa.Table:
    """Build sample-level rows: the columns and the history of a request, copied next to a target.

    Args:
        slices: Requests over events and targets.
        requests: Request of each row, (N,).
        targets: Target of each row, (N,).

    Returns:
        N rows with the columns of `sample_schema`.
    """
    columns = slices.request_columns.take(requests)
    fields = zip(slices.targets.type, slices.targets.flatten(), strict=True)
    target_columns = {f"target_{field.name}": values.take(targets) for field, values in fields}
    histories = _history_columns(slices, requests)
    return pa.table(
        [*columns.columns, *histories.values(), *target_columns.values()],
        [*columns.schema.names, *histories, *target_columns],
    )


def request_level(slices: HistorySlices, requests: Int64Array) -> pa.Table:
    """Build request-level rows: a request's columns, its history copied, and its targets nested.

    Args:
        slices: Requests over events and targets.
        requests: Request of each row, (N,).

    Returns:
        N rows: request columns, history columns, and the list column `targets`.
    """
    columns = slices.request_columns.take(requests)
    targets = pa.ListArray.from_arrays(int32_array(slices.target_offsets), slices.targets).take(requests)
    histories = _history_columns(slices, requests)
    return pa.table([*columns.columns, *histories.values(), targets], [*columns.schema.names, *histories, "targets"])


def _history_columns(slices: HistorySlices, requests: Int64Array) -> dict[str, ArrowArray]:
    """Copy the histories of N requests into one list column of N lists per event column.

    Events [a, b, c, d], history slices [0, 2) and [1, 4), requests [1, 0, 1]:
    starts = [1, 0, 1], sizes = [3, 2, 3], offsets = [0, 3, 5, 8].
    Each column becomes [[b, c, d], [a, b], [b, c, d]].
    """
    starts, sizes = slices.history_start[requests], slices.history_sizes[requests]
    offsets = int32_array(offsets_of(sizes))
    return {
        f"history_{field.name}": pa.ListArray.from_arrays(offsets, gather_slices(values, starts, sizes))
        for field, values in zip(slices.events.type, slices.events.flatten(), strict=True)
    }
