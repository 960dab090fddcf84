"""Planning the files of a source: which of them a build reads, their columns, and where they are split.

On object stores this takes one request per file and one per 1,000 listed files. The files are opened by many threads,
because each waits for the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

import polars as pl

from longbatch.pipelines.canonicalize import needed_columns
from longbatch.pipelines.row_filters import may_select
from longbatch.schemas.errors import SourceError
from longbatch.schemas.source_schema import source_schema
from longbatch.schemas.spec.build_spec import BuildSpec

from . import chunks
from .chunks import Piece
from .columnar import read_arrow_schema, read_footer
from .csv import read_header, text_format
from .file_columns import FileSchema, adjustments, check_columns, check_json_keys, encode_constants
from .file_threads import in_threads
from .files import SourceFile, list_files
from .json_lines import read_head
from .partitions import partition_columns
from .text_ranges import RangeScanner, TextFormat, ranges_of, split_at_rows
from .text_stream import is_compressed

BYTES_PER_TEXT_ROW = 48
COMPRESSION_RATIO = 4


@dataclass(frozen=True)
class PlannedFile:
    """A file that the build reads.

    Attributes:
        number: Position of the file in the source.
        file: The file.
        constants: Columns that have one value in all of its rows: a frame of one row, or of none without columns.
    """

    number: int
    file: SourceFile
    constants: pl.DataFrame


def plan_files(spec: BuildSpec, source: str, scan: RangeScanner) -> list[Piece]:
    """Split the files of a source into pieces.

    Args:
        spec: The build spec.
        source: Name of the source.
        scan: How to scan large text files.

    Returns:
        The pieces in the order of the files.

    Raises:
        SourceError: The files are not found, or a column is missing.
        DataError: A file is not readable.
        MachineError: The place of the files cannot be reached or read.
    """
    entry = spec.sources[source]
    files = list(dict.fromkeys(file for pattern in entry.path for file in list_files(pattern)))
    needed = needed_columns(spec, source)
    constants = partition_columns([file.path for file in files], needed) if entry.hive_partitions else pl.DataFrame()
    numbers = list(range(len(files)))
    if constants.width:
        numbers = may_select(spec, source_schema(spec, source), constants).arg_true().to_list()
    # Numbers count all files, so that synthetic timestamps do not depend on the filter.
    planned = [PlannedFile(number, files[number], constants[number : number + 1]) for number in numbers]
    in_files = [name for name in needed if name not in constants.columns]
    if entry.file_format == "parquet":
        return _parquet_pieces(spec, source, planned, in_files)
    if entry.file_format == "csv":
        whole = _csv_files(spec, source, planned, in_files)
        return whole if entry.synthetic_time else _split_large(whole, text_format(entry), scan)
    if entry.file_format == "jsonl":
        heads = in_threads(lambda file: read_head(file.file, in_files), planned)
        paths = [file.file.path for file in planned]
        check_json_keys(source, dict(zip(paths, heads, strict=True)), in_files)
        whole = [whole_file(source, file, is_stream=True) for file in planned]
        return whole if entry.synthetic_time else _split_large(whole, TextFormat(), scan)
    return _arrow_pieces(spec, source, planned, in_files)


def _parquet_pieces(spec: BuildSpec, source: str, files: list[PlannedFile], needed: Sequence[str]) -> list[Piece]:
    footers = in_threads(lambda file: read_footer(file.file, needed), files)
    adjusted = _adjusted(spec, source, files, [footer.schema for footer in footers], needed)
    return [
        piece
        for whole, footer in zip(adjusted, footers, strict=True)
        for piece in row_group_pieces(whole, footer.group_rows)
    ]


def row_group_pieces(whole: Piece, group_rows: Sequence[int]) -> list[Piece]:
    """Split a Parquet file at the first row group that completes CHUNK_ROWS rows.

    CHUNK_ROWS = 4, row groups of 3, 3, 3, 1 rows
    -> row groups [0, 2) with 6 rows from row 0, and [2, 4) with 4 rows from row 6

    Args:
        whole: All of the file.
        group_rows: Number of rows of each row group.

    Returns:
        The pieces, none of a file without row groups.
    """
    pieces: list[Piece] = []
    first_group, first_row, rows, total = 0, 0, 0, max(1, sum(group_rows))
    for group, count in enumerate(group_rows):
        rows += count
        if rows >= chunks.CHUNK_ROWS or group == len(group_rows) - 1:
            size = whole.size * rows // total
            pieces.append(replace(whole, size=size, rows=rows, first=first_group, last=group + 1, first_row=first_row))
            first_group, first_row, rows = group + 1, first_row + rows, 0
    return pieces


def _arrow_pieces(spec: BuildSpec, source: str, files: list[PlannedFile], needed: Sequence[str]) -> list[Piece]:
    schemas = in_threads(lambda file: read_arrow_schema(file.file, needed), files)
    return _adjusted(spec, source, files, schemas, needed)


def _csv_files(spec: BuildSpec, source: str, files: list[PlannedFile], needed: Sequence[str]) -> list[Piece]:
    entry = spec.sources[source]
    names = entry.columns
    headers = [names] * len(files) if names else in_threads(lambda file: read_header(entry, file.file), files)
    # An empty file has no header, and no rows that could lack a column.
    schemas = [
        FileSchema(file.file.path, {name: pl.String() for name in needed if name in (header or needed)}, header)
        for file, header in zip(files, headers, strict=True)
    ]
    return [
        replace(piece, is_stream=True, header=() if names else header)
        for piece, header in zip(_adjusted(spec, source, files, schemas, needed), headers, strict=True)
    ]


def _adjusted(
    spec: BuildSpec, source: str, files: list[PlannedFile], schemas: list[FileSchema], needed: Sequence[str]
) -> list[Piece]:
    """Return one piece per file that makes its columns fit those of the other files."""
    _check_generated(spec, source, files, schemas)
    check_columns(spec, source, schemas, needed)
    pieces = []
    for file, change in zip(files, adjustments(schemas, needed), strict=True):
        nulls = pl.DataFrame({name: pl.Series([None], dtype=dtype) for name, dtype in change.nulls.items()})
        constants = pl.concat([file.constants, nulls], how="horizontal") if nulls.width else file.constants
        whole = whole_file(source, replace(file, constants=constants))
        pieces.append(replace(whole, as_strings=change.as_strings))
    return pieces


def _check_generated(spec: BuildSpec, source: str, files: list[PlannedFile], schemas: list[FileSchema]) -> None:
    """Raise SourceError if a file has the column of the synthetic timestamp, or a column that is a folder name."""
    synthetic = spec.sources[source].synthetic_time
    for file, schema in zip(files, schemas, strict=True):
        if synthetic and synthetic.column in schema.names:
            raise SourceError(
                f"source {source}: {schema.path} already has the column {synthetic.column!r} of synthetic_time. "
                "Choose another name for synthetic_time.column."
            )
        both = [name for name in file.constants.columns if name in schema.names]
        if both:
            raise SourceError(
                f"source {source}: {schema.path} has the column {both[0]!r}, which is also the name of its folder. "
                f"Set sources.{source}.hive_partitions = false to read the column of the file."
            )


def whole_file(source: str, file: PlannedFile, is_stream: bool = False) -> Piece:
    """Return all of a file as one piece.

    Args:
        source: Name of the source.
        file: The file.
        is_stream: Whether it is a text file.
    """
    path, size = file.file.path, file.file.size_bytes
    uncompressed = size * COMPRESSION_RATIO if is_compressed(path) else size
    rows = max(1, uncompressed // BYTES_PER_TEXT_ROW)
    piece = Piece(source, path, size, rows, file=file.number, file_size=size, is_stream=is_stream)
    return replace(piece, constants=encode_constants(file.constants))


def _split_large(pieces: list[Piece], text: TextFormat, scan: RangeScanner) -> list[Piece]:
    """Split text files that are larger than a chunk; all their ranges are scanned in parallel."""
    large = [piece for piece in pieces if piece.size > chunks.CHUNK_BYTES and not is_compressed(piece.path)]
    ranges = {piece.file: ranges_of(piece) for piece in large}
    scans = iter(scan(list(chain(*ranges.values())), text))
    scanned = {number: list(islice(scans, len(parts))) for number, parts in ranges.items()}
    return [
        part
        for piece in pieces
        for part in (split_at_rows(piece, scanned[piece.file], text) if piece.file in scanned else [piece])
    ]
