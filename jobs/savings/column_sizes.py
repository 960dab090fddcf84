"""What each column of a dataset costs on disk: as it is stored, plainly in Arrow, and in Parquet at its best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from longbatch.schemas.format.dataset import Dataset
from longbatch.schemas.format.physical_schema import Batches
from longbatch.schemas.format.shard_reader import Block
from longbatch.schemas.format.shard_writer import codec_of

from .parquet_settings import column_bytes

SAMPLED_EVENTS = 3_000_000


@dataclass(frozen=True)
class ColumnBytes:
    """Bytes at rest of a column of the whole dataset, scaled up from some of its blocks.

    name: `timelines.<column>`, `events.<field>`, `requests.<column>`, `targets.<field>`, `dictionaries` (files of
    their own) or `headers` (what lies around the columns of each block).
    stored: as the dataset holds it. arrow, parquet: of the plain table with the dataset's codec, and with zstd in the better of
    dictionary and plain. None where the stored table or the plain table has no such column.
    """

    name: str
    stored: float | None
    arrow: float | None
    parquet: float | None


def sampled_blocks(dataset: Dataset, blocks: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The first of the given blocks, as (shard, block), that together hold SAMPLED_EVENTS events."""
    taken, events = 0, 0
    while taken < len(blocks) and (not taken or events < SAMPLED_EVENTS):
        shard, block = blocks[taken]
        events += dataset.shards[shard].blocks[block].events
        taken += 1
    return list(blocks[:taken])


def breakdown(dataset: Dataset, blocks: Sequence[tuple[int, int]]) -> list[ColumnBytes]:
    """Bytes of every column of the dataset, scaled up from these blocks."""
    listed = [dataset.shards[shard].blocks[block] for shard, block in blocks]
    stored, arrow = Counter[str](), Counter[str]()
    read: list[Block] = []
    for shard, block in blocks:
        reader = dataset.shard(shard)
        stored.update(_stored_bytes(reader.stored(block), dataset.spec.compression))
        read.append(reader.block(block))
        arrow.update(_plain_bytes(read[-1], dataset.spec.compression))
    parquet = _parquet_bytes(read)
    size = sum(block.timelines_bytes + block.requests_bytes for block in listed)
    whole = sum(entry.timelines.size_bytes + entry.requests.size_bytes for entry in dataset.shards)
    scale = whole / size
    names = dict.fromkeys([*arrow, *stored])
    rows = [
        ColumnBytes(name, *(of[name] * scale if name in of else None for of in (stored, arrow, parquet)))
        for name in names
    ]
    headers = whole - sum(stored.values()) * scale
    shared = sum(entry.dictionaries.size_bytes for entry in dataset.shards if entry.dictionaries)
    return [
        *rows,
        *([ColumnBytes("dictionaries", float(shared), None, None)] if shared else []),
        ColumnBytes("headers", headers, None, None),
    ]


def _stored_bytes(batches: Batches, compression: str) -> Counter[str]:
    sizes = Counter[str]()
    for table, batch in zip(("timelines", "requests"), batches, strict=True):
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if name in ("events", "targets"):
                sizes.update(_fields(name, column, compression))
            else:
                sizes[name if "." in name else f"{table}.{name}"] += _ipc_bytes(column, compression)
    return sizes


def _plain_bytes(block: Block, compression: str) -> Counter[str]:
    return _stored_bytes((block.timelines, block.requests), compression)


def _fields(table: str, lists: pa.ListArray, compression: str) -> Counter[str]:
    """Bytes of each field of a list of structs; the offsets count as a column of their own."""
    values = lists.flatten()
    sizes = Counter({f"{table}.{f.name}": _ipc_bytes(values.field(f.name), compression) for f in values.type})
    sizes[f"{table}.#offsets"] = _ipc_bytes(lists.offsets, compression)
    return sizes


def _ipc_bytes(column: pa.Array, compression: str) -> int:
    """Bytes of a column's buffers in a record batch: those of its message less those of an empty one's."""
    options = pa.ipc.IpcWriteOptions(compression=codec_of(compression), use_threads=False)
    sizes = []
    for part in (column, pa.nulls(0, column.type)):
        sink = pa.MockOutputStream()
        with pa.ipc.new_stream(sink, pa.schema([pa.field("x", column.type)]), options=options) as writer:
            writer.write_batch(pa.RecordBatch.from_arrays([part], ["x"]))
        sizes.append(int(sink.size()))
    return sizes[0] - sizes[1]


def _parquet_bytes(blocks: Sequence[Block]) -> Counter[str]:
    """The same columns as tables of one row group, each with or without a dictionary, whichever is smaller."""
    tables = (
        ("timelines", pa.Table.from_batches([block.timelines for block in blocks])),
        ("requests", pa.Table.from_batches([block.requests for block in blocks])),
    )
    sizes = Counter[str]()
    for table, whole in tables:
        plain, dictionary = (column_bytes([whole], "zstd", use) for use in (False, True))
        for path in plain:
            parts = path.split(".")
            name = f"{parts[0]}.{parts[-1]}" if parts[0] in ("events", "targets") else f"{table}.{parts[0]}"
            sizes[name] += min(plain[path], dictionary[path])
    return sizes
