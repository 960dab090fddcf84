"""Arrow schemas of the files of a shard: the plain tables, or the same rows in the compact encoding.

The compact encoding has columns that compress well:

* Events become one list for each field (`events.item_id`), so that a field can be read without the others. Targets
  stay a list of structs, because they are few and the offsets of short lists would cost more than their values.
* Values of several bytes are stored in byte planes, and times of events as deltas.
* Hashed ids and strings are stored in the shard's dictionaries.
* A target that is a later event of its own timeline is a reference to the event.

`encoder` and `decoder` convert between both; docs/format.md describes the encoding for readers in other languages.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.tables import TIMESTAMP, event_type, requests_schema, target_type, timelines_schema
from longbatch.schemas.types import ArrowField

from .byte_planes import has_planes, plane_type
from .dictionaries import INDEX, Dictionary, TableName, dictionaries_of
from .event_references import REFERENCE

FIRST_TIME, TIME_UNIT = "first_event_time", "time_unit_us"
Batches = tuple[pa.RecordBatch, pa.RecordBatch]


@dataclass(frozen=True)
class Fields:
    """Fields of events and targets to read.

    Attributes:
        events: Names of the fields of events, or None for all. item_id and event_time are always read.
        targets: Names of the fields of targets, or None for all. item_id is always read.
    """

    events: tuple[str, ...] | None = None
    targets: tuple[str, ...] | None = None

    def select(self, table: TableName, record_type: pa.StructType) -> list[ArrowField]:
        """Return the chosen fields of a struct type, in its order.

        Args:
            table: "events" or "targets".
            record_type: Struct type of the records.
        """
        chosen = self.events if table == "events" else self.targets
        always = ("item_id", "event_time")
        return [f for f in record_type if chosen is None or f.name in chosen or f.name in always]


ALL_FIELDS = Fields()


@dataclass(frozen=True)
class StoredColumn:
    """A stored column of events or targets.

    Attributes:
        name: Name of the column.
        value_type: Type of its values, after planes are assembled.
        fields: Fields of the records that are decoded from it: the columns of its dictionary, or the column itself.
        dictionary: Name of its dictionary, or None.
    """

    name: str
    value_type: pa.DataType
    fields: tuple[str, ...]
    dictionary: str | None = None

    @property
    def stored_type(self) -> pa.DataType:
        """Type of the values in the file."""
        return plane_type(self.value_type) if has_planes(self.value_type) else self.value_type


def stored_columns(spec: BuildSpec, table: TableName) -> tuple[StoredColumn, ...]:
    """List the stored columns of events or targets in the compact encoding.

    Args:
        spec: Build spec.
        table: "events" or "targets".

    Returns:
        Columns, in the order of the file.
    """
    record_type = event_type(spec) if table == "events" else target_type(spec)
    dictionaries = {f.name: d for d in dictionaries_of(spec) if table in d.tables for f in d.fields}
    # A dict by name, because all fields of a dictionary share one stored column: the index of the entry.
    columns: dict[str, StoredColumn] = {}
    if table == "targets" and spec.one_log:
        # Only with one log is a target a row of the history's log, so that it can be a later event.
        columns[REFERENCE] = StoredColumn(REFERENCE, INDEX, (REFERENCE,))
    for field in record_type:
        column = _stored_column(field, table, dictionaries.get(field.name))
        columns.setdefault(column.name, column)
    return tuple(columns.values())


def _stored_column(field: ArrowField, table: TableName, dictionary: Dictionary | None) -> StoredColumn:
    if dictionary is not None:
        names = tuple(entry.name for entry in dictionary.fields)
        return StoredColumn(dictionary.column, INDEX, names, dictionary.name)
    # Times of events are stored as deltas, which are integers.
    is_delta = table == "events" and field.name == "event_time"
    return StoredColumn(field.name, pa.int64() if is_delta else field.type, (field.name,))


def stored_timelines_schema(spec: BuildSpec) -> pa.Schema:
    """Return the Arrow schema of a timelines file.

    Args:
        spec: Build spec.
    """
    if not spec.is_compact:
        return timelines_schema(spec)
    # One list column per field: a reader skips the fields that a model does not use, before they are decompressed.
    ids = {"user_id": pa.int64(), "segment": pa.int32(), FIRST_TIME: TIMESTAMP, TIME_UNIT: pa.int32()}
    lists = {f"events.{column.name}": pa.list_(column.stored_type) for column in stored_columns(spec, "events")}
    return pa.schema({**ids, **lists})


def stored_requests_schema(spec: BuildSpec) -> pa.Schema:
    """Return the Arrow schema of a requests file; only the fields of targets differ from the plain table.

    Args:
        spec: Build spec.
    """
    plain = requests_schema(spec)
    if not spec.is_compact:
        return plain
    # One list of structs: requests have few targets, so separate lists would repeat offsets as large as the values.
    targets = pa.struct([(column.name, column.stored_type) for column in stored_columns(spec, "targets")])
    return plain.set(plain.get_field_index("targets"), pa.field("targets", pa.list_(targets)))
