"""How tables lie in files: plainly, or in the compact encoding, the same rows in columns that compress.

Events become a list for each field (`events.item_id`), so that one can be read without the others; targets, which are few,
stay a list of structs, for offsets of short lists cost more than their values. Wide values lie in planes, times of events as
deltas, ids and text in the shard's dictionaries, and a target that is a later event of its own timeline is a reference
to it. docs/format.md says the same to other languages; `encoder` and `decoder` do it.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.tables import TIMESTAMP, event_type, requests_schema, target_type, timelines_schema

from .back_references import REFERENCE
from .byte_planes import has_planes, plane_type
from .dictionaries import INDEX, Dictionary, TableName, dictionaries_of

FIRST_TIME, TIME_UNIT = "first_event_time", "time_unit_us"
Batches = tuple[pa.RecordBatch, pa.RecordBatch]


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


@dataclass(frozen=True)
class StoredColumn:
    """A stored column of events or targets. kind: the type of its values once planes are put together.

    gives: the fields that come out of it: by its dictionary if it has one, else one field of the column's own name.
    """

    name: str
    kind: pa.DataType
    gives: tuple[str, ...]
    dictionary: str | None = None

    @property
    def stored_type(self) -> pa.DataType:
        """The type of its values in the file."""
        return plane_type(self.kind) if has_planes(self.kind) else self.kind


def stored_columns(spec: BuildSpec, table: TableName) -> tuple[StoredColumn, ...]:
    """The stored columns of a table's records in the compact encoding, in order."""
    kind = event_type(spec) if table == "events" else target_type(spec)
    held = {f.name: d for d in dictionaries_of(spec) if table in d.tables for f in d.fields}
    columns: dict[str, StoredColumn] = {}
    if table == "targets" and spec.one_log:
        columns[REFERENCE] = StoredColumn(REFERENCE, INDEX, (REFERENCE,))
    for field in kind:
        column = _stored_column(field, table, held.get(field.name))
        columns.setdefault(column.name, column)
    return tuple(columns.values())


def _stored_column(field: pa.Field, table: TableName, dictionary: Dictionary | None) -> StoredColumn:
    if dictionary is not None:
        gives = tuple(entry.name for entry in dictionary.fields)
        return StoredColumn(dictionary.column, INDEX, gives, dictionary.name)
    steps = table == "events" and field.name == "event_time"
    return StoredColumn(field.name, pa.int64() if steps else field.type, (field.name,))


def stored_timelines_schema(spec: BuildSpec) -> pa.Schema:
    """Arrow schema of a timelines file."""
    if not spec.is_compact:
        return timelines_schema(spec)
    ids = {"user_id": pa.int64(), "segment": pa.int32(), FIRST_TIME: TIMESTAMP, TIME_UNIT: pa.int32()}
    lists = {f"events.{column.name}": pa.list_(column.stored_type) for column in stored_columns(spec, "events")}
    return pa.schema({**ids, **lists})


def stored_requests_schema(spec: BuildSpec) -> pa.Schema:
    """Arrow schema of a requests file: that of the plain table but for the fields of targets."""
    plain = requests_schema(spec)
    if not spec.is_compact:
        return plain
    targets = pa.struct({column.name: column.stored_type for column in stored_columns(spec, "targets")})
    return plain.set(plain.get_field_index("targets"), pa.field("targets", pa.list_(targets)))
