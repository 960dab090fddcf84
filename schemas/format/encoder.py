"""Blocks of a shard, as they are meant -> as they are stored; see `stored`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longbatch.schemas.ragged import list_offsets
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.tables import TIMESTAMP
from longbatch.schemas.types import Int64Array

from .back_references import REFERENCE, find_references, shared_fields
from .byte_planes import has_planes, make_lists, to_deltas, to_planes
from .dictionaries import Columns, TableName, build_dictionary, dictionaries_batch, dictionaries_of
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
    """The events, or the targets, of one block while they are encoded."""

    lists: pa.ListArray
    offsets: Int64Array
    columns: Columns


def encode_blocks(spec: BuildSpec, blocks: Iterable[Batches]) -> tuple[pa.RecordBatch | None, Iterator[Batches]]:
    """Encode a shard's blocks: the dictionaries' one row, None where the spec has none, and the stored blocks.

    With dictionaries all blocks are held, for they must be known before the first block can be stored.
    """
    if not spec.is_compact:
        return None, iter(blocks)
    store = partial(
        _store,
        stored_timelines_schema(spec),
        stored_requests_schema(spec),
        stored_columns(spec, "events"),
        stored_columns(spec, "targets"),
    )
    shared = shared_fields(spec) if spec.one_log else None
    if not dictionaries_of(spec):
        return None, (store(block, *_split(block, shared)) for block in blocks)
    held = list(blocks)
    records = [_split(block, shared) for block in held]
    batch = _replace_by_places(spec, records) if held else None
    return batch, (store(block, *parts) for block, parts in zip(held, records, strict=True))


def _split(block: Batches, shared: Sequence[str] | None) -> tuple[_Records, _Records]:
    """Take events and targets apart into columns; where targets refer to an event, what both have is null."""
    timelines, requests = block
    events, targets = _records(timelines["events"]), _records(requests["targets"])
    if shared is not None:
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
        pairs = (zip(TABLES, pair, strict=True) for pair in records)
        parts = [part for pair in pairs for table, part in pair if table in dictionary.tables]
        built[dictionary.name], places = build_dictionary(dictionary, [part.columns for part in parts])
        for part, places_of in zip(parts, places, strict=True):
            for entry in dictionary.fields:
                del part.columns[entry.name]
            part.columns[dictionary.column] = places_of
    return dictionaries_batch(spec, built)


def _store(
    timelines_schema: pa.Schema,
    requests_schema: pa.Schema,
    event_columns: Sequence[StoredColumn],
    target_columns: Sequence[StoredColumn],
    block: Batches,
    events: _Records,
    targets: _Records,
) -> Batches:
    timelines, requests = block
    deltas = to_deltas(events.columns["event_time"], events.offsets)
    events.columns["event_time"] = deltas.steps
    first = pa.array(deltas.first).view(TIMESTAMP)
    unit = pa.array(np.full(timelines.num_rows, deltas.unit_us, dtype=np.int32))
    lists = [make_lists(events.offsets, values, events.lists) for values in _values(event_columns, events)]
    shown = pa.StructArray.from_arrays(
        _values(target_columns, targets), fields=list(requests_schema.field("targets").type.value_type)
    )
    own = [requests[name] for name in requests_schema.names if name != "targets"]
    return (
        pa.RecordBatch.from_arrays(
            [timelines["user_id"], timelines["segment"], first, unit, *lists], schema=timelines_schema
        ),
        pa.RecordBatch.from_arrays([*own, make_lists(targets.offsets, shown, targets.lists)], schema=requests_schema),
    )


def _values(columns: Sequence[StoredColumn], records: _Records) -> list[pa.Array]:
    held = ((records.columns[column.name], column.kind) for column in columns)
    return [to_planes(values) if has_planes(kind) else values for values, kind in held]
