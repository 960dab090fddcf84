"""The dictionaries of a shard: values that many events and targets share, each held once, and places in them.

Which columns have one follows from the spec alone: ids that are hashed text, and text, whose bytes are as good as random
and do not compress; and the item with the features that the spec's [items] declares to be the item's own. An entry
of `items` is a distinct combination, so features that do vary within an item cost bytes and lose nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longbatch.schemas.errors import DataError, DatasetError
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.tables import event_type, target_type
from longbatch.schemas.types import Int64Array

from .byte_planes import from_planes, has_planes, plane_type, to_planes

TableName = Literal["events", "targets"]
Columns = dict[str, pa.Array]
INDEX = pa.int32()
MAX_STRING_BYTES = (1 << 31) - 1
ITEM = "#item"  # the stored column of places in `items`; no feature can have its name


@dataclass(frozen=True)
class Dictionary:
    """A dictionary of the spec. column: the stored column of places in it; fields: the columns of its entries.

    tables: which of events and targets point into it.
    """

    name: str
    column: str
    fields: tuple[pa.Field, ...]
    tables: tuple[TableName, ...]


def dictionaries_of(spec: BuildSpec) -> tuple[Dictionary, ...]:
    """The dictionaries of a spec's shards, in the order of their columns; none if it stores plainly."""
    if not spec.is_compact:
        return ()
    kinds: dict[TableName, pa.StructType] = {"events": event_type(spec), "targets": target_type(spec)}
    items = _items(spec, kinds)
    found = [items] if items.tables else []
    features = {"events": spec.history.features, "targets": spec.requests.target_features}
    for table, kind in kinds.items():
        taken = {field.name for field in items.fields} if table in items.tables else set()
        found += [
            Dictionary(f"{table}.{name}", name, (kind.field(name),), (table,))
            for name, feature in features[table].items()
            if feature.type in ("string", "id") and name not in taken
        ]
    return tuple(found)


def _items(spec: BuildSpec, kinds: Mapping[TableName, pa.StructType]) -> Dictionary:
    """The item and its own features; for targets too if they have the same features, with the same types."""
    own = tuple(kinds["events"].field(name) for name in spec.items.features)
    ids: dict[TableName, str] = {"events": spec.history.item_id.type, "targets": spec.requests.item_id.type}
    tables = tuple(
        table
        for table, kind in kinds.items()
        if (own or ids[table] == "string")
        and all(kind.get_field_index(f.name) >= 0 and kind.field(f.name) == f for f in own)
    )
    return Dictionary("items", ITEM, (kinds["events"].field("item_id"), *own), tables)


def dictionaries_schema(spec: BuildSpec) -> pa.Schema:
    """Columns of a shard's dictionaries file: one list for each column of each dictionary, in one row."""
    return pa.schema(
        {
            _stored_name(dictionary, field): pa.list_(plane_type(field.type) if has_planes(field.type) else field.type)
            for dictionary in dictionaries_of(spec)
            for field in dictionary.fields
        }
    )


def _stored_name(dictionary: Dictionary, field: pa.Field) -> str:
    return f"items.{field.name}" if dictionary.name == "items" else dictionary.name


def build_dictionary(dictionary: Dictionary, tables: Sequence[Columns]) -> tuple[Columns, list[pa.Array]]:
    """The distinct entries of some tables' columns, by their values, and each table's places in them, (N,) int32.

    A row whose first column is null has a null place.
    """
    columns = [_joined([table[field.name] for table in tables]) for field in dictionary.fields]
    entry, entries = _number(columns)
    known = columns[0].is_valid().to_numpy(False)
    first = np.full(entries, -1, dtype=np.int64)
    rows = np.flatnonzero(known)[::-1]
    first[entry[rows]] = rows
    first = first[first >= 0]
    order = _sort([column.take(pa.array(first)) for column in columns])
    place = np.zeros(entries, dtype=np.int32)
    place[entry[first[order]]] = np.arange(len(order))
    places = pa.array(place[entry], mask=~known)
    sizes = [len(table[dictionary.fields[0].name]) for table in tables]
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    chosen = pa.array(first[order])
    values = {
        field.name: _narrowed(column.take(chosen), field, dictionary)
        for field, column in zip(dictionary.fields, columns, strict=True)
    }
    return values, [places.slice(start, size) for start, size in zip(starts, sizes, strict=True)]


