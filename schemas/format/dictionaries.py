"""The dictionaries of a shard: values that many events and targets share, stored once and referred to by index.

The spec alone decides which columns have a dictionary: hashed ids and strings, whose bytes look random and do not
compress, and the item with the features that [items] declares to belong to it. An entry of `items` is a distinct
combination of values, so a feature that does vary within an item costs bytes but loses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longbatch.schemas.arrow import int32_array, int64_array, list_column
from longbatch.schemas.errors import DataError, DatasetError
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.tables import event_type, target_type
from longbatch.schemas.types import ArrowArray, ArrowField, Int64Array

from .byte_planes import from_planes, has_planes, plane_type, to_planes

TableName = Literal["events", "targets"]
Columns = dict[str, ArrowArray]
INDEX = pa.int32()
MAX_STRING_BYTES = (1 << 31) - 1  # 32-bit offsets of an Arrow string array reach no further
ITEM = "#item"  # stored column of indices into `items`; features cannot have this name


@dataclass(frozen=True)
class Dictionary:
    """A dictionary.

    Attributes:
        name: Its name.
        column: Stored column of indices into it.
        fields: Columns of its entries.
        tables: Tables that refer to it: events, targets or both.
    """

    name: str
    column: str
    fields: tuple[ArrowField, ...]
    tables: tuple[TableName, ...]


def dictionaries_of(spec: BuildSpec) -> tuple[Dictionary, ...]:
    """List the dictionaries of a spec's shards.

    Args:
        spec: Build spec.

    Returns:
        Dictionaries in the order of their columns; none with the plain encoding.
    """
    if not spec.is_compact:
        return ()
    types: dict[TableName, pa.StructType] = {"events": event_type(spec), "targets": target_type(spec)}
    items = _items(spec, types)
    dictionaries = [items] if items.tables else []
    features = {"events": spec.history.features, "targets": spec.requests.target_features}
    for table, table_type in types.items():
        # A feature that belongs to the item is in the dictionary of items and needs none of its own.
        taken = {field.name for field in items.fields} if table in items.tables else set()
        dictionaries += [
            Dictionary(f"{table}.{name}", name, (table_type.field(name),), (table,))
            for name, feature in features[table].items()
            if feature.type in ("string", "id") and name not in taken
        ]
    return tuple(dictionaries)


def _items(spec: BuildSpec, types: Mapping[TableName, pa.StructType]) -> Dictionary:
    """The item with its own features; targets use it too if they have these features with the same types."""
    own = tuple(types["events"].field(name) for name in spec.items.features)
    ids: dict[TableName, str] = {"events": spec.history.item_id.type, "targets": spec.requests.item_id.type}
    tables = tuple(
        table
        for table, table_type in types.items()
        if (own or ids[table] == "string")
        and all(table_type.get_field_index(f.name) >= 0 and table_type.field(f.name) == f for f in own)
    )
    return Dictionary("items", ITEM, (types["events"].field("item_id"), *own), tables)


def dictionaries_schema(spec: BuildSpec) -> pa.Schema:
    """Return the columns of a shard's dictionaries file, which has one row with a list for each dictionary column.

    Args:
        spec: Build spec.

    Returns:
        The Arrow schema, without columns if there are no dictionaries.
    """
    return pa.schema(
        {
            _stored_name(dictionary, field): pa.list_(plane_type(field.type) if has_planes(field.type) else field.type)
            for dictionary in dictionaries_of(spec)
            for field in dictionary.fields
        }
    )


def _stored_name(dictionary: Dictionary, field: ArrowField) -> str:
    return f"items.{field.name}" if dictionary.name == "items" else dictionary.name


def build_dictionary(dictionary: Dictionary, tables: Sequence[Columns]) -> tuple[Columns, list[ArrowArray]]:
    """Collect the distinct entries of several tables, and replace rows by indices into them.

    Args:
        dictionary: The dictionary.
        tables: Columns of each table, (N,) each.

    Returns:
        The entries, sorted by value, and for each table the index of each row's entry, (N,) int32. A row whose first
        column is null has a null index.

    Raises:
        DataError: The strings are too large for an Arrow column.

    Example:
        rows       b  a  b  -       the last one is null
        numbers    0  1  0  2       in order of appearance, see `_number_rows`
        entries    a  b             sorted
        indices    1  0  1  -
    """
    # Distinct rows by hashing: number the rows, keep one row of each number, sort these, and map numbers to positions.
    columns = [_joined([table[field.name] for table in tables]) for field in dictionary.fields]
    numbers, count = _number_rows(columns)
    is_valid = columns[0].is_valid().to_numpy(False)
    # The first row of each number: written in reverse order, so that the earliest row is written last and stays.
    first_rows = np.full(count, -1, dtype=np.int64)
    rows = np.flatnonzero(is_valid)[::-1]
    first_rows[numbers[rows]] = rows
    first_rows = first_rows[first_rows >= 0]
    order = _sort([column.take(int64_array(first_rows)) for column in columns])
    # Sorting makes the file independent of the order of the rows, and item ids compress well as differences.
    index_of_number = np.zeros(count, dtype=np.int32)
    index_of_number[numbers[first_rows[order]]] = np.arange(len(order))
    indices: ArrowArray = pa.array(index_of_number[numbers], mask=~is_valid)
    sizes = [len(table[dictionary.fields[0].name]) for table in tables]
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    entry_rows = int64_array(first_rows[order])
    values = {
        field.name: _narrowed(column.take(entry_rows), field, dictionary)
        for field, column in zip(dictionary.fields, columns, strict=True)
    }
    return values, [indices.slice(start, size) for start, size in zip(starts, sizes, strict=True)]


def _joined(parts: Sequence[ArrowArray]) -> ArrowArray:
    """Concatenate arrays; strings get 64-bit offsets where 32 bits do not suffice."""
    # The joined rows may exceed 2 GiB even where the distinct values are small.
    if pa.types.is_string(parts[0].type) and sum(part.nbytes for part in parts) > MAX_STRING_BYTES:
        parts = [part.cast(pa.large_string()) for part in parts]
    return pa.concat_arrays(parts)


def _narrowed(values: ArrowArray, field: ArrowField, dictionary: Dictionary) -> ArrowArray:
    """Cast large strings back to the field's own type; raise DataError if they do not fit."""
    if values.type == field.type:
        return values
    if values.nbytes > MAX_STRING_BYTES:
        raise DataError(
            f"the distinct strings of {dictionary.name}.{field.name} in one user bucket take {values.nbytes:,} bytes, "
            f"but a dictionary is limited to {MAX_STRING_BYTES:,}. "
            'Set encoding = "plain" in the spec, or remove the feature.'
        )
    return values.cast(field.type)


