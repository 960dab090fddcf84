"""The records of a snapshot: its files, its shards and their blocks, and how they are stored.

A snapshot lists every file of a dataset with its length and checksum. Small files (vocabulary, quarantine, samples,
incremental state) are entries of the snapshot's JSON. Shards are rows of an Arrow table beside it, the *shards table*,
because a large dataset has many thousands of blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from itertools import pairwise
from typing import Any, Literal, TypeVar, cast, get_args

import numpy as np
import pyarrow as pa

from longbatch.schemas.arrow import int32_array
from longbatch.schemas.errors import DatasetError
from longbatch.schemas.ragged import list_offsets, offsets_of
from longbatch.schemas.tables import TIMESTAMP
from longbatch.schemas.types import ArrowArray, ArrowListArray

BlockTable = Literal["timelines", "requests"]
CountName = Literal["segments", "events", "requests", "targets", "history_events"]
T = TypeVar("T")

BLOCK_TABLES: tuple[BlockTable, ...] = get_args(BlockTable)
SHARD_TABLES = (*BLOCK_TABLES, "dictionaries")
COUNT_NAMES: tuple[CountName, ...] = get_args(CountName)

FILE_FIELDS: dict[str, pa.DataType] = {"path": pa.string(), "bytes": pa.int64(), "sha256": pa.string()}
# The fields of BlockEntry, in its order, which `read_shards_table` relies on. Counts and times let a loader plan its
# epoch, and let it skip blocks outside a time range, without opening a single file.
BLOCK_FIELDS: dict[str, pa.DataType] = {
    **{name: pa.int64() for name in COUNT_NAMES},
    "first_request_time": TIMESTAMP,
    "last_request_time": TIMESTAMP,
    "timelines_offset": pa.int64(),
    "timelines_bytes": pa.int64(),
    "timelines_crc32": pa.uint32(),
    "requests_offset": pa.int64(),
    "requests_bytes": pa.int64(),
    "requests_crc32": pa.uint32(),
}
# The fields of ShardEntry. Totals repeat what the blocks add up to, so that other tools need not read the lists.
SHARDS_SCHEMA = pa.schema(
    [
        pa.field("bucket", pa.int32()),
        *(pa.field(table, pa.struct(list(FILE_FIELDS.items()))) for table in SHARD_TABLES),
        *(pa.field(f"total_{name}", pa.int64()) for name in COUNT_NAMES),
        pa.field("first_request_time", TIMESTAMP),
        pa.field("last_request_time", TIMESTAMP),
        pa.field("blocks", pa.list_(pa.struct(list(BLOCK_FIELDS.items())))),
    ]
)


@dataclass(frozen=True)
class FileEntry:
    """A file of the dataset, as the snapshot lists it.

    Attributes:
        path: Path relative to the dataset, with forward slashes.
        size_bytes: Length of the file.
        sha256: Checksum of the file, in hexadecimal digits.
        rows: Number of rows; None for the files of a shard, whose blocks are counted one by one.
        table: Table that the file is a part of, for samples and incremental state.
        bucket: Bucket that the file is a part of, for the vocabulary and incremental state.
    """

    path: str
    size_bytes: int
    sha256: str
    rows: int | None = None
    table: str | None = None
    bucket: int | None = None

    def as_dict(self) -> dict[str, str | int]:
        """Return the entry as it is stored in JSON, without the fields that are None."""
        document = {
            "table": self.table,
            "bucket": self.bucket,
            "path": self.path,
            "bytes": self.size_bytes,
            "sha256": self.sha256,
            "rows": self.rows,
        }
        return {key: value for key, value in document.items() if value is not None}

    @classmethod
    def from_dict(cls, document: object, where: str) -> FileEntry:
        """Read an entry back from JSON.

        Args:
            document: What `as_dict` returned.
            where: File and key that the document comes from, for errors.

        Returns:
            The entry.

        Raises:
            DatasetError: A key is missing, unknown, or of another type.
        """
        # Types are compared exactly: `isinstance` would accept a JSON boolean as an integer.
        types = {"table": str, "bucket": int, "path": str, "bytes": int, "sha256": str, "rows": int}
        if (
            not isinstance(document, dict)
            or not {"path", "bytes", "sha256"} <= document.keys() <= types.keys()
            or any(type(value) is not types[key] for key, value in document.items())
        ):
            raise DatasetError(
                f"{where}: {document!r} is not a valid file entry. Restore the snapshot or build the dataset again."
            )
        return cls(size_bytes=document["bytes"], **{key: document[key] for key in document if key != "bytes"})


@dataclass(frozen=True)
class ByteRange:
    """Where a block is in its file: offset and length in bytes, and the CRC-32 of these bytes."""

    offset: int
    size_bytes: int
    crc32: int


@dataclass(frozen=True)
class BlockEntry:
    """One block of a shard: the number of its records, and its byte ranges in the timelines and requests files.

    Attributes:
        segments: Rows of the timelines table.
        events: Events of these timelines.
        requests: Rows of the requests table.
        targets: Targets of these requests.
        history_events: Sum of the history lengths of these requests.
        first_request_time: Earliest request.
        last_request_time: Latest request.
    """

    segments: int
    events: int
    requests: int
    targets: int
    history_events: int
    first_request_time: datetime
    last_request_time: datetime
    timelines_offset: int
    timelines_bytes: int
    timelines_crc32: int
    requests_offset: int
    requests_bytes: int
    requests_crc32: int

    def count(self, name: CountName) -> int:
        """Return one of the counts by its name."""
        return cast(int, getattr(self, name))

    def byte_range(self, table: BlockTable) -> ByteRange:
        """Return where the block is in the file of a table."""
        if table == "timelines":
            return ByteRange(self.timelines_offset, self.timelines_bytes, self.timelines_crc32)
        return ByteRange(self.requests_offset, self.requests_bytes, self.requests_crc32)


@dataclass(frozen=True)
class ShardEntry:
    """One shard: its files, its blocks in order, and totals over the blocks.

    Attributes:
        bucket: User bucket. Appended datasets have several shards of a bucket.
        dictionaries: File of the shard's dictionaries; None where the spec needs none.
    """

    bucket: int
    timelines: FileEntry
    requests: FileEntry
    dictionaries: FileEntry | None
    total_segments: int
    total_events: int
    total_requests: int
    total_targets: int
    total_history_events: int
    first_request_time: datetime
    last_request_time: datetime
    blocks: tuple[BlockEntry, ...]

    @classmethod
    def from_blocks(cls, bucket: int, files: Sequence[FileEntry], blocks: Sequence[BlockEntry]) -> ShardEntry:
        """Make the entry of a shard from what was written, and sum up its blocks.

        Args:
            bucket: User bucket.
            files: Files of timelines, requests and, where there are any, dictionaries.
            blocks: At least one block, in the order of the files.

        Returns:
            The entry.
        """
        timelines, requests, *dictionaries = files
        return cls(
            bucket=bucket,
            timelines=timelines,
            requests=requests,
            dictionaries=dictionaries[0] if dictionaries else None,
            total_segments=sum(block.segments for block in blocks),
            total_events=sum(block.events for block in blocks),
            total_requests=sum(block.requests for block in blocks),
            total_targets=sum(block.targets for block in blocks),
            total_history_events=sum(block.history_events for block in blocks),
            first_request_time=min(block.first_request_time for block in blocks),
            last_request_time=max(block.last_request_time for block in blocks),
            blocks=tuple(blocks),
        )

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """Files of timelines and requests, and of dictionaries if the shard has them."""
        files = (self.timelines, self.requests, self.dictionaries)
        return tuple(entry for entry in files if entry is not None)

    def file(self, table: BlockTable) -> FileEntry:
        """Return the file of timelines or of requests."""
        return self.timelines if table == "timelines" else self.requests

    def total(self, name: CountName) -> int:
        """Return one of the totals by the name of its count."""
        return cast(int, getattr(self, f"total_{name}"))

    @property
    def sort_key(self) -> tuple[int, str]:
        """Order of the shards in a snapshot: by bucket, then by file name."""
        return self.bucket, self.timelines.path


def shards_table(shards: Sequence[ShardEntry]) -> pa.Table:
    """Convert shards to the shards table.

    Args:
        shards: The shards, in order.

    Returns:
        A table of SHARDS_SCHEMA, one row a shard.
    """
    # Column by column over the blocks of all shards; one list array at the end assigns blocks to shards by offsets.
    #     blocks      shard 0: a b, shard 1: c
    #     columns     a b c, one array for each field
    #     offsets     0 2 3
    blocks = [block for shard in shards for block in shard.blocks]
    block_columns = [
        pa.array([getattr(block, name) for block in blocks], type_) for name, type_ in BLOCK_FIELDS.items()
    ]
    offsets = offsets_of(np.array([len(shard.blocks) for shard in shards], dtype=np.int64))
    structs = pa.StructArray.from_arrays(block_columns, fields=list(SHARDS_SCHEMA.field("blocks").type.value_type))
    columns: list[ArrowArray] = []
    for field in SHARDS_SCHEMA:
        if field.name in SHARD_TABLES:
            columns.append(_file_column([getattr(shard, field.name) for shard in shards]))
        elif field.name == "blocks":
            columns.append(pa.ListArray.from_arrays(int32_array(offsets), structs))
        else:
            columns.append(pa.array([getattr(shard, field.name) for shard in shards], field.type))
    return pa.Table.from_arrays(columns, schema=SHARDS_SCHEMA)


def _file_column(entries: Sequence[FileEntry | None]) -> ArrowArray:
    values = [None if entry is None else entry.as_dict() for entry in entries]
    return cast(ArrowArray, pa.array(values, SHARDS_SCHEMA.field("timelines").type))


def read_shards_table(table: pa.Table, path: str) -> tuple[ShardEntry, ...]:
    """Convert a shards table back to shards.

    Args:
        table: Table of SHARDS_SCHEMA.
        path: File that the table was read from, for errors.

    Returns:
        The shards, in order.

    Raises:
        DatasetError: The columns are not those of SHARDS_SCHEMA, or a value is null.
    """
    if not table.schema.equals(SHARDS_SCHEMA):
        raise DatasetError(
            f"{path}: its columns are not those of a shards table. Restore the snapshot or build the dataset again."
        )
    columns = {name: table[name].combine_chunks() for name in table.schema.names}
    lists = cast(ArrowListArray, columns["blocks"])
    structs = cast(pa.StructArray, lists.flatten())
    block_columns = {name: structs.field(number) for number, name in enumerate(BLOCK_FIELDS)}
    # A shard without dictionaries has a null there, the only one that is allowed.
    optional = columns.pop("dictionaries")
    _check_no_nulls({**columns, **{f"blocks.{name}": values for name, values in block_columns.items()}}, path)
    # `map` with one list for each field makes the records without a dict for each row.
    blocks = list(map(BlockEntry, *(values.to_pylist() for values in block_columns.values())))
    bounds = list_offsets(lists).tolist()
    values: dict[str, list[Any]] = {
        **{name: column.to_pylist() for name, column in columns.items() if name not in (*BLOCK_TABLES, "blocks")},
        **{table_name: _files(columns[table_name], path) for table_name in BLOCK_TABLES},
        "dictionaries": _files(optional, path),
        "blocks": [tuple(blocks[start:end]) for start, end in pairwise(bounds)],
    }
    return tuple(map(ShardEntry, *(values[field.name] for field in fields(ShardEntry))))


def _check_no_nulls(columns: Mapping[str, ArrowArray], path: str) -> None:
    for name, values in columns.items():
        if values.null_count:
            raise DatasetError(f"{path}: column {name} has a null. Restore the snapshot or build the dataset again.")


def _files(column: ArrowArray, path: str) -> list[FileEntry | None]:
    """The file entries of a struct column; None where the struct is null."""
    documents: Iterable[object] = column.to_pylist()
    return [None if document is None else FileEntry.from_dict(document, path) for document in documents]
