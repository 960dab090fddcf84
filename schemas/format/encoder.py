"""Encode the blocks of a shard: from the tables in memory to the stored columns of `physical_schema`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longbatch.schemas.arrow import int32_array, int64_array, list_column
from longbatch.schemas.ragged import list_offsets
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.tables import TIMESTAMP
from longbatch.schemas.types import ArrowArray, ArrowListArray, Int64Array

from .byte_planes import has_planes, make_lists, to_deltas, to_planes
from .dictionaries import Columns, TableName, build_dictionary, dictionaries_batch, dictionaries_of
from .event_references import REFERENCE, find_references, shared_fields
from .physical_schema import (
    Batches,
    StoredColumn,
    stored_columns,
    stored_requests_schema,
    stored_timelines_schema,
)

TABLES: tuple[TableName, ...] = ("events", "targets")


@dataclass
class _Records:
    """The events or the targets of one block while they are encoded."""

    lists: ArrowListArray
    offsets: Int64Array
    columns: Columns


def encode_blocks(spec: BuildSpec, blocks: Iterable[Batches]) -> tuple[pa.RecordBatch | None, Iterator[Batches]]:
    """Encode the blocks of a shard.

    Args:
        spec: Build spec.
        blocks: Timelines and requests of each block.

    Returns:
        The one row of the dictionaries file, or None without dictionaries, and the encoded blocks. With dictionaries
        all blocks are kept in memory, because the entries must be known before the first block can be encoded.

    Raises:
        DataError: A dictionary is too large.
    """
    if not spec.is_compact:
        return None, iter(blocks)
    # Schemas and columns depend on the spec only, so they are derived once and not for every block.
    store_timelines = partial(_store_timelines, stored_timelines_schema(spec), stored_columns(spec, "events"))
    store_requests = partial(_store_requests, stored_requests_schema(spec), stored_columns(spec, "targets"))

    def store(block: Batches, events: _Records, targets: _Records) -> Batches:
        return store_timelines(block[0], events), store_requests(block[1], targets)

    shared = shared_fields(spec) if spec.one_log else None
    if not dictionaries_of(spec):
        return None, (store(block, *_split(block, shared)) for block in blocks)
    # Indices are positions among the sorted entries of the whole shard, so all rows are read before any is encoded.
    # A shard is one user bucket, which is sized to fit in memory.
    all_blocks = list(blocks)
    records = [_split(block, shared) for block in all_blocks]
    batch = _replace_by_indices(spec, records) if all_blocks else None
    return batch, (store(block, *parts) for block, parts in zip(all_blocks, records, strict=True))


def _split(block: Batches, shared: Sequence[str] | None) -> tuple[_Records, _Records]:
    """Split events and targets into columns; the fields that a target shares with its referenced event become null."""
    timelines, requests = block
    events, targets = _records(list_column(timelines, "events")), _records(list_column(requests, "targets"))
    if shared is not None:
        references = find_references(requests, events.columns, events.offsets, targets.columns, targets.offsets, shared)
        # A target that is a reference stores null in the shared fields, which compresses to almost nothing.
        has_values = references.is_null()
        for name in ("item_id", *shared):
            column = targets.columns[name]
            targets.columns[name] = pc.if_else(has_values, column, pa.scalar(None, column.type))
        targets.columns[REFERENCE] = references
    return events, targets


def _records(lists: ArrowListArray) -> _Records:
    structs = cast(pa.StructArray, lists.flatten())
    # `flatten` of a struct array also applies the nulls of the structs to their fields.
    columns = dict(zip((field.name for field in structs.type), structs.flatten(), strict=True))
    return _Records(lists, list_offsets(lists), columns)


def _replace_by_indices(spec: BuildSpec, records: Sequence[tuple[_Records, _Records]]) -> pa.RecordBatch:
    """Build the dictionaries over all blocks, and replace their columns by indices."""
    built = {}
    for dictionary in dictionaries_of(spec):
        pairs = (zip(TABLES, pair, strict=True) for pair in records)
        parts = [part for pair in pairs for table, part in pair if table in dictionary.tables]
        built[dictionary.name], indices = build_dictionary(dictionary, [part.columns for part in parts])
        for part, indices_of_part in zip(parts, indices, strict=True):
            # The values are deleted at once: they are the largest arrays, and the entries replace them.
            for entry in dictionary.fields:
                del part.columns[entry.name]
            part.columns[dictionary.column] = indices_of_part
    return dictionaries_batch(spec, built)


def _store_timelines(
    schema: pa.Schema, columns: Sequence[StoredColumn], timelines: pa.RecordBatch, events: _Records
) -> pa.RecordBatch:
    deltas = to_deltas(events.columns["event_time"], events.offsets)
    events.columns["event_time"] = deltas.steps
    first = int64_array(deltas.first).view(TIMESTAMP)
    # The unit is repeated in every row, because an Arrow file has no header per block; the repetition compresses away.
    unit = int32_array(np.full(timelines.num_rows, deltas.unit_us))
    lists = [make_lists(events.offsets, values, events.lists) for values in _values(columns, events)]
    return pa.RecordBatch.from_arrays([timelines["user_id"], timelines["segment"], first, unit, *lists], schema=schema)


def _store_requests(
    schema: pa.Schema, columns: Sequence[StoredColumn], requests: pa.RecordBatch, targets: _Records
) -> pa.RecordBatch:
    target_fields = list(schema.field("targets").type.value_type)
    structs = pa.StructArray.from_arrays(_values(columns, targets), fields=target_fields)
    own = [requests[name] for name in schema.names if name != "targets"]
    return pa.RecordBatch.from_arrays([*own, make_lists(targets.offsets, structs, targets.lists)], schema=schema)


def _values(columns: Sequence[StoredColumn], records: _Records) -> list[ArrowArray]:
    """The stored values of columns, in byte planes where the type has them."""
    pairs = ((records.columns[column.name], column.value_type) for column in columns)
    return [to_planes(values) if has_planes(value_type) else values for values, value_type in pairs]
