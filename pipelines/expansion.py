"""Requests cut into their timelines, and the tables that copy histories out of them: sample level and request level.

At the sample level there is one row per target: the columns of its request, `history_<column>` (a list for each column
of the history's events), and `target_<column>` for each column of the target, its labels at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longbatch.schemas.errors import SpecError
from longbatch.schemas.format.shard import Block
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.tables import event_type, requests_schema, target_type
from longbatch.schemas.types import Int64Array

POINTERS = ("segment", "timeline_row", "history_end", "targets")
OFFSET_BYTES = 4


@dataclass(frozen=True)
class Cuts:
    """R requests with S events and G targets: each has a slice of the events and a slice of the targets.

    own: R rows, the requests' own columns. events: (S,) struct, targets: (G,) struct. history_start, history_end: (R,)
    into the events. target_offsets: (R + 1,) into the targets.
    """

    own: pa.RecordBatch
    events: pa.StructArray
    targets: pa.StructArray
    history_start: Int64Array
    history_end: Int64Array
    target_offsets: Int64Array

    @property
    def history_sizes(self) -> Int64Array:
        """Events in the history of each request: (R,)."""
        return self.history_end - self.history_start

    @property
    def target_counts(self) -> Int64Array:
        """Targets of each request: (R,)."""
        return np.diff(self.target_offsets)

    @property
    def event_bytes(self) -> float:
        """Mean decoded bytes of an event."""
        return _mean_bytes(self.events)

    @property
    def target_bytes(self) -> float:
        """Mean decoded bytes of a target."""
        return _mean_bytes(self.targets)

    @property
    def request_bytes(self) -> float:
        """Mean decoded bytes of a request's own columns: id, user, time, request features."""
        return float(self.own.nbytes / max(1, self.own.num_rows))

    @property
    def copy_bytes(self) -> npt.NDArray[np.float64]:
        """Decoded bytes of each request's own columns and history, copied out: (R,)."""
        offsets = OFFSET_BYTES * self.events.type.num_fields
        return np.asarray(self.request_bytes + offsets + self.history_sizes * self.event_bytes)


def _mean_bytes(records: pa.StructArray) -> float:
    return float(sum(column.nbytes for column in records.flatten()) / max(1, len(records)))


def cut_requests(block: Block, history_length: int) -> Cuts:
    """Say where in the events of a block the history of each request lies; nothing is copied."""
    events, targets = block.timelines["events"], block.requests["targets"]
    starts = list_offsets(events)[:-1][block.requests["timeline_row"].to_numpy()]
    ends = starts + block.requests["history_end"].to_numpy()
    return Cuts(
        own=block.requests.drop_columns(list(POINTERS)),
        events=events.flatten(),
        targets=targets.flatten(),
        history_start=np.maximum(starts, ends - history_length),
        history_end=ends,
        target_offsets=list_offsets(targets),
    )


def list_offsets(lists: pa.ListArray) -> Int64Array:
    """Offsets into the flattened values of a list array without nulls, (N + 1,)."""
    offsets = lists.offsets.to_numpy()[: len(lists) + 1]
    return np.asarray(offsets - offsets[0], dtype=np.int64)


def sample_schema(spec: BuildSpec) -> pa.Schema:
    """Columns of the sample level. Raises SpecError where a request feature has the name of another column."""
    own = [field for field in requests_schema(spec) if field.name not in POINTERS]
    history = [pa.field(f"history_{field.name}", pa.list_(field.type)) for field in event_type(spec)]
    targets = [pa.field(f"target_{field.name}", field.type) for field in target_type(spec)]
    twice = {field.name for field in own} & {field.name for field in (*history, *targets)}
    if twice:
        raise SpecError(
            f"request features {sorted(twice)} have the names of history or target columns of the sample level; "
            "build the dataset with other names for them"
        )
    return pa.schema([*own, *history, *targets])


def history_columns(cuts: Cuts, requests: Int64Array) -> dict[str, pa.Array]:
    """One list column for each column of the events, the history of each of the given requests copied out: N lists."""
    sizes = cuts.history_sizes[requests]
    offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32))
    starts, sizes = (pa.array(values.astype(np.int32)) for values in (cuts.history_start[requests], sizes))
    return {
        f"history_{field.name}": pa.ListArray.from_arrays(
            offsets, pa.ListViewArray.from_arrays(starts, sizes, values).flatten()
        )
        for field, values in zip(cuts.events.type, cuts.events.flatten(), strict=True)
    }


def sample_level(cuts: Cuts, requests: Int64Array, targets: Int64Array) -> pa.Table:
    """One row per target, N rows: columns and whole history of its request (row of `own`) copied into it."""
    own = cuts.own.take(pa.array(requests))
    chosen = pa.array(targets)
    fields = zip(cuts.targets.type, cuts.targets.flatten(), strict=True)
    shown = {f"target_{field.name}": values.take(chosen) for field, values in fields}
    histories = history_columns(cuts, requests)
    return pa.table([*own.columns, *histories.values(), *shown.values()], [*own.schema.names, *histories, *shown])


def request_level(cuts: Cuts, requests: Int64Array) -> pa.Table:
    """One row per request, N rows: its whole history copied into it, its targets nested."""
    own = cuts.own.take(pa.array(requests))
    offsets = pa.array(cuts.target_offsets.astype(np.int32))
    targets = pa.ListArray.from_arrays(offsets, cuts.targets).take(pa.array(requests))
    histories = history_columns(cuts, requests)
    return pa.table([*own.columns, *histories.values(), targets], [*own.schema.names, *histories, "targets"])
