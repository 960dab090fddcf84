"""Decode the blocks of a shard: from the stored columns of `physical_schema` to the tables in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longbatch.schemas.arrow import list_column
from longbatch.schemas.errors import DatasetError
from longbatch.schemas.ragged import list_offsets
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.tables import TIMESTAMP, event_type, requests_schema, target_type
from longbatch.schemas.types import ArrowArray, ArrowField, ArrowListArray, Int64Array

from .byte_planes import (
    TIME_UNITS_US,
    Deltas,
    from_deltas,
    from_planes,
    has_planes,
    make_lists,
)
from .dictionaries import Columns, TableName
from .event_references import REFERENCE, referenced_events, shared_fields
from .physical_schema import ALL_FIELDS, FIRST_TIME, TIME_UNIT, Fields, StoredColumn, stored_columns


class Decoder:
    """Decodes the blocks of one shard. Errors do not name the file, which the caller adds.

    Args:
        spec: Build spec.
        dictionaries: Dictionaries of the shard, from `read_dictionaries`.
        fields: Fields of events and targets to decode.
    """

    def __init__(self, spec: BuildSpec, dictionaries: Mapping[str, Columns], fields: Fields = ALL_FIELDS) -> None:
        self._dictionaries, self._one_log = dictionaries, spec.one_log
        self._event_fields = fields.select("events", event_type(spec))
        self._target_fields = fields.select("targets", target_type(spec))
        target_names = {field.name for field in self._target_fields}
        self._shared = (
            [name for name in ("item_id", *shared_fields(spec)) if name in target_names] if spec.one_log else []
        )
        # A target that refers to an event takes its shared fields from there, so these events' fields are decoded too.
        event_names = {field.name for field in self._event_fields}.union(self._shared)
        self._events = _columns_of(spec, "events", event_names)
        self._targets = _columns_of(spec, "targets", target_names | {REFERENCE})
        self._wanted = event_names | target_names | {REFERENCE}
        self._own = [name for name in requests_schema(spec).names if name != "targets"]

    @property
    def stored_events(self) -> list[str]:
        """The list columns of the timelines file that the chosen fields need."""
        return [f"events.{column.name}" for column in self._events]

    def timelines(self, stored: pa.RecordBatch) -> tuple[pa.RecordBatch, Columns]:
        """Decode timelines.

        Args:
            stored: Record batch of the timelines file.

        Returns:
            The timelines, and the decoded columns of events, which `requests` needs.

        Raises:
            DatasetError: The batch is not valid.
        """
        lists, offsets = _common_lists(stored, self.stored_events)
        columns = self._columns(self._events, lambda name: list_column(stored, f"events.{name}").flatten())
        # The stored `event_time` holds steps, which only the first times and the offsets turn into times.
        columns["event_time"] = _times(stored, columns["event_time"], offsets)
        events = make_lists(offsets, _structs(columns, self._event_fields), lists)
        arrays = [stored["user_id"], stored["segment"], events]
        return pa.RecordBatch.from_arrays(arrays, ["user_id", "segment", "events"]), columns

    def requests(self, stored: pa.RecordBatch, timelines: pa.RecordBatch, events: Columns) -> pa.RecordBatch:
        """Decode requests.

        Args:
            stored: Record batch of the requests file, whose `timeline_row` and `history_end` were checked.
            timelines: Decoded timelines.
            events: Decoded columns of their events.

        Returns:
            The requests.

        Raises:
            DatasetError: The batch is not valid.
        """
        lists = list_column(stored, "targets")
        offsets = list_offsets(lists)
        columns = self._columns(self._targets, cast(pa.StructArray, lists.flatten()).field)
        if self._one_log:
            # A gather by index, then a merge: shared fields come from the event if there is one, else from the target.
            references = columns[REFERENCE]
            event_offsets = list_offsets(list_column(timelines, "events"))
            indices = referenced_events(stored, event_offsets, offsets, references)
            is_reference = references.is_valid()
            for name in self._shared:
                columns[name] = pc.if_else(is_reference, events[name].take(indices), columns[name])
        targets = make_lists(offsets, _structs(columns, self._target_fields), lists)
        return pa.RecordBatch.from_arrays([*(stored[name] for name in self._own), targets], [*self._own, "targets"])

    def _columns(self, stored: Sequence[StoredColumn], values_of: Callable[[str], ArrowArray]) -> Columns:
        """The wanted fields of all records, (T,) each, from the values of the stored columns."""
        # Indices are looked up in all wanted fields of their dictionary. Other fields are never gathered.
        columns: Columns = {}
        for column in stored:
            values = values_of(column.name)
            values = _assembled(values, column)
            if column.dictionary is None:
                columns[column.name] = values
                continue
            entries = self._dictionaries[column.dictionary]
            _check_indices(values, entries, column.dictionary)
            for name in self._wanted.intersection(column.fields):
                columns[name] = pc.take(entries[name], values, boundscheck=False)  # _check_indices did
        return columns


def _assembled(values: ArrowArray, column: StoredColumn) -> ArrowArray:
    """The values of a stored column, assembled from byte planes where its type has them."""
    return from_planes(cast(pa.StructArray, values), column.value_type) if has_planes(column.value_type) else values


def _columns_of(spec: BuildSpec, table: TableName, names: set[str]) -> list[StoredColumn]:
    """The stored columns that any of these fields is decoded from."""
    return [column for column in stored_columns(spec, table) if names.intersection(column.fields)]


def _structs(columns: Columns, fields: list[ArrowField]) -> pa.StructArray:
    return pa.StructArray.from_arrays([columns[field.name] for field in fields], fields=fields)


def _times(stored: pa.RecordBatch, steps: ArrowArray, offsets: Int64Array) -> ArrowArray:
    # The unit is the same for all timelines of a block, stored in every row.
    units = cast("list[int]", stored[TIME_UNIT].unique().to_pylist())
    if len(units) > 1 or not set(units) <= set(TIME_UNITS_US):
        raise DatasetError(f"{TIME_UNIT} is {units}, but must be one of {TIME_UNITS_US}")
    if stored[FIRST_TIME].null_count:
        raise DatasetError(f"{FIRST_TIME} has nulls but must have none")
    # Timestamps are int64 microseconds, so a view is enough.
    first = stored[FIRST_TIME].view(pa.int64()).to_numpy()
    return from_deltas(Deltas(first, units[0] if units else 1, steps), offsets, TIMESTAMP)


def _check_indices(indices: ArrowArray, entries: Columns, name: str) -> None:
    # One pass for the minimum and maximum costs far less than a bounds check for every element of every field.
    bounds, count = pc.min_max(indices), len(next(iter(entries.values())))
    if bounds["min"].is_valid and not 0 <= bounds["min"].as_py() <= bounds["max"].as_py() < count:
        raise DatasetError(
            f"an index into the dictionary {name!r} is outside its {count} entries: "
            f"{bounds['min'].as_py()} to {bounds['max'].as_py()}"
        )


def _common_lists(stored: pa.RecordBatch, names: Sequence[str]) -> tuple[ArrowListArray, Int64Array]:
    """The first of the list columns, and the offsets that all of them must have."""
    # All fields of an event are at the same index of their lists, so the lists of a timeline must be equally long.
    first = list_column(stored, names[0])
    offsets = list_offsets(first)
    for name in names[1:]:
        if (
            not np.array_equal(list_offsets(list_column(stored, name)), offsets)
            or stored[name].null_count != first.null_count
        ):
            raise DatasetError(f"the lists of {names[0]!r} and {name!r} differ in length")
    return first, offsets
