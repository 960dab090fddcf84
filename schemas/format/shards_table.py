"""The shards of a snapshot as the columns of an Arrow table, in memory as on disk.

A large dataset has 200,000 shards of 1.5 million blocks. Columns take 130 bytes a block, and what adds up, compares or
lists all of them works on whole columns. The entry of a single shard, a `ShardEntry`, is created when it is requested.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from io import IOBase
from itertools import pairwise
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import DupFd
from typing import Any, Literal, Protocol, cast, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longbatch.schemas.arrow import int32_array, int64_array
from longbatch.schemas.errors import DatasetError
from longbatch.schemas.ragged import list_offsets, offsets_of
from longbatch.schemas.tables import TIMESTAMP
from longbatch.schemas.types import ArrowArray, ArrowListArray, Int64Array

from .manifest import BLOCK_TABLES, COUNT_NAMES, SHARD_TABLES, BlockEntry, FileEntry, ShardEntry, ShardTable

FILE_FIELDS: dict[str, pa.DataType] = {"path": pa.string(), "bytes": pa.int64(), "sha256": pa.string()}
# The fields of BlockEntry, in its order, which `ShardsTable` relies on. Counts and times let a loader plan its epoch,
# and let it skip blocks outside a time range, without opening a single file.
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
ITERATION_SHARDS = 1024  # entries that an iteration creates at a time


class ShardsTable(Sequence[ShardEntry]):
    """S shards with B blocks, in order. Immutable.

    A worker process that is being started receives the columns as shared memory. Any other pickle contains a compressed
    copy of them.

    Args:
        table: A table of SHARDS_SCHEMA.
        source: File that the table was read from, for errors.

    Raises:
        DatasetError: The columns are not those of SHARDS_SCHEMA, a value is null, or an offset is out of bounds.

    Example:
        >>> shards = open_dataset("dataset").shards
        >>> len(shards), shards[0].bucket, int(shards.block_values("requests").sum())
        (1, 0, 60)
    """

    def __init__(self, table: pa.Table, source: str = "shards table") -> None:
        if not table.schema.equals(SHARDS_SCHEMA):
            raise DatasetError(
                f"{source}: its columns are not those of a shards table. "
                "Restore the snapshot or build the dataset again."
            )
        try:
            # The checksum of a file shows that its bytes are those that were written, not that the writer was correct.
            for column in table.columns:
                column.validate(full=True)
        except pa.ArrowException as error:
            raise DatasetError(f"{source} cannot be read: {error}. Build the dataset again.") from None
        self._shared_file: int | None = None
        self._set_columns(table)
        self._check_no_nulls(source)
        self._check_blocks(source)

    def _set_columns(self, table: pa.Table) -> None:
        self._table = table
        self._columns = {name: _one_chunk(table[name]) for name in table.schema.names}
        lists = cast(ArrowListArray, self._columns["blocks"])
        self.block_offsets: Int64Array = list_offsets(lists)
        # `flatten` and not `field`, so that a field of a null struct is null.
        blocks = cast(pa.StructArray, lists.flatten()).flatten()
        self._block_columns = dict(zip(BLOCK_FIELDS, blocks, strict=True))
        self._files: dict[ShardTable, list[ArrowArray]] = {
            name: cast(pa.StructArray, self._columns[name]).flatten() for name in SHARD_TABLES
        }

    def _check_blocks(self, source: str) -> None:
        empty = np.flatnonzero(np.diff(self.block_offsets) == 0)
        if len(empty):
            raise DatasetError(
                f"{source}: shard {empty[0]} has no blocks. Restore the snapshot or build the dataset again."
            )

    def _check_no_nulls(self, source: str) -> None:
        # A shard without dictionaries has a null there, the only one that is allowed.
        counts = {name: column.null_count for name, column in self._columns.items() if name != "dictionaries"}
        counts |= {f"blocks.{name}": column.null_count for name, column in self._block_columns.items()}
        for table, columns in self._files.items():
            counts |= {
                f"{table}.{name}": column.null_count - self._columns[table].null_count
                for name, column in zip(FILE_FIELDS, columns, strict=True)
            }
        for name, nulls in counts.items():
            if nulls:
                raise DatasetError(
                    f"{source}: column {name} has a null. Restore the snapshot or build the dataset again."
                )

    @classmethod
    def from_entries(cls, shards: Sequence[ShardEntry]) -> ShardsTable:
        """Create a table of entries.

        Args:
            shards: The shards, in order.

        Returns:
            The table.
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
        return cls(pa.Table.from_arrays(columns, schema=SHARDS_SCHEMA))

    def __len__(self) -> int:
        """S, the number of shards."""
        return self._table.num_rows

    @overload
    def __getitem__(self, index: int) -> ShardEntry: ...
    @overload
    def __getitem__(self, index: slice) -> ShardsTable: ...
    def __getitem__(self, index: int | slice) -> ShardEntry | ShardsTable:
        """Create the entry of a shard, or take a range of the shards."""
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        number = range(len(self))[index]  # IndexError outside of the table; negative numbers count from the end
        (entry,) = self._entries(number, number + 1)
        return entry

    def __iter__(self) -> Iterator[ShardEntry]:
        """Create the entries of all shards, some at a time."""
        for start in range(0, len(self), ITERATION_SHARDS):
            yield from self._entries(start, min(start + ITERATION_SHARDS, len(self)))

    def _entries(self, start: int, end: int) -> Iterator[ShardEntry]:
        """The entries of the shards [start, end)."""
        size, bounds = end - start, self.block_offsets[start : end + 1]
        first, count = int(bounds[0]), int(bounds[-1] - bounds[0])
        # `map` with one list for each field creates the records without a dict for each row.
        blocks = list(
            map(BlockEntry, *(column.slice(first, count).to_pylist() for column in self._block_columns.values()))
        )
        values: dict[str, Sequence[Any]] = {
            name: column.slice(start, size).to_pylist()
            for name, column in self._columns.items()
            if name not in (*SHARD_TABLES, "blocks")
        }
        for table, columns in self._files.items():
            rows = zip(*(column.slice(start, size).to_pylist() for column in columns), strict=True)
            values[table] = [None if path is None else FileEntry(path, *rest) for path, *rest in rows]
        values["blocks"] = [tuple(blocks[a:b]) for a, b in pairwise((bounds - first).tolist())]
        return map(ShardEntry, *(values[field.name] for field in fields(ShardEntry)))

    def __eq__(self, other: object) -> bool:
        """Whether the other object is a table of the same shards."""
        return isinstance(other, ShardsTable) and bool(self._table.equals(other._table))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Summarize the table."""
        return f"<ShardsTable of {len(self)} shards, {self.num_blocks} blocks>"

    @property
    def table(self) -> pa.Table:
        """The table, of SHARDS_SCHEMA, as it is stored."""
        return self._table

    @property
    def num_blocks(self) -> int:
        """B, the number of blocks."""
        return int(self.block_offsets[-1])

    def values(self, name: str) -> Int64Array:
        """Return a field of ShardEntry that is a number or a time.

        Args:
            name: Name of the field.

        Returns:
            The values, (S,); times in microseconds since 1970 UTC.
        """
        return _numbers(self._columns[name])

    def block_values(self, name: str) -> Int64Array:
        """Return a field of BlockEntry.

        Args:
            name: Name of the field.

        Returns:
            The values, (B,); times in microseconds since 1970 UTC.
        """
        return _numbers(self._block_columns[name])

    def shard_of(self, block: int) -> int:
        """Return the number of the shard that contains a block.

        Args:
            block: Number of the block in the dataset, from 0 to B - 1.
        """
        return int(np.searchsorted(self.block_offsets, block, side="right")) - 1

    def file_bytes(self, table: ShardTable) -> int:
        """Return the total length of all files of a table."""
        return int(pc.sum(self._files[table][1]).as_py() or 0)

    def paths(self) -> pa.StringArray:
        """Return the paths of all files, relative to the dataset: of all timelines, requests, then dictionaries."""
        paths = [self._files[table][0] for table in BLOCK_TABLES]
        joined = pa.concat_arrays([*paths, self._files["dictionaries"][0].drop_null()])
        return cast(pa.StringArray, joined)

    def folders(self) -> list[str]:
        """Return the folders of all files, relative to the dataset."""
        # All files of a table are in one folder, but nothing in the format says so.
        return cast(list[str], pc.replace_substring_regex(self.paths(), r"/?[^/]*$", "").unique().to_pylist())

    def checksum_lines(self) -> bytes:
        """Return for each shard a line feed and the SHA-256 of its files, separated by spaces."""
        # The stubs do not accept arrays and strings together.
        join = cast("Callable[..., pa.StringArray]", partial(pc.binary_join_element_wise, null_handling="skip"))
        lines = join("", join(*(self._files[table][2] for table in SHARD_TABLES), " "), "\n")
        # The values of a string array follow each other in one buffer, so the lines are joined already.
        size, values = int(pc.sum(pc.binary_length(lines)).as_py() or 0), lines.buffers()[2]
        return values.to_pybytes()[:size] if values else b""

    def take(self, numbers: Int64Array) -> ShardsTable:
        """Return some of the shards.

        Args:
            numbers: Numbers of the shards, in the order of the result.
        """
        return ShardsTable(self._table.take(int64_array(numbers)))

    def sorted_with(self, others: ShardsTable) -> ShardsTable:
        """Return these shards and others, by bucket and then by the path of the timelines."""
        joined = _joined(self, others)
        path = pc.struct_field(joined["timelines"], "path")
        keys = pa.table({"bucket": joined["bucket"], "path": path})
        order = pc.sort_indices(keys, [("bucket", "ascending"), ("path", "ascending")])
        return ShardsTable(joined.take(order))

    def replaced(self, changes: Mapping[int, ShardEntry | None]) -> ShardsTable:
        """Return the shards with some of them replaced, in the same order.

        Args:
            changes: Number of a shard to its new entry, or to None to leave it out.
        """
        new = {number: entry for number, entry in changes.items() if entry is not None}
        rows = np.arange(len(self))
        rows[list(new)] = len(self) + np.arange(len(new))
        rows = np.delete(rows, [number for number, entry in changes.items() if entry is None])
        return ShardsTable(_joined(self, ShardsTable.from_entries([*new.values()])).take(int64_array(rows)))

    def __reduce__(self) -> tuple[Callable[..., ShardsTable], tuple[Any, ...]]:
        """Return what a pickle contains: shared memory for a process that is being started, else a copy."""
        if get_spawning_popen() is None:
            sink, options = pa.BufferOutputStream(), pa.ipc.IpcWriteOptions(compression="zstd")
            with pa.ipc.new_stream(sink, self._table.schema, options=options) as writer:
                writer.write_table(self._table)
            return _from_stream, (sink.getvalue().to_pybytes(),)
        if self._shared_file is None:
            self._shared_file = os.memfd_create("longbatch-shards")
            weakref.finalize(self, os.close, self._shared_file)  # processes that have mapped it keep it
            with os.fdopen(os.dup(self._shared_file), "wb") as file:
                write_table(file, self._table, None)
            self._set_columns(_mapped_table(self._shared_file))  # frees the memory of this process's own copy
        return _from_shared_file, (DupFd(self._shared_file),)


def write_table(sink: pa.NativeFile | IOBase, table: pa.Table, compression: Literal["zstd"] | None) -> None:
    """Write a table as an Arrow IPC file.

    Args:
        sink: Where to write.
        table: The table.
        compression: Codec of the columns.
    """
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)


class _DetachableFile(Protocol):
    """What a started process receives for a `DupFd`."""

    def detach(self) -> int:
        """Return the file's handle in this process."""
        ...