def _joined(parts: Sequence[pa.Array]) -> pa.Array:
    """The arrays one after another; text in 64-bit offsets where 32 bits do not reach."""
    if pa.types.is_string(parts[0].type) and sum(part.nbytes for part in parts) > MAX_STRING_BYTES:
        parts = [part.cast(pa.large_string()) for part in parts]
    return pa.concat_arrays(parts)


def _narrowed(values: pa.Array, field: pa.Field, dictionary: Dictionary) -> pa.Array:
    """The values in the field's own type. Raises DataError for text that no Arrow string column holds."""
    if values.type == field.type:
        return values
    if values.nbytes > MAX_STRING_BYTES:
        raise DataError(
            f"the distinct texts of {dictionary.name}.{field.name} in one bucket of users take {values.nbytes:,} bytes, and a "
            f'dictionary holds {MAX_STRING_BYTES:,}; store it with encoding = "plain", or leave the feature out'
        )
    return values.cast(field.type)


def _number(columns: Sequence[pa.Array]) -> tuple[Int64Array, int]:
    """Number rows, (N,), from 0, equal rows alike, nulls equal; and how many numbers there are.

    A column that is a function of those before it, as an author is of an item, changes no number and is not hashed with them.
    """
    numbers, count = np.zeros(len(columns[0]), dtype=np.int64), 1
    for column in columns:
        codes, values = _codes(column)
        code_of = np.zeros(count, dtype=np.int64)
        code_of[numbers] = codes
        if not np.array_equal(code_of[numbers], codes):
            numbers, count = _codes(pa.array(numbers * max(1, values) + codes))
    return numbers, count


def _codes(column: pa.Array) -> tuple[Int64Array, int]:
    """Number the values of a column, (N,), from 0; and how many there are."""
    if pa.types.is_floating(column.type):  # by their bits: 0.0 is not -0.0, and any NaN equals itself
        column = column.view(pa.int32() if column.type.bit_width == 32 else pa.int64())
    encoded = column.dictionary_encode(null_encoding="encode")
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), len(encoded.dictionary)


def _sort(columns: Sequence[pa.Array]) -> Int64Array:
    names = [str(number) for number in range(len(columns))]
    order = pc.sort_indices(pa.table(list(columns), names), sort_keys=[(name, "ascending") for name in names])
    return np.asarray(order.to_numpy(), dtype=np.int64)


def dictionaries_batch(spec: BuildSpec, built: Mapping[str, Columns]) -> pa.RecordBatch:
    """The one row of a shard's dictionaries file; the first column of `items`, ascending, as distances."""
    schema, arrays = dictionaries_schema(spec), []
    for dictionary in dictionaries_of(spec):
        for field in dictionary.fields:
            values = built[dictionary.name][field.name]
            if _ascends(dictionary, field):
                values = pa.array(np.diff(values.to_numpy(), prepend=np.int64(0)))
            stored = to_planes(values) if has_planes(field.type) else values
            arrays.append(pa.ListArray.from_arrays(pa.array([0, len(stored)], pa.int32()), stored))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _ascends(dictionary: Dictionary, field: pa.Field) -> bool:
    return field is dictionary.fields[0] and bool(pa.types.is_int64(field.type))


def read_dictionaries(spec: BuildSpec, batch: pa.RecordBatch) -> dict[str, Columns]:
    """Dictionary -> column -> values, from the one row of the file. Raises DatasetError if it is not one row."""
    if batch.num_rows != 1 or any(column.null_count for column in batch.columns):
        raise DatasetError(f"it holds {batch.num_rows} rows, some of them null perhaps, where one was written")
    found: dict[str, Columns] = {}
    for dictionary in dictionaries_of(spec):
        found[dictionary.name] = {}
        for field in dictionary.fields:
            stored = batch[_stored_name(dictionary, field)].flatten()
            values = from_planes(stored, field.type) if has_planes(field.type) else stored
            if _ascends(dictionary, field):
                values = pa.array(np.cumsum(values.to_numpy(zero_copy_only=False)))
            found[dictionary.name][field.name] = values
        if len({len(values) for values in found[dictionary.name].values()}) > 1:
            raise DatasetError(f"the columns of its dictionary {dictionary.name!r} differ in length")
    return found
