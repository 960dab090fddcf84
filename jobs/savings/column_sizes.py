"""Size of each column of a dataset on disk: as stored, as plain Arrow, and as Parquet with the better encoding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import cast

import pyarrow as pa

from longbatch.schemas.format.dataset import Dataset
from longbatch.schemas.format.manifest import BLOCK_TABLES
from longbatch.schemas.format.physical_schema import Batches
from longbatch.schemas.format.shard_reader import Block
from longbatch.schemas.format.shard_writer import codec_of
from longbatch.schemas.spec.build_spec import Compression
from longbatch.schemas.types import ArrowArray, ArrowListArray

from .parquet_settings import column_bytes
from .results import ColumnBytes
from .survey import BlockId, block_total, block_values

SAMPLED_EVENTS = 3_000_000
LISTS = ("events", "targets")  # list columns, whose fields are measured one by one


def sampled_blocks(dataset: Dataset, blocks: Sequence[BlockId]) -> list[BlockId]:
    """Return the shortest prefix of `blocks` with SAMPLED_EVENTS events, at least one block."""
    count, events = 0, 0
    while count < len(blocks) and (not count or events < SAMPLED_EVENTS):
        events += block_total(dataset, [blocks[count]], "events")
        count += 1
    return list(blocks[:count])


def measure_columns(dataset: Dataset, blocks: Sequence[BlockId]) -> list[ColumnBytes]:
    """Measure every column of a dataset.

    Args:
        dataset: The dataset to measure.
        blocks: The blocks that are read; sizes are scaled up from them.

    Returns:
        The sizes of all columns, of the dictionary files, and of what surrounds the columns. The `stored` sizes add up
        to the size of the dataset.
    """
    compression = dataset.spec.compression
    stored, arrow = Counter[str](), Counter[str]()
    decoded: list[Block] = []
    for shard, block in blocks:
        reader = dataset.shard(shard)
        stored.update(_arrow_bytes(reader.stored(block), compression))
        decoded.append(reader.block(block))
        arrow.update(_arrow_bytes((decoded[-1].timelines, decoded[-1].requests), compression))
    parquet = _parquet_bytes(decoded)
    measured = sum(int(block_values(dataset, blocks, f"{table}_bytes").sum()) for table in BLOCK_TABLES)
    total = sum(dataset.shards.file_bytes(table) for table in BLOCK_TABLES)
    scale = total / measured
    columns = [
        ColumnBytes(name, *(sizes[name] * scale if name in sizes else None for sizes in (stored, arrow, parquet)))
        for name in dict.fromkeys([*arrow, *stored])
    ]
    dictionaries = dataset.shards.file_bytes("dictionaries")
    if dictionaries:
        columns.append(ColumnBytes("dictionaries", float(dictionaries), None, None))
    columns.append(ColumnBytes("headers", total - sum(stored.values()) * scale, None, None))
    return columns


def _arrow_bytes(batches: Batches, compression: Compression) -> Counter[str]:
    """Bytes of every column of a block's two record batches, by the names of `ColumnBytes`."""
    sizes = Counter[str]()
    for table, batch in zip(("timelines", "requests"), batches, strict=True):
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if name in LISTS:
                sizes.update(_field_bytes(name, cast("ArrowListArray", column), compression))
            else:
                # stored columns of a split list are named `events.item_id` already
                sizes[name if "." in name else f"{table}.{name}"] += _message_bytes(column, compression)
    return sizes


def _field_bytes(list_name: str, lists: ArrowListArray, compression: Compression) -> Counter[str]:
    """Bytes of each field of a list of structs; the offsets count as a column of their own."""
    values = cast("pa.StructArray", lists.flatten())
    sizes = Counter({f"{list_name}.{f.name}": _message_bytes(values.field(f.name), compression) for f in values.type})
    sizes[f"{list_name}.#offsets"] = _message_bytes(lists.offsets, compression)
    return sizes


def _message_bytes(column: ArrowArray, compression: Compression) -> int:
    """Bytes of a column's buffers in a record batch: the size of its message minus that of an empty one."""
    options = pa.ipc.IpcWriteOptions(compression=codec_of(compression), use_threads=False)
    sizes = []
    for part in (column, pa.nulls(0, column.type)):
        sink = pa.MockOutputStream()
        with pa.ipc.new_stream(sink, pa.schema([pa.field("x", column.type)]), options=options) as writer:
            writer.write_batch(pa.RecordBatch.from_arrays([part], ["x"]))
        sizes.append(int(sink.size()))
    return sizes[0] - sizes[1]


def _parquet_bytes(blocks: Sequence[Block]) -> Counter[str]:
    """The same columns as tables of one row group, each with or without a dictionary, whichever is smaller.

    The Parquet paths `events.list.element.item_id` and `user_id` of the timelines become `events.item_id` and
    `timelines.user_id`.
    """
    tables = {
        "timelines": pa.Table.from_batches([block.timelines for block in blocks]),
        "requests": pa.Table.from_batches([block.requests for block in blocks]),
    }
    sizes = Counter[str]()
    for name, table in tables.items():
        plain, dictionary = (column_bytes([table], "zstd", dictionary=use) for use in (False, True))
        for path in plain:
            parts = path.split(".")
            column = f"{parts[0]}.{parts[-1]}" if parts[0] in LISTS else f"{name}.{parts[0]}"
            sizes[column] += min(plain[path], dictionary[path])
    return sizes
