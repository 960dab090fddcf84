"""Blocks as they are stored in the compact encoding, and back: the same rows, in columns that compress.

Events become a list for each field (`events.item_id`), so that one can be read without the others; targets, which are few,
stay a list of structs, for offsets of short lists cost more than their values. Wide values lie in planes, times of events as
deltas, ids and text in the shard's dictionaries, and a target that is a later event of its own timeline is a reference
to it. docs/format.md says the same to other languages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longbatch.schemas.dictionaries import (
    INDEX,
    Columns,
    TableName,
    build_dictionary,
    dictionaries_batch,
    dictionaries_of,
)
from longbatch.schemas.encoding import (
    Deltas,
    Int64Array,
    from_deltas,
    from_planes,
    has_planes,
    list_offsets,
    make_lists,
    plane_type,
    to_deltas,
    to_planes,
)
from longbatch.schemas.errors import DatasetError
from longbatch.schemas.references import REFERENCE, find_references, referred_places, shared_fields
from longbatch.schemas.spec import BuildSpec
from longbatch.schemas.tables import TIMESTAMP, event_type, requests_schema, target_type, timelines_schema

FIRST_TIME, TIME_UNIT = "first_event_time", "time_unit_us"
Batches = tuple[pa.RecordBatch, pa.RecordBatch]
Dictionaries = Mapping[str, Columns]


@dataclass(frozen=True)
class Fields:
    """Which fields of events and of targets to read; None is all of them. item_id is always read, and event_time."""

    events: tuple[str, ...] | None = None
    targets: tuple[str, ...] | None = None

    def of(self, table: TableName, kind: pa.StructType) -> list[pa.Field]:
        """The chosen fields of a table's struct, in its order."""
        chosen = self.events if table == "events" else self.targets
        always = ("item_id", "event_time")
        return [f for f in kind if chosen is None or f.name in chosen or f.name in always]


ALL_FIELDS = Fields()


def stored_columns(spec: BuildSpec, table: TableName) -> dict[str, pa.DataType]:
    """Stored column of a table's records -> logical type: places in dictionaries, references, and the other fields."""
    kind = event_type(spec) if table == "events" else target_type(spec)
    columns: dict[str, pa.DataType] = {}
    if table == "targets" and spec.one_log:
        columns[REFERENCE] = INDEX
    for name in kind.names:
        dictionary = _dictionary_of(spec, table, name)
        if dictionary is None:
            columns[name] = pa.int64() if name == "event_time" and table == "events" else kind.field(name).type
        else:
            columns[dictionary] = INDEX
    return columns


def _dictionary_of(spec: BuildSpec, table: TableName, name: str) -> str | None:
    """The stored column that holds a field by its place in a dictionary."""
    for dictionary in dictionaries_of(spec):
        if table in dictionary.tables and name in (f.name for f in dictionary.fields):
            return dictionary.column
    return None


def _stored_types(spec: BuildSpec, table: TableName) -> dict[str, pa.DataType]:
    columns = stored_columns(spec, table).items()
    return {name: plane_type(kind) if has_planes(kind) else kind for name, kind in columns}


def stored_timelines_schema(spec: BuildSpec) -> pa.Schema:
    """Arrow schema of a timelines file."""
    if not spec.is_compact:
        return timelines_schema(spec)
    ids = {"user_id": pa.int64(), "segment": pa.int32(), FIRST_TIME: TIMESTAMP, TIME_UNIT: pa.int32()}
    lists = {f"events.{name}": pa.list_(kind) for name, kind in _stored_types(spec, "events").items()}
    return pa.schema({**ids, **lists})


def stored_requests_schema(spec: BuildSpec) -> pa.Schema:
    """Arrow schema of a requests file: that of the plain table but for the fields of targets."""
    plain = requests_schema(spec)
    if not spec.is_compact:
        return plain
    targets = pa.list_(pa.struct(_stored_types(spec, "targets")))
    return plain.set(plain.get_field_index("targets"), pa.field("targets", targets))


@dataclass
class _Records:
    """The events, or the targets, of one block while they are encoded."""

    lists: pa.ListArray
    offsets: Int64Array
    columns: Columns = field(default_factory=dict)


