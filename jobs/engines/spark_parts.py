"""The rows that Spark moves from map tasks to reduce tasks: one *part* per chunk, content and bucket.

A part is a small message. What it contains is named by `content`, and each content has a constructor and a reader here:

| content | constructor | reader |
|---|---|---|
| rows:<source>, request_users, vocabulary | `Part.of_rows` | `frame_of` |
| accounting:<source> | `Part.of_accounting` | `Part.accounting` |
| rejected:<source> | `Part.of_rejected` | `Part.rejected_chunk`, `frame_of` |
| latest_action | `Part.of_latest_action` | the driver, from the column `time` |
| bucket | `Part.of_bucket` | none: it makes sure that a bucket without rows is built |
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import polars as pl
import pyarrow as pa

from longbatch.jobs.readers.chunks import Chunk
from longbatch.pipelines.arrays.narrow_ints import widen
from longbatch.schemas.accounting import RowAccounting
from longbatch.schemas.types import ArrowField

from .spark_partitioning import PARTITION_KEY, partition_keys
from .stages import one_batch

# Spark sends up to 10,000 rows at once to Python, in one Arrow batch, which must stay below 2 GB.
PART_BYTES = 128 << 10
PARTS_FIELDS: list[ArrowField] = [
    pa.field(PARTITION_KEY, pa.int32()),
    pa.field("bucket", pa.int32()),
    pa.field("content", pa.string()),
    pa.field("chunk", pa.string()),
    pa.field("time", pa.int64()),
    pa.field("data", pa.binary()),
    pa.field("lines", pa.string()),
]
PARTS_SCHEMA = pa.schema(PARTS_FIELDS)
PARTS_DDL = f"{PARTITION_KEY} int, bucket int, content string, chunk string, time bigint, data binary, lines string"
LATEST_ACTION, BUCKET = "latest_action", "bucket"


@dataclass(frozen=True)
class Part:
    """Rows of one content for one bucket, or another message to its reduce task.

    Attributes:
        bucket: Number of the bucket.
        content: What the part contains.
        chunk: Name of the chunk that the part comes from, which decides the order of rows.
        time: The latest action of the chunk in microseconds, for the content LATEST_ACTION.
        data: Rows as an Arrow stream, or an accounting as JSON; empty for other contents.
        lines: A chunk without its frame (its file and malformed lines) as JSON, for rejected rows.
    """

    bucket: int
    content: str
    chunk: str = ""
    time: int | None = None
    data: bytes = b""
    lines: str | None = None

    @classmethod
    def of_rows(cls, bucket: int, content: str, chunk: Chunk, rows: pa.RecordBatch) -> Iterator[Part]:
        """Rows of a content for a bucket, in parts of at most about PART_BYTES; no part without rows."""
        slices = -(-rows.nbytes // PART_BYTES)
        step = -(-rows.num_rows // max(1, slices))
        for first in range(0, rows.num_rows, max(1, step)):
            yield cls(bucket, content, chunk_name(chunk), data=_to_stream(rows.slice(first, step)))

    @classmethod
    def of_accounting(cls, bucket: int, source: str, chunk: Chunk, accounting: RowAccounting) -> Part:
        """The accounting of a chunk of a source."""
        return cls(
            bucket, accounting_content(source), chunk_name(chunk), data=json.dumps(accounting.as_dict()).encode()
        )

    @classmethod
    def of_rejected(cls, bucket: int, source: str, chunk: Chunk, rejected: pl.DataFrame) -> Part:
        """The rejected rows and malformed lines of a chunk of a source."""
        lines = {"malformed": chunk.malformed, "malformed_rows": chunk.malformed_rows}
        lines_json = json.dumps({"path": chunk.path, "first_row": chunk.first_row, **lines})
        data = _to_stream(one_batch(rejected))
        return cls(bucket, rejected_content(source), chunk_name(chunk), data=data, lines=lines_json)

    @classmethod
    def of_latest_action(cls, bucket: int, chunk: Chunk, time: int) -> Part:
        """The latest action of a chunk in microseconds, which the driver reads before the reduce."""
        return cls(bucket, LATEST_ACTION, chunk_name(chunk), time=time)

    @classmethod
    def of_bucket(cls, bucket: int) -> Part:
        """Only the number of a bucket, so that it is built even if it has no rows."""
        return cls(bucket, BUCKET)

    def accounting(self) -> RowAccounting:
        """Read the accounting of a chunk."""
        return RowAccounting(**json.loads(self.data))

    def rejected_chunk(self) -> Chunk:
        """Read the chunk of rejected rows, without its frame."""
        fields = json.loads(self.lines or "{}")
        malformed, malformed_rows = tuple(fields["malformed"]), tuple(fields["malformed_rows"])
        return Chunk(fields["path"], fields["first_row"], pl.DataFrame(), malformed, malformed_rows)


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


def parts_batch(parts: Sequence[Part]) -> pa.RecordBatch:
    """Convert parts to rows of Spark, with the key that sends the parts of a bucket to a partition of their own."""
    keys = partition_keys(np.array([part.bucket for part in parts], dtype=np.int64))
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