def _from_stream(data: bytes) -> ShardsTable:
    return ShardsTable(pa.ipc.open_stream(data).read_all())


def _from_shared_file(file: _DetachableFile) -> ShardsTable:
    handle = file.detach()
    try:
        return ShardsTable(_mapped_table(handle))
    finally:
        os.close(handle)


def _mapped_table(handle: int) -> pa.Table:
    """The table in a file without compression, whose columns are views of the mapped file."""
    return pa.ipc.open_file(pa.py_buffer(mmap.mmap(handle, 0, access=mmap.ACCESS_READ))).read_all()


def _joined(first: ShardsTable, second: ShardsTable) -> pa.Table:
    return pa.concat_tables([first.table, second.table]).combine_chunks()


def _one_chunk(column: pa.ChunkedArray[Any]) -> ArrowArray:
    if column.num_chunks == 1:
        return cast(ArrowArray, column.chunk(0))  # without a copy
    return pa.concat_arrays([pa.array([], column.type), *column.chunks])


def _numbers(column: ArrowArray) -> Int64Array:
    return np.asarray(column.cast(pa.int64()).to_numpy(), dtype=np.int64)


def _file_column(entries: Sequence[FileEntry | None]) -> ArrowArray:
    values = [None if entry is None else entry.as_dict() for entry in entries]
    return cast(ArrowArray, pa.array(values, SHARDS_SCHEMA.field("timelines").type))