def encode_blocks(spec: BuildSpec, blocks: Iterable[Batches]) -> tuple[pa.RecordBatch | None, Iterable[Batches]]:
    """Encode a shard's blocks: the dictionaries' one row, None where the spec has none, and the stored blocks.

    With dictionaries all blocks are held, for they must be known before the first block can be stored.
    """
    if not spec.is_compact:
        return None, blocks
    if not dictionaries_of(spec):
        return None, (_store(spec, block, *_split(spec, block)) for block in blocks)
    held = list(blocks)
    records = [_split(spec, block) for block in held]
    batch = _replace_by_places(spec, records) if held else None
    return batch, (_store(spec, block, *parts) for block, parts in zip(held, records, strict=True))


def _split(spec: BuildSpec, block: Batches) -> tuple[_Records, _Records]:
    """Take events and targets apart into columns; those of targets that refer to an event are null."""
    timelines, requests = block
    events, targets = _records(timelines["events"]), _records(requests["targets"])
    if spec.one_log:
        shared = shared_fields(spec)
        ahead = find_references(requests, events.columns, events.offsets, targets.columns, targets.offsets, shared)
        own = ahead.is_null()
        for name in ("item_id", *shared):
            column = targets.columns[name]
            targets.columns[name] = pc.if_else(own, column, pa.scalar(None, column.type))
        targets.columns[REFERENCE] = ahead
    return events, targets


def _records(lists: pa.ListArray) -> _Records:
    values = lists.flatten()
    return _Records(lists, list_offsets(lists), dict(zip(values.type.names, values.flatten(), strict=True)))


def _replace_by_places(spec: BuildSpec, records: Sequence[tuple[_Records, _Records]]) -> pa.RecordBatch:
    """Build the dictionaries over all blocks, and put places in them for what they hold."""
    built = {}
    for dictionary in dictionaries_of(spec):
        parts = [
            part
            for pair in records
            for part, table in zip(pair, ("events", "targets"), strict=True)
            if table in dictionary.tables
        ]
        built[dictionary.name], places = build_dictionary(dictionary, [part.columns for part in parts])
        for part, places_of in zip(parts, places, strict=True):
            for entry in dictionary.fields:
                del part.columns[entry.name]
            part.columns[dictionary.column] = places_of
    return dictionaries_batch(spec, built)


def _store(spec: BuildSpec, block: Batches, events: _Records, targets: _Records) -> Batches:
    timelines, requests = block
    deltas = to_deltas(events.columns["event_time"], events.offsets)
    events.columns["event_time"] = deltas.steps
    ids = [
        timelines["user_id"],
        timelines["segment"],
        pa.array(deltas.first).view(TIMESTAMP),
        pa.array(np.full(timelines.num_rows, deltas.unit_us, dtype=np.int32)),
    ]
    lists = [make_lists(events.offsets, column, events.lists) for column in _stored_arrays(spec, "events", events)]
    kind = stored_requests_schema(spec).field("targets").type.value_type
    shown = pa.StructArray.from_arrays(_stored_arrays(spec, "targets", targets), fields=list(kind))
    own = [requests[name] for name in requests.schema.names if name != "targets"]
    asked = [*own, make_lists(targets.offsets, shown, targets.lists)]
    return (
        pa.RecordBatch.from_arrays([*ids, *lists], schema=stored_timelines_schema(spec)),
        pa.RecordBatch.from_arrays(asked, schema=stored_requests_schema(spec)),
    )


def _stored_arrays(spec: BuildSpec, table: TableName, records: _Records) -> list[pa.Array]:
    columns = ((records.columns[name], kind) for name, kind in stored_columns(spec, table).items())
    return [to_planes(column) if has_planes(kind) else column for column, kind in columns]


