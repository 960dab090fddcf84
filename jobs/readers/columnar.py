"""Readers of Parquet row groups and of Arrow IPC files."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from longbatch.schemas.errors import DataError
from longbatch.schemas.spec.source import Source

from . import chunks
from .chunks import Chunk, Piece, require_columns
from .files import filesystem_of


def open_parquet(path: str) -> pq.ParquetFile:
    """Open a Parquet file by local path or URI.

    Args:
        path: Local path or URI.

    Returns:
        The open file; a remote one fetches the needed column chunks in few large requests.

    Raises:
        DataError: The file is not readable as Parquet.
    """
    filesystem, inner = filesystem_of(path)
    try:
        return pq.ParquetFile(filesystem.open_input_file(inner), pre_buffer="://" in path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from None


def read_parquet(source: Source, piece: Piece, columns: list[str]) -> Iterator[Chunk]:
    """Read row groups of a Parquet file.

    Args:
        source: The source's section of the spec.
        piece: The row groups to read.
        columns: Columns to read.

    Yields:
        Chunks of at most 2 * CHUNK_ROWS rows, in file order.

    Raises:
        SourceError: A column is missing.
        DataError: The file or a row group is not readable.
    """
    file = open_parquet(piece.path)
    require_columns(columns, file.schema_arrow.names, piece, source.synthetic_time)
    try:
        groups = list(range(piece.first, piece.last))
        table = file.read_row_groups(groups, columns=columns, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{piece.path}: cannot read row groups {piece.first} to {piece.last - 1}: {error}") from None
    frame = pl.DataFrame(pl.from_arrow(table))
    # A file may have one huge row group. Pieces end at the first group that reaches CHUNK_ROWS, so ordinary ones
    # are below twice that and stay in one chunk.
    for start in range(0, frame.height, 2 * chunks.CHUNK_ROWS):
        yield Chunk(piece.path, piece.first_row + start, frame[start : start + 2 * chunks.CHUNK_ROWS])


def read_arrow(source: Source, piece: Piece, columns: list[str]) -> Iterator[Chunk]:
    """Read an Arrow IPC (Feather) file.

    Args:
        source: The source's section of the spec.
        piece: The file to read.
        columns: Columns to read.

    Yields:
        Chunks of at most CHUNK_ROWS rows, in file order.

    Raises:
        SourceError: A column is missing.
        DataError: The file is not readable.
    """
    filesystem, inner = filesystem_of(piece.path)
    try:
        file = filesystem.open_input_file(inner)
        names = pa.ipc.open_file(file).schema.names
        require_columns(columns, names, piece, source.synthetic_time)
        options = pa.ipc.IpcReadOptions(included_fields=[names.index(name) for name in columns], use_threads=False)
        reader = pa.ipc.open_file(file, options=options)
        first_row = 0
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            for start in range(0, batch.num_rows, chunks.CHUNK_ROWS):
                part = pl.DataFrame(pl.from_arrow(batch.slice(start, chunks.CHUNK_ROWS)))
                yield Chunk(piece.path, first_row + start, part.select(columns))
            first_row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{piece.path} is not a readable Arrow IPC file: {error}") from None
