"""Blocks of a shard, as they are stored -> as they are meant; see `stored`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longbatch.schemas.errors import DatasetError
from longbatch.schemas.ragged import list_offsets
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.tables import TIMESTAMP, event_type, requests_schema, target_type
from longbatch.schemas.types import Int64Array

from .back_references import REFERENCE, referred_places, shared_fields
from .byte_planes import (
    TIME_UNITS_US,
    Deltas,
    from_deltas,
    from_planes,
    has_planes,
    make_lists,
)
from .dictionaries import Columns, TableName
from .physical_schema import ALL_FIELDS, FIRST_TIME, TIME_UNIT, Fields, StoredColumn, stored_columns


class Decoder:
    """Decodes stored blocks of one shard. dictionaries: those of its file; fields: what to decode.

    Raises DatasetError, without a place, where a block is not what an encoder wrote.
    """

    def __init__(self, spec: BuildSpec, dictionaries: Mapping[str, Columns], fields: Fields = ALL_FIELDS) -> None:
        self._dictionaries, self._one_log = dictionaries, spec.one_log
        self._event_fields = fields.of("events", event_type(spec))
        self._target_fields = fields.of("targets", target_type(spec))
        asked = {field.name for field in self._target_fields}
        self._shared = [name for name in ("item_id", *shared_fields(spec)) if name in asked] if spec.one_log else []
        events = {field.name for field in self._event_fields}.union(self._shared)
        self._events = _giving(spec, "events", events)
        self._targets = _giving(spec, "targets", asked | {REFERENCE})
        self._wanted = events | asked | {REFERENCE}
        self._own = [name for name in requests_schema(spec).names if name != "targets"]

    @property
    def stored_events(self) -> list[str]:
        """The list columns of timelines that the chosen fields need."""
        return [f"events.{column.name}" for column in self._events]

    def timelines(self, stored: pa.RecordBatch) -> tuple[pa.RecordBatch, Columns]:
        """The logical timelines, and all decoded columns of events, for the targets that refer to them."""
        lists, offsets = _common_lists(stored, self.stored_events)
        columns = self._columns(self._events, lambda name: stored[f"events.{name}"].flatten())
        columns["event_time"] = _times(stored, columns["event_time"], offsets)
        events = make_lists(offsets, _structs(columns, self._event_fields), lists)
        arrays = [stored["user_id"], stored["segment"], events]
        return pa.RecordBatch.from_arrays(arrays, ["user_id", "segment", "events"]), columns

    def requests(self, stored: pa.RecordBatch, timelines: pa.RecordBatch, events: Columns) -> pa.RecordBatch:
        """The logical requests; `timeline_row` and `history_end` must have been checked."""
        lists, offsets = stored["targets"], list_offsets(stored["targets"])
        columns = self._columns(self._targets, lists.flatten().field)
        if self._one_log:
            ahead = columns[REFERENCE]
            places = referred_places(stored, list_offsets(timelines["events"]), offsets, ahead)
            refers = ahead.is_valid()
            for name in self._shared:
                columns[name] = pc.if_else(refers, events[name].take(places), columns[name])
        targets = make_lists(offsets, _structs(columns, self._target_fields), lists)
        return pa.RecordBatch.from_arrays([*(stored[name] for name in self._own), targets], [*self._own, "targets"])

    def _columns(self, stored: Sequence[StoredColumn], values_of: Callable[[str], pa.Array]) -> Columns:
        """The wanted fields of all records, (T,) each, from the values of the stored columns."""
        columns: Columns = {}
        for column in stored:
            values = values_of(column.name)
            values = from_planes(values, column.kind) if has_planes(column.kind) else values
            if column.dictionary is None:
                columns[column.name] = values
                continue
            entries = self._dictionaries[column.dictionary]
            _check_places(values, entries, column.dictionary)
            for name in self._wanted.intersection(column.gives):
                columns[name] = pc.take(entries[name], values, boundscheck=False)
        return columns


def _giving(spec: BuildSpec, table: TableName, names: set[str]) -> list[StoredColumn]:
    """The stored columns that give any of these fields."""
    return [column for column in stored_columns(spec, table) if names.intersection(column.gives)]


def _structs(columns: Columns, fields: list[pa.Field]) -> pa.StructArray:
    return pa.StructArray.from_arrays([columns[field.name] for field in fields], fields=fields)


def _times(stored: pa.RecordBatch, steps: pa.Array, offsets: Int64Array) -> pa.Array:
    units = stored[TIME_UNIT].unique().to_pylist()
    if len(units) > 1 or not set(units) <= set(TIME_UNITS_US) or stored[FIRST_TIME].null_count:
        raise DatasetError(f"{TIME_UNIT} is {units}, and must be one of {TIME_UNITS_US}; or {FIRST_TIME} is null")
    first = stored[FIRST_TIME].view(pa.int64()).to_numpy()
    return from_deltas(Deltas(first, units[0] if units else 1, steps), offsets, TIMESTAMP)


def _check_places(places: pa.Array, entries: Columns, name: str) -> None:
    bounds, count = pc.min_max(places), len(next(iter(entries.values())))
    if bounds["min"].is_valid and not 0 <= bounds["min"].as_py() <= bounds["max"].as_py() < count:
        raise DatasetError(
            f"a place in the dictionary {name!r} is outside its {count} entries: "
            f"{bounds['min'].as_py()} to {bounds['max'].as_py()}"
        )


def _common_lists(stored: pa.RecordBatch, names: Sequence[str]) -> tuple[pa.ListArray, Int64Array]:
    """The offsets that all list columns have. Raises DatasetError if they differ."""
    first = stored[names[0]]
    offsets = list_offsets(first)
    for name in names[1:]:
        if not np.array_equal(list_offsets(stored[name]), offsets) or stored[name].null_count != first.null_count:
            raise DatasetError(f"the lists of {names[0]!r} and {name!r} differ in length")
    return first, offsets