def _number_rows(columns: Sequence[ArrowArray]) -> tuple[Int64Array, int]:
    """Number rows from 0, the same number for equal rows (nulls are equal): (N,), and the count of numbers.

    A column that is a function of the columns before it, as an author is of an item, splits no number. It is detected
    and skipped, which is several times faster than hashing all columns together.

    Example:
        items      a  b  a  b       numbers 0 1 0 1
        prices     5  5  5  6       not a function of the item: the numbers become 0 1 0 2
    """
    # Refine a partition: all rows begin with the same number, and each column splits numbers whose values differ.
    numbers, count = np.zeros(len(columns[0]), dtype=np.int64), 1
    for column in columns:
        codes, values = _codes(column)
        # Functional-dependency test: write one code per number (the last row wins), then check that all rows agree.
        code_of = np.zeros(count, dtype=np.int64)
        code_of[numbers] = codes
        if not np.array_equal(code_of[numbers], codes):
            # The pair (number, code) as one integer, numbered again from 0 so that the product cannot overflow.
            numbers, count = _codes(pa.array(numbers * max(1, values) + codes))
    return numbers, count


def _codes(column: ArrowArray) -> tuple[Int64Array, int]:
    """Number the values of a column from 0: (N,), and the count of distinct values."""
    if pa.types.is_floating(column.type):  # compare bits: 0.0 is not -0.0, and NaN equals itself
        column = column.view(pa.int32() if column.type.bit_width == 32 else pa.int64())
    encoded = column.dictionary_encode(null_encoding="encode")
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), len(encoded.dictionary)


def _sort(columns: Sequence[ArrowArray]) -> Int64Array:
    names = [str(number) for number in range(len(columns))]
    order = pc.sort_indices(pa.table(list(columns), names), sort_keys=[(name, "ascending") for name in names])
    return np.asarray(order.to_numpy(), dtype=np.int64)


def dictionaries_batch(spec: BuildSpec, built: Mapping[str, Columns]) -> pa.RecordBatch:
    """Make the one row of a shard's dictionaries file.

    Args:
        spec: Build spec.
        built: Entries by dictionary, from `build_dictionary`.

    Returns:
        A record batch of `dictionaries_schema`. Sorted ids are stored as differences.
    """
    schema = dictionaries_schema(spec)
    arrays: list[ArrowArray] = []
    for dictionary in dictionaries_of(spec):
        for field in dictionary.fields:
            values = built[dictionary.name][field.name]
            # Sorted ids are stored as differences, whose upper byte planes are mostly zero.
            if _is_sorted_ids(dictionary, field):
                values = int64_array(np.diff(values.to_numpy(), prepend=np.int64(0)))
            stored = to_planes(values) if has_planes(field.type) else values
            arrays.append(pa.ListArray.from_arrays(int32_array(np.array([0, len(stored)])), stored))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _is_sorted_ids(dictionary: Dictionary, field: ArrowField) -> bool:
    return field is dictionary.fields[0] and bool(pa.types.is_int64(field.type))


def read_dictionaries(spec: BuildSpec, batch: pa.RecordBatch) -> dict[str, Columns]:
    """Decode the one row of a dictionaries file.

    Args:
        spec: Build spec.
        batch: Record batch of `dictionaries_schema`.

    Returns:
        Entries: dictionary -> column -> values.

    Raises:
        DatasetError: There is not exactly one row, or the columns of a dictionary differ in length.
    """
    if batch.num_rows != 1 or any(column.null_count for column in batch.columns):
        raise DatasetError(f"it has {batch.num_rows} rows or nulls instead of 1 row without nulls")
    dictionaries: dict[str, Columns] = {}
    for dictionary in dictionaries_of(spec):
        columns = dictionaries[dictionary.name] = {}
        for field in dictionary.fields:
            stored = list_column(batch, _stored_name(dictionary, field)).flatten()
            values = from_planes(cast(pa.StructArray, stored), field.type) if has_planes(field.type) else stored
            # The sum wraps around modulo 2^64 exactly as the difference did, so that extreme ids survive.
            if _is_sorted_ids(dictionary, field):
                values = int64_array(np.cumsum(values.to_numpy(zero_copy_only=False)))
            columns[field.name] = values
        if len({len(values) for values in columns.values()}) > 1:
            raise DatasetError(f"the columns of its dictionary {dictionary.name!r} differ in length")
    return dictionaries
