"""Reading raw logs: the files of a source -> pieces that tasks can read on their own -> chunks of raw rows.

CSV and JSON values arrive as strings and are typed later, by the spec, so that a bad value is a rejected row and not
an exception.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import polars as pl

from longbatch.pipelines.canonicalize import needed_columns
from longbatch.schemas.errors import DataError, SourceError
from longbatch.schemas.source_schema import source_schema
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.spec.columns import duration_us
from longbatch.schemas.spec.source import SyntheticTime

from .chunks import Chunk, Piece, plain_types
from .columnar import read_arrow, read_parquet
from .csv import read_csv
from .file_columns import decode_constants
from .file_pieces import plan_files
from .iceberg import read_iceberg
from .json_lines import read_json_lines
from .table_pieces import plan_delta, plan_iceberg_pieces
from .text_ranges import RangeScanner, scan_in_threads


def plan_pieces(spec: BuildSpec, source: str, scan: RangeScanner = scan_in_threads) -> list[Piece]:
    """Split a source into pieces of about CHUNK_ROWS rows.

    Parquet files are split at row groups, large CSV and JSON-lines files at rows if they are not compressed; a file of
    another format is one piece.

    Args:
        spec: The build spec.
        source: Name of the source.
        scan: How to scan large text files; default: in threads.

    Returns:
        The pieces, in the order of the spec's paths, then of file names, then of rows.

    Raises:
        SourceError: The source is a Spark table, its files are not found, or a column is missing.
        DataError: A file is not readable.
        MachineError: The place of the files cannot be reached or read.
    """
    file_format = spec.sources[source].file_format
    if file_format == "table":
        raise SourceError(
            f"source {source} is a Spark table, which only Spark can read. Build with --engine spark, or read the "
            'table\'s files: format = "delta" and "iceberg" need no Spark.'
        )
    try:
        if file_format == "delta":
            return plan_delta(spec, source)
        return plan_iceberg_pieces(spec, source) if file_format == "iceberg" else plan_files(spec, source, scan)
    except SourceError as error:
        message = str(error)
        raise SourceError(message if message.startswith("source ") else f"source {source}: {message}") from None


def read_piece(spec: BuildSpec, piece: Piece) -> Iterator[Chunk]:
    """Read a piece of a source.

    Args:
        spec: The build spec, which decides the columns to read.
        piece: What to read.

    Yields:
        Chunks of raw rows, in file order, with the synthetic timestamp where the source has one, and the columns that
        have one value in all rows of the file.

    Raises:
        DataError: The file is not readable.
    """
    entry = spec.sources[piece.source]
    columns = needed_columns(spec, piece.source)
    constants = decode_constants(piece.constants)
    in_file = [name for name in columns if name not in constants.columns]
    first_row = piece.first_row  # malformed lines not counted, unlike `Chunk.first_row`
    for chunk in _read_file(spec, piece, in_file):
        try:
            frame = plain_types(chunk.frame)
        except pl.exceptions.PolarsError as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{chunk.path} has a binary column that is not UTF-8: {reason}") from None
        frame = frame.with_columns(
            *(pl.col(name).cast(pl.String) for name in piece.as_strings),
            *(pl.col(name).dt.replace_time_zone("UTC") for name in piece.as_utc),
        )
        if constants.width:
            values = [pl.lit(column[0], dtype=column.dtype).alias(column.name) for column in constants]
            frame = frame.with_columns(values).select(columns)
        if entry.synthetic_time:
            _check_synthetic_time(entry.synthetic_time, piece, first_row + frame.height)
            frame = _with_synthetic_time(frame, entry.synthetic_time, piece.file, first_row)
        first_row += frame.height
        yield replace(chunk, frame=frame)


def _read_file(spec: BuildSpec, piece: Piece, columns: list[str]) -> Iterator[Chunk]:
    entry = spec.sources[piece.source]
    if entry.file_format == "csv":
        return read_csv(entry, piece, columns)
    if entry.file_format == "jsonl":
        return read_json_lines(piece, columns, source_schema(spec, piece.source).list_columns)
    if entry.file_format == "iceberg":
        return read_iceberg(entry.path[0], entry.snapshot, piece, columns)
    return read_arrow(piece, columns) if entry.file_format == "arrow" else read_parquet(piece, columns)


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
