"""The rows that Spark moves from map tasks to reduce tasks: *parts*.

A part is a small message. What it contains is named by `content`, and each content has a constructor and a reader here:

| content | constructor | reader |
|---|---|---|
| rows:<source>, request_users, vocabulary, rejected:<source> | `Part.of_rows` | `frame_of` |
| accounting:<source> | `Part.of_accounting` | `Part.accounting` |
| latest_action | `Part.of_latest_action` | the driver, from the column `time` |
| bucket | `Part.of_bucket` | `Part.earlier_files`; it also makes sure that a bucket without rows is built |
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import polars as pl
import pyarrow as pa

from longbatch.jobs.commit.incremental_state import EarlierFiles
from longbatch.jobs.readers.chunks import Chunk
from longbatch.pipelines.arrays.narrow_ints import widen
from longbatch.schemas.accounting import RowAccounting
from longbatch.schemas.types import ArrowField

from .spark_partitioning import PARTITION_KEY, partition_keys

# Spark sends up to 10,000 rows at once to Python, in one Arrow batch, which must stay below 2 GB.
PART_BYTES = 128 << 10
PARTS_FIELDS: list[ArrowField] = [
    pa.field(PARTITION_KEY, pa.int32()),
    pa.field("bucket", pa.int32()),
    pa.field("content", pa.string()),
    pa.field("chunk", pa.string()),
    pa.field("time", pa.int64()),
    pa.field("data", pa.binary()),
]
PARTS_SCHEMA = pa.schema(PARTS_FIELDS)
PARTS_DDL = f"{PARTITION_KEY} int, bucket int, content string, chunk string, time bigint, data binary"
LATEST_ACTION, BUCKET = "latest_action", "bucket"


@dataclass(frozen=True)
class Part:
    """Rows of one content for one bucket, or another message to its reduce task.

    Attributes:
        bucket: Number of the bucket; of rows on the way to a partition of several buckets, the first of them.
        content: What the part contains.
        chunk: Name of the chunk that the part comes from, which decides the order of rows.
        time: The latest action of the chunk in microseconds, for the content LATEST_ACTION.
        data: Rows as an Arrow stream, or JSON; empty for LATEST_ACTION.
    """

    bucket: int
    content: str
    chunk: str = ""
    time: int | None = None
    data: bytes = b""

    @classmethod
    def of_rows(cls, bucket: int, content: str, chunk: str, rows: pa.RecordBatch) -> Iterator[Part]:
        """Rows of a content for a bucket, in parts of at most about PART_BYTES; no part without rows."""
        slices = -(-rows.nbytes // PART_BYTES)
        step = -(-rows.num_rows // max(1, slices))
        for first in range(0, rows.num_rows, max(1, step)):
            yield cls(bucket, content, chunk, data=_to_stream(rows.slice(first, step)))

    @classmethod
    def of_accounting(cls, bucket: int, source: str, chunk: Chunk, accounting: RowAccounting) -> Part:
        """The accounting of a chunk of a source."""
        data = json.dumps(accounting.as_dict()).encode()
        return cls(bucket, accounting_content(source), chunk_name(chunk), data=data)

    @classmethod
    def of_latest_action(cls, bucket: int, chunk: Chunk, time: int) -> Part:
        """The latest action of a chunk in microseconds, which the driver reads before the reduce."""
        return cls(bucket, LATEST_ACTION, chunk_name(chunk), time=time)

    @classmethod
    def of_bucket(cls, bucket: int, earlier: EarlierFiles) -> Part:
        """The files of a bucket from earlier increments."""
        return cls(bucket, BUCKET, data=earlier.to_json().encode())

    def accounting(self) -> RowAccounting:
        """Read the accounting of a chunk."""
        return RowAccounting(**json.loads(self.data))

    def earlier_files(self) -> EarlierFiles:
        """Read the files of a bucket from earlier increments."""
        return EarlierFiles.from_json(self.data)


def accounting_content(source: str) -> str:
    """Content of the parts with the accounting of a source."""
    return f"accounting:{source}"


def rejected_content(source: str) -> str:
    """Content of the parts with the rejected rows of a source."""
    return f"rejected:{source}"


def chunk_name(chunk: Chunk) -> str:
    """Name of a chunk: its file and its first row."""
    return f"{chunk.path}#{chunk.first_row}"


def frame_of(parts: Iterable[Part]) -> pl.DataFrame:
    """Read the rows of all parts into one frame."""
    return widen([pa.ipc.open_stream(part.data).read_next_batch() for part in parts])


def parts_batch(parts: Sequence[Part], partitions: int) -> pa.RecordBatch:
    """Convert parts to rows of Spark, with the key that sends bucket b to partition `b % partitions`."""
    keys = partition_keys(np.array([part.bucket for part in parts], dtype=np.int64) % partitions)
    columns = [[getattr(part, field.name) for part in parts] for field in fields(Part)]
    return pa.RecordBatch.from_arrays(
        [pa.array(keys), *(pa.array(column, f.type) for column, f in zip(columns, PARTS_FIELDS[1:], strict=True))],
        schema=PARTS_SCHEMA,
    )


def read_parts(batch: pa.RecordBatch) -> list[Part]:
    """Convert rows of Spark to parts, which are few and large: never one per row of the log."""
    return [Part(**row) for row in batch.drop_columns([PARTITION_KEY]).to_pylist()]


def _to_stream(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()