class Decoder:
    """Decodes stored blocks of one shard. dictionaries: those of its file; fields: what to decode.

    Raises DatasetError, without a place, where a block is not what an encoder wrote.
    """

    def __init__(self, spec: BuildSpec, dictionaries: Dictionaries, fields: Fields = ALL_FIELDS) -> None:
        self._spec, self._dictionaries, self._fields = spec, dictionaries, fields
        self._shared = shared_fields(spec) if spec.one_log else ()

    def stored_events(self) -> list[str]:
        """The list columns of timelines that the chosen fields need."""
        return list(dict.fromkeys(f"events.{self._column('events', name)}" for name in self._needed("events")))

    def _needed(self, table: TableName) -> list[str]:
        """The fields of a table to decode: the chosen ones, and of events those that chosen targets may refer to."""
        kinds: dict[TableName, pa.StructType] = {"events": event_type(self._spec), "targets": target_type(self._spec)}
        names = [f.name for f in self._fields.of(table, kinds[table])]
        if not self._spec.one_log:
            return names
        if table == "targets":
            return [REFERENCE, *names]
        asked = {f.name for f in self._fields.of("targets", kinds["targets"])}
        return [*names, *(name for name in self._shared if name in asked and name not in names)]

    def _column(self, table: TableName, name: str) -> str:
        return _dictionary_of(self._spec, table, name) or name

    def timelines(self, stored: pa.RecordBatch) -> tuple[pa.RecordBatch, Columns]:
        """The logical timelines, and all decoded columns of events, for the targets that refer to them."""
        lists, offsets = _common_lists(stored, self.stored_events())
        held = {name: stored[f"events.{self._column('events', name)}"].flatten() for name in self._needed("events")}
        columns = {name: self._values("events", name, values) for name, values in held.items()}
        columns["event_time"] = self._times(stored, columns["event_time"], offsets)
        kind = pa.struct(self._fields.of("events", event_type(self._spec)))
        events = pa.StructArray.from_arrays([columns[name] for name in kind.names], fields=list(kind))
        arrays = [stored["user_id"], stored["segment"], make_lists(offsets, events, lists)]
        return pa.RecordBatch.from_arrays(arrays, ["user_id", "segment", "events"]), columns

    def requests(self, stored: pa.RecordBatch, timelines: pa.RecordBatch, events: Columns) -> pa.RecordBatch:
        """The logical requests; `timeline_row` and `history_end` must have been checked."""
        lists, offsets = stored["targets"], list_offsets(stored["targets"])
        held = lists.flatten()
        columns = {
            name: self._values("targets", name, held.field(self._column("targets", name)))
            for name in self._needed("targets")
        }
        if self._spec.one_log:
            ahead = columns.pop(REFERENCE)
            places = referred_places(stored, list_offsets(timelines["events"]), offsets, ahead)
            for name in ("item_id", *self._shared):
                if name in columns:
                    columns[name] = pc.if_else(ahead.is_valid(), events[name].take(places), columns[name])
        kind = pa.struct(self._fields.of("targets", target_type(self._spec)))
        targets = pa.StructArray.from_arrays([columns[name] for name in kind.names], fields=list(kind))
        own = [name for name in requests_schema(self._spec).names if name != "targets"]
        arrays = [*(stored[name] for name in own), make_lists(offsets, targets, lists)]
        return pa.RecordBatch.from_arrays(arrays, [*own, "targets"])

    def _values(self, table: TableName, name: str, values: pa.Array) -> pa.Array:
        """One field of all records, (T,), from the values of its stored column."""
        column = self._column(table, name)
        kind = stored_columns(self._spec, table)[column]
        values = from_planes(values, kind) if has_planes(kind) else values
        for dictionary in dictionaries_of(self._spec):
            if (
                table in dictionary.tables
                and dictionary.column == column
                and name in (f.name for f in dictionary.fields)
            ):
                return _take(self._dictionaries[dictionary.name][name], values, dictionary.name)
        return values

    @staticmethod
    def _times(stored: pa.RecordBatch, steps: pa.Array, offsets: Int64Array) -> pa.Array:
        units = pc.min_max(stored[TIME_UNIT])
        if units["min"] != units["max"] or stored[FIRST_TIME].null_count:
            raise DatasetError(f"{TIME_UNIT} is not the same in all its rows, or {FIRST_TIME} is null")
        first = stored[FIRST_TIME].view(pa.int64()).to_numpy()
        return from_deltas(Deltas(first, units["min"].as_py() or 1, steps), offsets, TIMESTAMP)


def _take(entries: pa.Array, places: pa.Array, name: str) -> pa.Array:
    bounds = pc.min_max(places)
    if bounds["min"].is_valid and not 0 <= bounds["min"].as_py() <= bounds["max"].as_py() < len(entries):
        raise DatasetError(
            f"a place in the dictionary {name!r} is outside its {len(entries)} entries: "
            f"{bounds['min'].as_py()} to {bounds['max'].as_py()}"
        )
    return pc.take(entries, places, boundscheck=False)


def _common_lists(stored: pa.RecordBatch, names: Sequence[str]) -> tuple[pa.ListArray, Int64Array]:
    """The offsets that all list columns have. Raises DatasetError if they differ."""
    first = stored[names[0]]
    offsets = list_offsets(first)
    for name in names[1:]:
        if not np.array_equal(list_offsets(stored[name]), offsets) or stored[name].null_count != first.null_count:
            raise DatasetError(f"the lists of {names[0]!r} and {name!r} differ in length")
    return first, offsets
