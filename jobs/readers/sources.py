"""Reading raw logs: the files of a source -> pieces that tasks can read on their own -> chunks of raw rows.

CSV and JSON values arrive as strings and are typed later, by the spec, so that a bad value is a rejected row and not
an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import polars as pl

from longbatch.pipelines.canonicalize import needed_columns
from longbatch.schemas.errors import DataError, SourceError
from longbatch.schemas.source_schema import source_schema
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.spec.columns import duration_us
from longbatch.schemas.spec.source import Source, SyntheticTime

from . import chunks
from .chunks import Chunk, Piece, plain_types
from .columnar import open_parquet, read_arrow, read_parquet
from .csv import read_csv
from .files import list_files
from .json_lines import read_json_lines

BYTES_PER_TEXT_ROW = 48
COMPRESSED_SUFFIXES = (".gz", ".zst", ".bz2", ".lz4")
COMPRESSION_RATIO = 4

Reader = Callable[[Source, Piece, list[str]], Iterator[Chunk]]


def plan_pieces(spec: BuildSpec, source: str) -> list[Piece]:
    """Split the files of a source into pieces of about CHUNK_ROWS rows.

    Only Parquet files are split, at row groups; a file of another format is one piece.

    Args:
        spec: The build spec.
        source: Name of the source.

    Returns:
        The pieces, in the order of the spec's paths, then of file names, then of rows.

    Raises:
        SourceError: The source is a Spark table, or its files are not found.
        DataError: A Parquet file is not readable.
    """
    entry = spec.sources[source]
    if entry.file_format == "table":
        raise SourceError(f"source {source} is a Spark table, which only Spark can read. Build with --engine spark.")
    try:
        files = list(dict.fromkeys(file for pattern in entry.path for file in list_files(pattern)))
    except SourceError as error:
        raise SourceError(f"source {source}: {error}") from None
    pieces: list[Piece] = []
    for number, (path, size) in enumerate(files):
        if entry.file_format == "parquet":
            pieces += [replace(piece, file=number) for piece in _parquet_pieces(source, path, size)]
        else:
            pieces.append(Piece(source, path, size, rows=_estimated_rows(path, size), file=number))
    return pieces


def _estimated_rows(path: str, size: int) -> int:
    uncompressed = size * COMPRESSION_RATIO if path.endswith(COMPRESSED_SUFFIXES) else size
    return max(1, uncompressed // BYTES_PER_TEXT_ROW)


def _parquet_pieces(source: str, path: str, size: int) -> list[Piece]:
    """Split a Parquet file at the first row group that completes CHUNK_ROWS rows.

    CHUNK_ROWS = 4, row groups of 3, 3, 3, 1 rows
    -> row groups [0, 2) with 6 rows from row 0, and [2, 4) with 4 rows from row 6
    """
    metadata = open_parquet(path).metadata
    pieces: list[Piece] = []
    first_group, first_row, rows = 0, 0, 0
    for group in range(metadata.num_row_groups):
        rows += metadata.row_group(group).num_rows
        if rows >= chunks.CHUNK_ROWS or group == metadata.num_row_groups - 1:
            piece_size = size * rows // max(1, metadata.num_rows)
            pieces.append(Piece(source, path, piece_size, rows, first_group, group + 1, first_row))
            first_group, first_row, rows = group + 1, first_row + rows, 0
    return pieces


def read_piece(spec: BuildSpec, piece: Piece) -> Iterator[Chunk]:
    """Read a piece of a source.

    Args:
        spec: The build spec, which decides the columns to read.
        piece: What to read.

    Yields:
        Chunks of raw rows, in file order, with the synthetic timestamp where the source has one.

    Raises:
        SourceError: A column is missing.
        DataError: The file is not readable.
    """
    entry = spec.sources[piece.source]
    columns = needed_columns(spec, piece.source)
    readers: dict[str, Reader] = {
        "parquet": read_parquet,
        "csv": read_csv,
        "jsonl": partial(read_json_lines, list_columns=source_schema(spec, piece.source).list_columns),
        "arrow": read_arrow,
    }
    first_row = piece.first_row  # malformed lines not counted, unlike `Chunk.first_row`
    for chunk in readers[entry.file_format](entry, piece, columns):
        try:
            frame = plain_types(chunk.frame)
        except pl.exceptions.PolarsError as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{chunk.path} has a binary column that is not UTF-8: {reason}") from None
        if entry.synthetic_time:
            _check_synthetic_time(entry.synthetic_time, piece, first_row + frame.height)
            frame = _with_synthetic_time(frame, entry.synthetic_time, piece.file, first_row)
        first_row += frame.height
        yield replace(chunk, frame=frame)


def _check_synthetic_time(synthetic: SyntheticTime, piece: Piece, rows: int) -> None:
    if rows > duration_us(synthetic.per_file):
        raise DataError(
            f"source {piece.source}: {piece.path} has at least {rows:,} rows, but synthetic_time.per_file is only "
            f"{synthetic.per_file} at one microsecond a row, so its timestamps would overlap those of the next file. "
            "Use a longer per_file."
        )


def _with_synthetic_time(frame: pl.DataFrame, synthetic: SyntheticTime, file: int, first_row: int) -> pl.DataFrame:
    """Add a timestamp that counts one microsecond a row within the file."""
    first = synthetic.of_file(file) + first_row
    times = pl.int_range(first, first + pl.len(), dtype=pl.Int64).cast(pl.Datetime("us", "UTC"))
    return frame.with_columns(times.alias(synthetic.column))
