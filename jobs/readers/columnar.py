"""Readers of Parquet row groups and of Arrow IPC files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from longbatch.schemas.errors import DataError
from longbatch.schemas.types import BoolArray

from . import chunks
from .chunks import Chunk, Piece, decode_mask
from .file_columns import FileSchema
from .files import SourceFile, open_file


@dataclass(frozen=True)
class ParquetFooter:
    """What a build plans from the footer of a Parquet file.

    Attributes:
        schema: Its columns.
        group_rows: Number of rows of each row group.
    """

    schema: FileSchema
    group_rows: tuple[int, ...]


def read_footer(file: SourceFile, needed: Sequence[str]) -> ParquetFooter:
    """Read the footer of a Parquet file.

    Args:
        file: The file.
        needed: Columns whose types are wanted.

    Returns:
        The footer, which remote files take one request for.

    Raises:
        DataError: The file is not readable as Parquet.
    """
    opened = _open_parquet(file.path, file.size_bytes)
    metadata = opened.metadata
    groups = tuple(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
    return ParquetFooter(_file_schema(file.path, opened.schema_arrow, needed), groups)


def read_arrow_schema(file: SourceFile, needed: Sequence[str]) -> FileSchema:
    """Read the columns of an Arrow IPC file.

    Args:
        file: The file.
        needed: Columns whose types are wanted.

    Returns:
        The columns.

    Raises:
        DataError: The file is not readable.
    """
    try:
        return _file_schema(file.path, pa.ipc.open_file(open_file(file.path, file.size_bytes)).schema, needed)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file.path} is not a readable Arrow IPC file: {error}") from None


def _file_schema(path: str, schema: pa.Schema, needed: Sequence[str]) -> FileSchema:
    fields = [schema.field(name) for name in needed if name in schema.names]
    empty = pl.DataFrame(pl.from_arrow(pa.schema(fields).empty_table()))
    return FileSchema(path, dict(chunks.plain_types(empty).schema), schema.names)


def _open_parquet(path: str, size_bytes: int | None) -> pq.ParquetFile:
    try:
        # A remote file fetches the needed column chunks in few large requests. INT96 timestamps in nanoseconds would
        # wrap around after the year 2262.
        return pq.ParquetFile(open_file(path, size_bytes), pre_buffer="://" in path, coerce_int96_timestamp_unit="us")
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from None


def read_parquet(piece: Piece, columns: list[str]) -> Iterator[Chunk]:
    """Read row groups of a Parquet file.

    Args:
        piece: The row groups to read.
        columns: Columns to read.

    Yields:
        Chunks of at most 2 * CHUNK_ROWS rows, in file order.

    Raises:
        DataError: The file or a row group is not readable.
    """
    file = _open_parquet(piece.path, piece.file_size)
    try:
        groups = list(range(piece.first, piece.last))
        table = file.read_row_groups(groups, columns=columns, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{piece.path}: cannot read row groups {piece.first} to {piece.last - 1}: {error}") from None
    frame = pl.DataFrame(pl.from_arrow(table))
    # A file may have one huge row group. Pieces end at the first group that reaches CHUNK_ROWS, so ordinary ones
    # are below twice that and stay in one chunk.
    for start in range(0, frame.height, 2 * chunks.CHUNK_ROWS):
        chunk = Chunk(piece.path, piece.first_row + start, frame[start : start + 2 * chunks.CHUNK_ROWS])
        yield _without_deleted(chunk, decode_mask(piece.deleted, piece.rows)[start:]) if piece.deleted else chunk


def _without_deleted(chunk: Chunk, deleted: BoolArray) -> Chunk:
    mask = deleted[: chunk.frame.height]
    numbers = tuple((np.flatnonzero(mask) + chunk.first_row).tolist())
    return replace(chunk, frame=chunk.frame.filter(pl.Series(~mask)), deleted_rows=numbers)


def read_arrow(piece: Piece, columns: list[str]) -> Iterator[Chunk]:
    """Read an Arrow IPC (Feather) file.

    Args:
        piece: The file to read.
        columns: Columns to read.

    Yields:
        Chunks of at most CHUNK_ROWS rows, in file order.

    Raises:
        DataError: The file is not readable.
    """
    try:
        file = open_file(piece.path, piece.file_size)
        names = pa.ipc.open_file(file).schema.names
        options = pa.ipc.IpcReadOptions(included_fields=[names.index(name) for name in columns], use_threads=False)
        reader = pa.ipc.open_file(file, options=options)
        first_row = 0
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            batch.validate(full=True)  # wrong offsets would read foreign memory
            for start in range(0, batch.num_rows, chunks.CHUNK_ROWS):
                part = pl.DataFrame(pl.from_arrow(batch.slice(start, chunks.CHUNK_ROWS)))
                yield Chunk(piece.path, first_row + start, part.select(columns))
            first_row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{piece.path} is not a readable Arrow IPC file: {error}") from None
